"""``pomlflow check``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from pomlflow.cli.options import beside, prompts_in, values_of, with_values
from pomlflow.exceptions import EngineError, MissingVariableError, PomlError, Problem, RenderError, WorkerDiedError

__all__ = ["check", "show_problems"]


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@with_values
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@click.pass_context
def check(
    ctx: click.Context, paths: tuple[str, ...], given: tuple[str, ...], files: tuple[str, ...], quiet: bool
) -> None:
    """Check prompts, also without values for their variables.

    Each is parsed and rendered. A variable without a value stands for itself, and a problem that may be due to that
    is not told. Values are those of the options, and of support.context.json beside support.poml. Problems are
    printed as FILE:LINE:COLUMN: MESSAGE, in GitHub Actions as annotations.

    \b
    pomlflow check prompts/
    pomlflow check prompts/support.poml --context-file example.json
    """
    from pomlflow.template import Template

    values, wrong = values_of(files, given), 0
    found = prompts_in(paths)
    for file in found:
        error = Template(path=file).check({**beside(file), **values}).error
        if error is not None:
            show_problems(str(file), error)
            wrong += 1
    if not quiet:
        click.echo(f"{len(found)} checked, {wrong or 'none'} with problems", err=True)
    ctx.exit(1 if wrong else 0)


def show_problems(file: str, error: PomlError) -> None:
    """Print an error's problems, a line each, as compilers do and editors, CI and people read them.

    Raises:
        EngineError: Nothing can be rendered here.
    """
    from pomlflow.cli.output import shown_path

    if isinstance(error, EngineError) and not isinstance(error, WorkerDiedError):
        raise error  # no fault of the prompt's
    for problem in _problems(error):
        place = shown_path(problem.file or ("<stdin>" if file == "-" else file))
        line, column = problem.line or 1, problem.column or 1
        message = problem.message.split("\n", 1)[0]
        if os.environ.get("GITHUB_ACTIONS") == "true":
            # https://docs.github.com/actions/reference/workflow-commands-for-github-actions
            click.echo(f"::error file={place},line={line},col={column}::{_escaped(problem.message)}")
        else:
            click.echo(f"{place}:{line}:{column}: {message}")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _problems(error: PomlError) -> Iterator[Problem]:
    if isinstance(error, MissingVariableError) and error.problem is not None:
        yield error.problem
        return
    if not isinstance(error, RenderError):
        place, _, rest = str(error).partition(": ")
        yield Problem(rest if os.path.isabs(place) or place == "<inline>" else str(error), type(error).__name__)  # noqa: PTH117
        return
    seen = set()
    for problem in error.problems:  # one mistake is often collected several times
        key = problem.file, problem.line, problem.column, problem.message
        if key not in seen:
            seen.add(key)
            yield problem

"""``pomlflow render``, ``vars`` and ``check``: the commands that need no registry."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from pomlflow.cli.options import (
    CONTEXT_SUFFIX,
    FILE,
    InputError,
    context_options,
    examples_without_prompt,
    progress,
    prompts_in,
    read_object,
    rules_of,
    rules_options,
    show_chat,
    show_json,
    shown_path,
    template_from_argument,
    values_of,
)
from pomlflow.exceptions import (
    EngineError,
    MissingVariableError,
    PomlError,
    Problem,
    RenderError,
    TemplateNotFoundError,
    WorkerDiedError,
    limited_text,
)
from pomlflow.frame.openai import Format, convert_output
from pomlflow.template import Template


@click.command()
@click.argument("file", type=FILE)
@context_options
@click.option("--stylesheet", type=FILE, metavar="JSON_FILE", help="A POML stylesheet, added to the prompt's own.")
@click.option("--text", is_flag=True, help="Render a single text instead of messages.")
@click.option("--json", "as_json", is_flag=True, help="Print messages, schema, tools and runtime as JSON.")
@click.option(
    "--format", "kind", type=click.Choice(["message_dict", "openai_chat", "langchain"]), help="Print JSON in this form."
)
@click.pass_context
def render(
    ctx: click.Context,
    file: str,
    given: tuple[str, ...],
    files: tuple[str, ...],
    stylesheet: str | None,
    text: bool,
    as_json: bool,
    kind: Format | None,
) -> None:
    """Render a prompt and show its messages as a chat.

    \b
    pomlflow render support.poml -c question="Where is my parcel?" -c orders:='[{"id": 7}]'
    pomlflow render support.poml --context-file case.json --format openai_chat
    pomlflow render prompts:/support@production -c question=Why?
    echo '<p>Hello {{name}}</p>' | pomlflow render - -c name=Ada
    """
    record = template_from_argument(file, stylesheet=stylesheet, chat=not text).render(values_of(files, given))
    if record.error is not None:
        show_problems(file, record.error)
        ctx.exit(1)
    if as_json or kind is not None:
        show_json(convert_output(record, kind or "dict"))
    else:
        show_chat(record.result())


@click.command("vars")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def variables(file: str, as_json: bool) -> None:
    """Show a prompt's variables and the files that it reads.

    \b
    pomlflow vars support.poml
    pomlflow vars support.poml --json
    """
    now = template_from_argument(file).current()
    found = now.inference
    if as_json:
        paths = [one.path for one in now.files]
        kinds = {"variables": found.variables, "optional": found.optional, "messages": found.messages}
        show_json({**{kind: list(names) for kind, names in kinds.items()}, "files": paths})
        return
    rows = [(name, "needed") for name in found.variables] + [(name, "optional") for name in found.optional]
    rows = [(name, f"{how}, messages" if name in found.messages else how) for name, how in rows]
    rows += [(one.path, "file") for one in now.files]
    width = max((len(name) for name, _ in rows), default=0)
    for name, how in rows:
        click.echo(f"{name:<{width}}  {how}")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@context_options
@rules_options
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    given: tuple[str, ...],
    files: tuple[str, ...],
    quiet: bool,
    **rules: Any,
) -> None:
    """Check prompts, with or without values for their variables.

    Each prompt is parsed and rendered. Missing variables are replaced by placeholders, and errors that a placeholder
    may have caused are suppressed. Values come from the options and, for support.poml, from support.context.json next
    to it. A value in that file that the prompt does not take, and such a file without a prompt, are warnings.
    Problems are printed as FILE:LINE:COLUMN: MESSAGE, or as annotations in GitHub Actions.

    Syntax that renders, but probably not as intended, is a warning: FILE:LINE:COLUMN: warning: MESSAGE: REMEDY [RULE].
    With --strict, these warnings fail the check. --select, --ignore and --strict can also be set as select, ignore and
    strict under [tool.pomlflow] of pyproject.toml.

    \b
    pomlflow check prompts/
    pomlflow check prompts/support.poml --context-file example.json
    pomlflow check prompts/ --strict --ignore unused-variable
    """
    values, found = values_of(files, given), prompts_in(paths)
    done = [_check(file, values, rules) for file in progress(found, "checking")]
    for example in examples_without_prompt(paths):
        prompt = f"{example.name.removesuffix(CONTEXT_SUFFIX)}.poml"
        _show(str(example), [Problem(f"there is no {prompt} next to it")], "warning")
        done.append((rules_of(example.parent, **rules).strict, True))
    failed, warned = sum(fails for fails, _ in done), sum(warns for _, warns in done)
    if not quiet:
        warnings = f", {warned} with warnings" if warned else ""
        click.echo(f"{len(found)} checked, {failed or 'none'} with problems{warnings}", err=True)
    ctx.exit(1 if failed else 0)


def _check(file: Path, values: Mapping[str, Any], rules: Mapping[str, Any]) -> tuple[bool, bool]:
    """Check a prompt; return whether it fails, and whether it has warnings."""
    settings, example_file = rules_of(file.parent, **rules), file.with_suffix(CONTEXT_SUFFIX)
    try:
        example = read_object(str(example_file)) if example_file.is_file() else {}
    except click.UsageError as invalid:
        _show(str(example_file), [invalid.problem if isinstance(invalid, InputError) else Problem(invalid.message)])
        return True, False
    template = open_template(file)
    if template is None:
        return True, False
    error, unknown = template.check({**example, **values}).error, []
    if error is not None:
        show_problems(str(file), error)
    elif unknown := sorted(example.keys() - {*template.inference.variables, *template.inference.optional}):
        _show(str(example_file), [Problem(f"{file.name} takes no variable {', '.join(map(repr, unknown))}")], "warning")
    findings = template.lint(settings, getattr(error, "problems", ()))
    warnings = [
        Problem(f"{one.message}: {one.remedy} [{one.rule}]", "", one.file, one.line, one.column) for one in findings
    ]
    _show(str(file), warnings, "warning")
    warns = bool(unknown or findings)
    return error is not None or (settings.strict and warns), warns


def open_template(file: Path, name: str | None = None) -> Template | None:
    """Return the template in a file; None if it cannot be read, after printing the problem."""
    try:
        return Template(path=file, name=name)
    except (RenderError, TemplateNotFoundError) as error:
        show_problems(str(file), error)
        return None


def show_problems(file: str, error: PomlError) -> None:
    """Print an error's problems in the format of compilers, each with its remedy, and then the error's hint."""
    if isinstance(error, EngineError) and not isinstance(error, WorkerDiedError):
        raise error  # the engine cannot render anything, which is not the prompt's fault
    hint = error.hint if isinstance(error, RenderError) else None
    problems = _problems(error)
    _show("<stdin>" if file == "-" else file, problems, remedy=(hint or "").removeprefix(problems[0].remedy or ""))


def _show(file: str, problems: Sequence[Problem], level: str = "error", remedy: str = "") -> None:
    """Print the problems that fit, each with its remedy, and the remedy for all."""
    if problems:
        first, *others = [_line(file, problem, level) for problem in problems]
        click.echo(limited_text(first, others, indent(remedy.strip("\n"), "  ")))


def _line(file: str, problem: Problem, level: str) -> str:
    place = shown_path(problem.file or file)
    line, column = problem.line or 1, problem.column or 1
    message, remedy = problem.message, problem.remedy or ""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # https://docs.github.com/actions/reference/workflow-commands-for-github-actions
        place = _escaped(place).replace(":", "%3A").replace(",", "%2C")
        text = f"{message}\n{remedy}" if remedy else message
        return f"::{level} file={place},line={line},col={column}::{_escaped(text)}"
    shown = f"{place}:{line}:{column}: {'' if level == 'error' else f'{level}: '}{message.split(chr(10), 1)[0]}"
    return "\n".join([shown, *filter(None, [indent(remedy, "  ")])])


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _problems(error: PomlError) -> Sequence[Problem]:
    """Return the problems of any error; a place at the beginning of its text is left out, since it is shown anyway."""
    if isinstance(error, RenderError):
        return error.problems
    if isinstance(error, MissingVariableError) and error.problem is not None:
        return [error.problem]
    place, _, rest = str(error).partition(": ")
    return [Problem(rest if os.path.isabs(place) or place == "<inline>" else str(error), type(error).__name__)]  # noqa: PTH117

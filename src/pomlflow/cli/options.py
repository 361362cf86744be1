"""Shared parts of the commands: options for prompts, variables, rules, settings and MLflow's store; and output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pomlflow.display import sections
from pomlflow.engine.file_access import decode
from pomlflow.exceptions import Problem, RenderError
from pomlflow.settings import configure, settings
from pomlflow.template import Template
from pomlflow.template.lint import RULES, LintSettings, lint_settings

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
FILE = click.Path(allow_dash=True)
name_option = click.option(
    "--name", metavar="NAME", help="The prompt's name in the registry; the default is its file's path."
)
CONTEXT_SUFFIX = ".context.json"  # files of example values: answer.context.json next to answer.poml
_SKIPPED = {"node_modules", "__pycache__", "site-packages", "venv"}
_COLOURS = {"system": "magenta", "human": "green", "ai": "blue", "tool": "yellow"}
_BAR: Final = 30  # the width of a progress bar


class InputError(click.UsageError):
    """A JSON file, or standard input, with invalid content; `problem` has its place."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _connect(ctx: click.Context, _: click.Parameter, tracking_uri: str | None) -> None:
    if not ctx.resilient_parsing:  # for a shell's completion
        connect(tracking_uri)


mlflow_options = click.option(
    "--tracking-uri", metavar="URI", expose_value=False, callback=_connect,
    help="MLflow's store; the default is MLFLOW_TRACKING_URI.",
)  # fmt: skip


def context_options(command: F) -> F:
    """Add the options for variables to a command."""
    context = click.option(
        "-c", "--context", "given", multiple=True, metavar="NAME=TEXT",
        help="A variable: NAME=TEXT, NAME:=JSON, or NAME=@FILE for a file's text. May be repeated.",
    )  # fmt: skip
    file = click.option(
        "--context-file", "files", multiple=True, type=FILE, metavar="JSON_FILE",
        help="A JSON file of variables; - for standard input. May be repeated; -c overrides it.",
    )  # fmt: skip
    return context(file(command))


def rules_options(command: F) -> F:
    """Add the options for warnings to a command."""
    select = click.option(
        "--select", multiple=True, metavar="RULE,…", help="Apply only these rules; may be repeated. See docs/check.md."
    )
    ignore = click.option("--ignore", multiple=True, metavar="RULE,…", help="Ignore these rules; may be repeated.")
    strict = click.option("--strict", is_flag=True, help="Fail (exit code 1) on warnings too.")
    return select(ignore(strict(command)))


def rules_of(folder: Path, select: Sequence[str], ignore: Sequence[str], *, strict: bool) -> LintSettings:
    """Return the lint settings for a prompt in a folder.

    `select` replaces the rules in pyproject.toml, and `ignore` adds to them. `strict` is set if either sets it.
    """
    settings = lint_settings(folder.absolute())
    selected, ignored = [{name.strip() for text in texts for name in text.split(",")} for texts in (select, ignore)]
    if unknown := sorted((selected | ignored) - RULES.keys()):
        raise click.UsageError(f"there is no rule {unknown[0]}; the rules are {', '.join(RULES)}")
    return replace(
        settings,
        select=frozenset(selected) or settings.select,
        ignore=settings.ignore | ignored,
        strict=strict or settings.strict,
    )


def settings_options(command: F) -> F:
    """Add the options for pomlflow's settings to a command."""
    root = click.option(
        "--prompt-root", metavar="FOLDER", expose_value=False, callback=_configure,
        help="The folder that prompt names are relative to; the default is POMLFLOW_PROMPT_ROOT, or prompt_root in "
        "pyproject.toml.",
    )  # fmt: skip
    timeout = click.option(
        "--timeout", metavar="SECONDS", expose_value=False, callback=_configure,
        help="Seconds that a render may take; the default is POMLFLOW_TIMEOUT, or 30. A load from the registry has "
        "the same limit, but never less than 60.",
    )  # fmt: skip
    return root(timeout(command))


def _configure(_: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        setting: Any = {option.name: value}
        configure(**setting)


def values_of(files: Iterable[str], given: Iterable[str]) -> dict[str, Any]:
    """Return the variables in JSON files and in options; later ones override earlier ones, and options files."""
    values: dict[str, Any] = {}
    for file in files:
        values |= read_object(file)
    for item in given:
        name, found, text = item.partition("=")
        if not found or not name.strip(":"):
            raise click.UsageError(f"-c {item}: write NAME=TEXT, NAME:=JSON or NAME=@FILE")
        if name.endswith(":"):
            values[name[:-1]] = _parse_json(text, f"-c {item}")
        else:
            values[name] = _read_text(text[1:]) if text.startswith("@") else text
    return values


def read_object(file: str) -> dict[str, Any]:
    """Return the JSON object in a file, or in standard input (``-``)."""
    value = _parse_json(_read_text(file), file)
    if not isinstance(value, dict):
        raise InputError(Problem(f"must hold a JSON object, not {json.dumps(value)[:40]}", "JSON", file))
    return value


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = () if place.startswith("-c ") else (error.lineno, error.colno)
        raise InputError(Problem(f"invalid JSON: {error.msg}", "JSON", place, *at)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(f"invalid JSON: {error}", "JSON", place)) from error


def _read_text(file: str) -> str:
    try:
        if file == "-":
            if sys.stdin is None:
                raise click.UsageError("-: there is no standard input")
            content = sys.stdin.buffer.read()
        else:
            content = Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{file}: cannot be read ({error.strerror})") from error
    text, problem = decode(content, file)
    if problem is not None:
        raise InputError(problem)
    return text


def template_from_argument(
    file: str, *, name: str | None = None, stylesheet: str | None = None, chat: bool = True
) -> Template:
    """Return the template for an argument: a file, ``-`` for standard input, or a URI of MLflow's registry."""
    style = None if stylesheet is None else read_object(stylesheet)
    if file == "-":
        try:
            return Template(_read_text(file), name=name, stylesheet=style, chat=chat)
        except InputError as error:
            raise RenderError([error.problem]) from error
    if file.startswith("prompts:"):
        connect()
        from pomlflow.tracking.follow import open_prompt

        return Template(origin=open_prompt(file, timeout=load_timeout()), stylesheet=style, chat=chat)
    if os.path.isdir(file):  # noqa: PTH112
        raise click.UsageError(f"{file} is a folder: name a file in it")
    return Template(path=file, name=name, stylesheet=style, chat=chat)


def prompts_in(paths: Sequence[str]) -> list[Path]:
    """Return the given files and the .poml files in the given folders, in order and without repeats."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        files = sorted(_under(path)) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise click.UsageError(f"{path}: {'no .poml file in it' if path.is_dir() else 'there is no such file'}")
        for file in files:
            found.setdefault(os.path.abspath(file), file)  # noqa: PTH100 - it resolves .., but not links
    return list(found.values())


def examples_without_prompt(paths: Sequence[str]) -> list[Path]:
    """Return the files of example values in the given folders that have no prompt next to them."""
    found = [file for path in map(Path, paths) if path.is_dir() for file in _under(path, CONTEXT_SUFFIX)]
    return sorted(file for file in found if not Path(f"{str(file).removesuffix(CONTEXT_SUFFIX)}.poml").is_file())


def _under(folder: Path, suffix: str = ".poml") -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        yield from (Path(here, name) for name in files if name.endswith(suffix))


def load_timeout() -> float:
    """Return the seconds that a load from the registry may take; a person waits longer than a program."""
    return max(60.0, settings().timeout)


def connect(tracking_uri: str | None = None) -> None:
    """Import MLflow with short timeouts, and set its store."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),  # by default an unreachable server takes four minutes
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),  # hides the migrations of a new database
    ):
        os.environ.setdefault(name, value)
    import mlflow

    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items; if there are several, show a bar on standard error if that is a terminal."""
    visible = bool(items[1:]) and sys.stderr.isatty()
    for number, item in enumerate(items, 1):
        if visible:  # on the next line, so that other output does not mix with the bar
            bar = "#" * (_BAR * (number - 1) // len(items))
            click.echo(f"\x1b[K\n{what} [{bar:-<{_BAR}}] {number} of {len(items)}\x1b[K\x1b[A\r", nl=False, err=True)
        yield item
    if visible:
        click.echo("\x1b[K\n\x1b[K\x1b[A\r", nl=False, err=True)


def shown_path(file: str | Path) -> str:
    """Return a path relative to the working folder if it is below that, else unchanged."""
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):  # the working folder was removed, or the path is not below it
        return str(path)


def show_json(value: Any) -> None:
    """Print a value as JSON; escape all characters other than ASCII if the console may not encode one of them."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(value, ensure_ascii=not is_utf8, indent=2))


def show_chat(output: Mapping[str, Any]) -> None:
    """Print a render's output (the form of ``poml.poml(format="dict")``) as a chat."""
    for title, content in sections(output):
        if title:
            click.secho(f"--- {title}", fg=_COLOURS.get(title), bold=True)
        if isinstance(content, str):
            click.echo(content)
        else:
            show_json(content)


def text_diff(before: str, after: str, then: str, now: str) -> Iterator[str]:
    """Yield the lines of a unified diff of two texts; `then` and `now` name them."""
    for line in unified_diff(before.split("\n"), after.split("\n"), then, now, lineterm=""):
        yield click.style(line, fg={"-": "red", "+": "green", "@": "cyan"}.get(line[0]))

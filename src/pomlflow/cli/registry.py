"""``pomlflow register``, ``diff`` and ``pull``: prompts and MLflow's registry."""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pomlflow.cli.options import FILE, connect, mlflow_options, prompts_in, template_of

if TYPE_CHECKING:
    from pomlflow.template import Template
    from pomlflow.tracking.load import PromptContent

__all__ = ["diff", "pull", "register"]


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@click.option("--alias", help="Call the versions so from now on.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@mlflow_options
@click.pass_context
def register(
    ctx: click.Context, paths: tuple[str, ...], alias: str | None, dry_run: bool, tracking_uri: str | None
) -> None:
    """Register prompts whose content is new.

    Each content that the registry does not have becomes a version. A prompt that does not render is told, and not
    registered (exit code 1). A file that another prompt includes is a part of that prompt, unless it is named itself.

    \b
    pomlflow register prompts/ --dry-run
    pomlflow register prompts/ --alias staging
    """
    connect(tracking_uri)
    import mlflow

    from pomlflow.cli.checking import show_problems
    from pomlflow.cli.output import shown_path
    from pomlflow.template import Template
    from pomlflow.tracking.background import shown

    templates = _whole([Template(path=file) for file in prompts_in(paths)], {*map(os.path.abspath, paths)})
    counts: dict[str, int] = {}
    click.echo(f"registry: {shown(mlflow.get_registry_uri(), '***@')}", err=True)
    with _progress(templates) as steps:
        for template in steps:
            record = template.check()
            if record.error is not None:
                state, name = "wrong", str(template.name)
                show_problems(str(template.path), record.error)
            else:
                from pomlflow.tracking.publishing import register as publish

                done = publish(template, record=record, alias=alias, dry_run=dry_run)
                number = None if done.version is None else int(done.version.version)
                state = _state(done.name, number, is_new=done.is_new)
                name = done.name if number is None else f"{done.name}/{number}"
            counts[state] = counts.get(state, 0) + 1
            click.echo(f"{state:<9}  {name}  {shown_path(str(template.path))}")
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    click.echo(f"{told}{' (nothing was written)' if dry_run else ''}", err=True)
    ctx.exit(1 if counts.get("wrong") else 0)


def _whole(templates: list[Template], named: set[str]) -> list[Template]:
    """Those that are no part of another one."""
    parts = {file for template in templates for file in template.inference.includes}
    return [one for one in templates if one.path not in parts or str(one.path) in named]


def _state(name: str, number: int | None, *, is_new: bool) -> str:
    if not is_new:
        return "unchanged"
    from mlflow import MlflowClient

    first = MlflowClient().get_prompt(name) is None if number is None else number == 1
    return "new" if first else "changed"


@contextmanager
def _progress(templates: Sequence[Template]) -> Iterator[Iterator[Template]]:
    """A bar for a person; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield iter(templates)
        return
    from rich.console import Console
    from rich.progress import track

    yield iter(track(templates, "registering", console=Console(stderr=True), transient=True))


@click.command()
@click.argument("file", type=FILE)
@click.argument("uri", required=False, metavar="[prompts:/NAME@ALIAS]")
@mlflow_options
@click.pass_context
def diff(ctx: click.Context, file: str, uri: str | None, tracking_uri: str | None) -> None:
    """Compare a prompt with a version in the registry.

    Word by word, the files that it reads too. Without a version it is the newest one of the prompt's own name. Exit
    code 1 says that they differ.

    \b
    pomlflow diff prompts/support.poml
    pomlflow diff prompts/support.poml prompts:/support@production
    """
    connect(tracking_uri)
    from pomlflow.cli.output import word_diff
    from pomlflow.tracking.load import load

    template = template_of(file)
    if uri is None and template.name is None:
        raise click.UsageError("say with which version: prompts:/name@alias or prompts:/name/3")
    content = load(uri or f"prompts:/{template.name}@latest")
    if content.digest == template.digest:
        click.echo(f"{file} is {content.uri}", err=True)
        return
    click.echo(f"--- {content.uri}\n+++ {file}")
    for line in word_diff(content.source, template.source):
        click.echo(line)
    for line in _changed_files(content, template):
        click.echo(line)
    ctx.exit(1)


def _changed_files(content: PromptContent, template: Template) -> Iterator[str]:
    from pomlflow.cli.output import word_diff

    then = {one.path: one for one in content.bundle.files}
    now = {one.path: one for one in template.current().files}
    for path in dict.fromkeys((*then, *now)):
        before, after = then.get(path), now.get(path)
        if before is None or after is None:
            yield f"{path}: {'not a part of it any more' if after is None else 'a new part of it'}"
        elif before.sha256 != after.sha256:
            yield f"{path}: changed"
            try:
                yield from word_diff((before.content or b"").decode(), after.location.read_bytes().decode())
            except (UnicodeDecodeError, OSError):
                continue  # a picture, or a file that is not there


@click.command()
@click.argument("uri", metavar="prompts:/NAME@ALIAS")
@click.option("-o", "--output", metavar="FOLDER", default=".", help="Where to write it; - prints the markup alone.")
@click.option("--force", is_flag=True, help="Write over files that are different.")
@mlflow_options
def pull(uri: str, output: str, force: bool, tracking_uri: str | None) -> None:
    """Fetch a version out of the registry.

    The markup becomes NAME.poml; the files that it reads are put where it looks for them.

    \b
    pomlflow pull prompts:/support@production -o prompts/
    pomlflow pull prompts:/support/3 -o - | pomlflow render - -c question=Why?
    """
    connect(tracking_uri)
    from pomlflow.cli.output import shown_path
    from pomlflow.tracking.load import load

    content = load(uri)
    if output == "-":
        click.echo(content.source, nl=False)
        return
    files = _files_of(content, Path(output))
    kept = [file for file, data in files.items() if file.exists() and file.read_bytes() != data]
    if kept and not force:
        names = ", ".join(shown_path(str(file)) for file in kept)
        raise click.UsageError(f"{names}: different from {content.uri}; --force writes over it")
    for file, data in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        click.echo(shown_path(str(file)))
    for path, why in content.bundle.omitted.items():
        click.echo(f"{path} was not stored with it: {why}", err=True)


def _files_of(content: PromptContent, folder: Path) -> dict[Path, bytes]:
    """What to write where: the markup's folder stands as far down as its files' ``..`` lead up."""
    home = content.bundle.folder
    files = {f"{content.name}.poml": content.source.encode()} | content.bundle.contents
    return {folder / posixpath.normpath(posixpath.join(home, path)): data for path, data in files.items()}

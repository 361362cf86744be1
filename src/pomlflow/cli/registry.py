"""``pomlflow register``, ``diff``, ``pull`` and ``replay``: the commands for prompts and traces in MLflow."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pomlflow.cli.options import (
    FILE,
    load_timeout,
    mlflow_options,
    name_option,
    progress,
    prompts_in,
    show_json,
    shown_path,
    template_from_argument,
    text_diff,
)
from pomlflow.cli.prompts import open_template, show_problems
from pomlflow.engine.file_access import read_file

if TYPE_CHECKING:
    from pomlflow.template import Template
    from pomlflow.tracking.load import PromptContent
    from pomlflow.tracking.replay import Replay


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@click.option("--alias", help="Set this alias on the versions.")
@click.option("--message", metavar="TEXT", help="The commit message of new versions.")
@click.option("--dry-run", is_flag=True, help="Show what would be registered, without writing.")
@name_option
@mlflow_options
@click.pass_context
def register(
    ctx: click.Context,
    paths: tuple[str, ...],
    alias: str | None,
    message: str | None,
    dry_run: bool,
    name: str | None,
) -> None:
    """Register prompts whose content is new.

    A prompt whose content is not in the registry yet gets a new version. A prompt that does not render is reported and
    not registered (exit code 1). A file that another prompt includes is registered as a prompt of its own only if PATH
    names the file.

    \b
    pomlflow register prompts/ --dry-run
    pomlflow register prompts/ --alias staging --message "Answer in two sentences"
    """
    import mlflow

    from pomlflow.tracking.stores import redacted
    from pomlflow.tracking.versions import register as publish

    files = prompts_in(paths)
    if name is not None and len(files) > 1:
        raise click.UsageError(f"--name is for one prompt, and there are {len(files)}")
    readable = [template for file in files if (template := open_template(file, name)) is not None]
    templates = _without_parts(readable, {*map(os.path.abspath, paths)})
    counts = {"failed": len(files) - len(readable)} if len(files) > len(readable) else {}
    click.echo(f"registry: {redacted(mlflow.get_registry_uri())}", err=True)
    for template in progress(templates, "registering"):
        record = template.check()
        if record.error is not None:
            state, shown_name = "failed", str(template.name)
            show_problems(str(template.path), record.error)
        else:
            done = publish(template, record=record, alias=alias, message=message, dry_run=dry_run)
            number = None if done.version is None else int(done.version.version)
            state = _state(done.name, number, is_new=done.is_new)
            shown_name = done.name if number is None else f"{done.name}/{number}"
        counts[state] = counts.get(state, 0) + 1
        click.echo(f"{state:<9}  {shown_name}  {shown_path(str(template.path))}")
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    click.echo(f"{summary}{' (nothing was written)' if dry_run else ''}", err=True)
    ctx.exit(1 if counts.get("failed") else 0)


def _without_parts(templates: list[Template], named: set[str]) -> list[Template]:
    """Return the templates that no other template includes, and those named on the command line."""
    parts = {file for template in templates for file in template.inference.includes}
    return [one for one in templates if one.path not in parts or str(one.path) in named]


def _state(name: str, number: int | None, *, is_new: bool) -> str:
    if not is_new:
        return "unchanged"
    from mlflow import MlflowClient

    first = MlflowClient().get_prompt(name) is None if number is None else number == 1
    return "new" if first else "changed"


@click.command()
@click.argument("file", type=FILE)
@click.argument("uri", required=False, metavar="[prompts:/NAME@ALIAS]")
@name_option
@mlflow_options
@click.pass_context
def diff(ctx: click.Context, file: str, uri: str | None, name: str | None) -> None:
    """Compare a prompt, and the files that it reads, with a version in the registry.

    The default is the newest version under the prompt's name. The exit code is 1 if they differ.

    \b
    pomlflow diff prompts/support.poml
    pomlflow diff prompts/support.poml prompts:/support@production
    """
    from pomlflow.tracking.load import load

    template = template_from_argument(file, name=name)
    if uri is None and template.name is None:
        raise click.UsageError("give --name, or the version: prompts:/name@alias or prompts:/name/3")
    content = load(uri or f"prompts:/{template.name}@latest", timeout=load_timeout())
    if content.digest == template.digest:
        click.echo(f"{file} is identical to {content.uri}", err=True)
        return
    for line in (*text_diff(content.source, template.source, content.uri, file), *_changed_files(content, template)):
        click.echo(line)
    ctx.exit(1)


def _changed_files(content: PromptContent, template: Template) -> Iterator[str]:
    then = {one.path: one for one in content.bundle.files}
    now = {one.path: one for one in template.current().files}
    for path in dict.fromkeys((*then, *now)):
        before, after = then.get(path), now.get(path)
        if before is None or after is None:
            yield f"{path}: {'removed' if after is None else 'added'}"
        elif before.sha256 != after.sha256:
            try:
                texts = (before.content or b"").decode(), (read_file(after.location) or b"").decode()
            except UnicodeDecodeError:
                yield f"{path}: changed"  # not text, such as a picture
            else:
                yield from text_diff(*texts, f"{content.uri} {path}", path)


@click.command()
@click.argument("uri", metavar="prompts:/NAME@ALIAS")
@click.option("-o", "--output", metavar="FOLDER", default=".", help="The folder to write to; - prints the markup.")
@click.option("--force", is_flag=True, help="Overwrite files that differ.")
@mlflow_options
def pull(uri: str, output: str, force: bool) -> None:
    """Download a version from the registry.

    The markup is written to NAME.poml, and the files that it reads to their paths relative to it.

    \b
    pomlflow pull prompts:/support@production -o prompts/
    pomlflow pull prompts:/support/3 -o - | pomlflow render - -c question=Why?
    """
    from pomlflow.tracking.load import load

    content = load(uri, timeout=load_timeout())
    if output == "-":
        click.echo(content.source, nl=False)
        return
    files = _files_of(content, Path(output))
    kept = [file for file, data in files.items() if file.exists() and read_file(file) != data]
    if kept and not force:
        names = ", ".join(shown_path(str(file)) for file in kept)
        raise click.UsageError(f"{names}: different from {content.uri}; use --force to overwrite")
    for file, data in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        click.echo(shown_path(str(file)))
    for path, why in content.bundle.omitted.items():
        click.echo(f"{path} is not stored with the version: {why}", err=True)


def _files_of(content: PromptContent, folder: Path) -> dict[Path, bytes]:
    """Return the contents by path; the markup is in a subfolder if its files' paths begin with ``..``."""
    home = content.bundle.folder
    files = {f"{content.version.name}.poml": content.source.encode()} | content.bundle.contents
    return {folder / posixpath.normpath(posixpath.join(home, path)): data for path, data in files.items()}


@click.command()
@click.argument("trace_ids", nargs=-1, required=True, metavar="TRACE_ID...")
@click.option("--with", "template", type=click.Path(), help="Render this edited file with the values of the traces.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a list for several traces.")
@mlflow_options
@click.pass_context
def replay(ctx: click.Context, trace_ids: tuple[str, ...], template: str | None, as_json: bool) -> None:
    """Render the prompts of traces again and compare.

    Shows the differences, and the files and versions that have changed. The templates in the traces are executed. Run
    the command in the prompt root, or set POMLFLOW_PROMPT_ROOT, so that it finds the files that the templates read.

    \b
    pomlflow replay tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0 --with support.poml
    pomlflow replay tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0 --tracking-uri http://127.0.0.1:5000 --json
    """
    if template == "-":
        raise click.UsageError("--with takes a file, not standard input")
    from pomlflow.tracking.replay import replay as replayed

    results = []
    for trace_id in progress(trace_ids, "replaying"):
        results.append(replayed(trace_id, template))
        if not as_json:
            click.echo(str(results[-1]))
    if as_json:
        shown = [_plain(result) for result in results]
        show_json(shown if len(shown) > 1 else shown[0])
    ctx.exit(0 if all(result.identical for result in results) else 1)


def _plain(result: Replay) -> dict[str, Any]:
    renders = [dataclasses.asdict(dataclasses.replace(render, record=None)) for render in result.renders]
    for render in renders:
        del render["record"]
    return {"trace_id": result.trace_id, "identical": result.identical, "renders": renders}

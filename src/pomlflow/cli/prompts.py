"""``pomlflow render`` and ``pomlflow vars``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pomlflow.cli.options import FILE, template_of, values_of, with_values

if TYPE_CHECKING:
    from pomlflow.frame.formats import Format

__all__ = ["render", "variables"]


@click.command()
@click.argument("file", type=FILE)
@with_values
@click.option("--stylesheet", type=FILE, metavar="JSON_FILE", help="A POML stylesheet beside the prompt's own.")
@click.option("--text", is_flag=True, help="Give one text instead of messages.")
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
    """Render a prompt, and show its messages as a chat.

    \b
    pomlflow render support.poml -c question="Where is my parcel?" -c orders:='[{"id": 7}]'
    pomlflow render support.poml --context-file case.json --format openai_chat
    pomlflow render prompts:/support@production -c question=Why?
    echo '<p>Hello {{name}}</p>' | pomlflow render - -c name=Ada
    """
    from pomlflow.cli.checking import show_problems
    from pomlflow.cli.output import show_chat, show_json
    from pomlflow.frame.formats import converted

    record = template_of(file, stylesheet=stylesheet, chat=not text).render(values_of(files, given))
    if record.error is not None:
        show_problems(file, record.error)
        ctx.exit(1)
    if as_json or kind is not None:
        show_json(converted(record, kind or "dict"))
    else:
        show_chat(record.result())


@click.command("vars")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def variables(file: str, as_json: bool) -> None:
    """Show a prompt's variables, and the files that it reads.

    \b
    pomlflow vars support.poml
    pomlflow vars support.poml --json
    """
    from pomlflow.cli.output import show_json

    now = template_of(file).current()
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

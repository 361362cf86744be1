"""``pomlflow replay``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from pomlflow.cli.options import connect, mlflow_options

__all__ = ["replay"]


@click.command()
@click.argument("trace_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@mlflow_options
@click.pass_context
def replay(ctx: click.Context, trace_id: str, as_json: bool, tracking_uri: str | None) -> None:
    """Render a trace's prompts once more, and compare.

    It shows what differs, and which files and versions have changed. It runs the templates that the trace holds. Run it
    in the prompt root, or set POMLFLOW_PROMPT_ROOT, so that files that they read are found.

    \b
    pomlflow replay tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0
    pomlflow replay tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0 --tracking-uri http://127.0.0.1:5000 --json
    """
    connect(tracking_uri)
    from pomlflow.cli.output import show_json
    from pomlflow.tracking.replay import replay as replayed

    result = replayed(trace_id)
    if as_json:
        renders = [_plain(render) for render in result.renders]
        show_json({"trace_id": trace_id, "identical": result.identical, "renders": renders})
    else:
        click.echo(str(result))
    ctx.exit(0 if result.identical else 1)


def _plain(render: Any) -> dict[str, Any]:
    kept = {field.name: getattr(render, field.name) for field in dataclasses.fields(render) if field.name != "record"}
    return {**kept, "differences": [dataclasses.asdict(one) for one in render.differences]}

"""Renders by the engine alone, without a template: nothing is inferred or checked before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pomlflow import engine


def request(
    markup: str,
    variables: Mapping[str, Any],
    *,
    path: str | None = None,
    stylesheet: Mapping[str, Any] | None = None,
    chat: bool = True,
) -> engine.Request:
    return engine.Request(markup, *engine.encode(variables), stylesheet, path, path, chat=chat)


def render(markup: str, variables: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    return engine.run(request(markup, variables, **options)).output


async def arender(markup: str, variables: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    return (await engine.arun(request(markup, variables, **options))).output

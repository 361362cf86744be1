r"""The whitespace of a variable's text, through POML, as it is.

POML (0.0.8) collapses newlines and runs of blanks in ``<p>{{context_str}}</p>``, the code and the tables of a retrieved
text among them; LlamaIndex's own prompts keep them. So the whitespace that POML would collapse goes through it as
Unicode's noncharacters, which mean nothing to POML, and is put back in what comes out. A replay does the same.

That is done for a text whose every use is ``{{name}}`` alone, in the text of an element or in an ``if``. Where an
expression computes with it (``{{name.trim()}}``), where it is an attribute's value or part of a schema, or where the
markup writes JSON, YAML or tables, whose own syntax newlines would break, POML does as it always does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from pomlflow.record import JsonObject, RenderRecord
from pomlflow.template import Snapshot

__all__ = ["protect", "restore"]

# What POML collapses or strips, with a noncharacter that goes through it instead; no text that is meant for others
# holds one. A single blank between words stays as it is.
_SIGNS = {"\n": "\ufdd0", "\r": "\ufdd1", "\t": "\ufdd2", "  ": "\ufdd3", " ": "\ufdd4"}

_ASIDE = re.compile(
    r"<!--.*?-->|<(output-?schema|tool-definition|tool-?def|tool|runtime|let|stylesheet|context|meta)\b.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"""<[/\w](?:[^<>"']|"[^"]*"|'[^']*')*>""")
_STRUCTURE = re.compile(
    r"""\bsyntax["']?\s*[=:]\s*["'](?!markdown|text|multimedia|xml|html)|(?:char|token)Limit|\bparser\s*="""
    r"""|<(?:obj|object|table|tr|td|th)\b""",
    re.IGNORECASE,
)


def protect(
    variables: Mapping[str, Any], snapshot: Snapshot, stylesheet: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Hide whitespace from POML where it stands in a text that the markup only shows.

    Args:
        variables: The variables.
        snapshot: The template that is to be rendered.
        stylesheet: The stylesheet beside its own.

    Returns:
        The variables, and the whitespace that was replaced in them.
    """
    names = _shown(snapshot, json.dumps(stylesheet, default=str) if stylesheet else "")
    texts = {name: text for name in names if isinstance(text := variables.get(name), str)}
    hidden = {name: _hidden(text) for name, text in texts.items()}
    used = tuple(space for space, sign in _SIGNS.items() if any(sign in text for text in hidden.values()))
    foreign = any(sign in text for text in variables.values() if isinstance(text, str) for sign in _SIGNS.values())
    return ({**variables, **hidden}, used) if used and not foreign else (variables, ())


def _hidden(text: str) -> str:
    for space in ("\n", "\r", "\t", "  "):
        text = text.replace(space, _SIGNS[space])
    if text.startswith(" "):
        text = _SIGNS[" "] + text[1:]
    return text[:-1] + _SIGNS[" "] if text.endswith(" ") else text


def restore(record: RenderRecord, used: tuple[str, ...]) -> RenderRecord:
    """Put the whitespace back, in the variables and in what came out.

    Args:
        record: The render.
        used: The whitespace that was replaced.

    Returns:
        The record as if POML had kept it.
    """
    if not used:
        return record
    back = [(_SIGNS[space], space) for space in used]
    text = cast("JsonObject", record.variables)._text
    for sign, space in back:
        text = text.replace(sign.encode(), json.dumps(space)[1:-1].encode())
    output = record.output and {**record.output, "messages": _restored(record.output["messages"], back)}
    return replace(record, variables=JsonObject(text), output=output, spaced=True)


def _restored(value: Any, back: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for sign, space in back:
            value = value.replace(sign, space)
        return value
    if isinstance(value, list):
        return [_restored(item, back) for item in value]
    if isinstance(value, Mapping):
        return {key: item if key == "base64" else _restored(item, back) for key, item in value.items()}
    return value


def _shown(snapshot: Snapshot, stylesheet: str) -> tuple[str, ...]:
    found = snapshot.inference
    return _names(snapshot.digest, snapshot.source, stylesheet, found.includes, found.expressions)


@lru_cache(maxsize=256)
def _names(
    digest: str, source: str, stylesheet: str, includes: tuple[Path, ...], expressions: tuple[str, ...]
) -> tuple[str, ...]:
    """Which variables are texts that the markup only shows; the digest stands for what the includes hold."""
    del digest
    markup = "\n".join([source, *map(_read, includes)])
    if _STRUCTURE.search(markup) or _STRUCTURE.search(stylesheet):
        return ()
    everywhere = re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL)
    in_text = _TAG.sub(" ", _ASIDE.sub(" ", markup))
    names = {name.strip() for name in expressions if name.strip().isidentifier()}
    return tuple(
        name
        for name in sorted(names)
        if len(_braced(name).findall(everywhere)) == len(_braced(name).findall(in_text)) > 0
        and all(expression.strip() == name for expression in expressions if re.search(rf"\b{name}\b", expression))
    )


def _braced(name: str) -> re.Pattern[str]:
    return re.compile(r"\{\{\s*" + name + r"\s*\}\}(?!\})")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""

"""The attributes of POML's elements, from the component documentation in the bundle of the installed poml."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pomlflow.engine.installation import package_folder
from pomlflow.template.markup import TOOLS

_START, _END = b'"./packages/poml/assets/componentDocs.json":', b"sourceMappingURL=data:"
_DOCS = re.compile(r"JSON\.parse\('(\[.*?\])'\)")
_ESCAPED = re.compile(r"\\([\\'])")
_REGISTERED = re.compile(r"\(0, base_1\.component\)\('(\w+)'(?:, (\[[^\]]*\]|\{[^}]*\}))?\)")
_ALIAS = re.compile(r"'([\w-]+)'")
_SHARED = ("Text", "Paragraph", "Inline")  # components pass attributes that they do not know on to these
# Undocumented elements, which PomlFile handles itself. <runtime> is missing: it accepts any attribute.
_SYNTAX = {
    "include": ("src",), "let": ("name", "src", "type", "value"), "meta": ("minVersion", "maxVersion", "components"),
    "outputschema": ("parser",),
    **dict.fromkeys(TOOLS, ("name", "description", "parser")),
}  # fmt: skip


@lru_cache(maxsize=1)
def attributes() -> Mapping[str, Mapping[str, str]]:
    """Return the spelling of each attribute of each element, both by their names in lower case without hyphens."""
    found: dict[str, Mapping[str, str]] = {name: {key.lower(): key for key in keys} for name, keys in _SYNTAX.items()}
    text = _components_text()
    documented = {one["name"]: one for docs in _DOCS.findall(text) for one in json.loads(_ESCAPED.sub(r"\1", docs))}
    for name, rest in _REGISTERED.findall(text):
        if name in documented:
            aliases = (name, *_ALIAS.findall(rest.partition("requiredProps")[0]))
            found |= dict.fromkeys((alias.replace("-", "").lower() for alias in aliases), _of(name, documented))
    return found


def _components_text() -> str:
    """Return POML's own part of the bundle: from the documentation to the end of the code."""
    folder = package_folder("poml")
    if folder is None:
        return ""
    with (folder / "js" / "cli.js").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_START)
        return content[start : content.find(_END, start)].decode(errors="replace") if start >= 0 else ""


def _of(name: str, documented: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the attributes of a component and of the components that it extends."""
    pending, seen = [name, *_SHARED], set[str]()
    found: dict[str, str] = {}
    while pending:
        one = documented.get(pending.pop())
        if one is not None and one["name"] not in seen:
            seen.add(one["name"])
            pending += one["baseComponents"]
            found |= {parameter["name"].lower(): parameter["name"] for parameter in one["params"]}
            if "captionstyle" in found:  # <input> and others pass it on, undocumented
                pending.append("CaptionedParagraph")
    return found

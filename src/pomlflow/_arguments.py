"""Errors for unknown arguments: removed in this version, borrowed from other libraries' templates, or misspelled."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Final

from pomlflow.exceptions import ConfigurationError

_REMOVED: Final = {
    "cached_results": "keep results yourself, for example with functools.lru_cache",
    "exact_openai_chat": 'poml.poml(…, format="openai_chat") returns what poml returns, also under pomlflow.autolog()',
    "register_prompts": "use register=",
}
_FOREIGN: Final = {
    "template_file": "use PomlPromptTemplate.from_file(path)",
    "speaker_mode": "use chat=True for messages and chat=False for one text",
    "messages": "write the messages in the markup, as <system-msg>, <human-msg> and <ai-msg>",
    "message_templates": "write the messages in the markup, as <system-msg>, <human-msg> and <ai-msg>",
    "template_format": "POML is the only format, in which a variable is written {{name}}",
}


def refuse_arguments(
    unknown: Iterable[str],
    owner: str = "",
    known: Iterable[str] = (),
    spell: Callable[[str], str] = str,
    remedy: str = "",
) -> None:
    """Raise a `ConfigurationError` for an argument that was removed, or a TypeError for one that never existed.

    The error names `owner`, and suggests the nearest of `known`, or else ends with `remedy`, whose ``{}`` is the
    argument. `spell` returns a name as the error shows it, for example that of an environment variable.
    """
    for name in sorted(unknown):
        if name in _REMOVED:
            raise ConfigurationError(f"{spell(name)} was removed in pomlflow 0.2: {_REMOVED[name]}")
        near = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {near[0]!r}?" if near else remedy.format(name)
        raise TypeError(f"{f'{owner} ' if owner else ''}got an unexpected keyword argument {name!r}{meant}")


def refuse_foreign(given: Iterable[str], owner: str) -> None:
    """Raise a `ConfigurationError` that names the replacement of an argument of another library's template."""
    for name in sorted(given):
        if name in _FOREIGN:
            raise ConfigurationError(f"{owner} has no argument {name}=: {_FOREIGN[name]}")

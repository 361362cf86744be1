"""Warnings about templates that render, but probably not as intended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomlflow.exceptions import ConfigurationError, Problem
from pomlflow.template import attribute_rules, text_rules
from pomlflow.template.markup import Document, parse
from pomlflow.template.names import tool_settings
from pomlflow.template.source import Page, Snapshot

_RULES = (
    text_rules.single_braces,
    text_rules.unclosed_braces,
    text_rules.jinja_syntax,
    text_rules.python_expression,
    text_rules.dropped_text,
    attribute_rules.unknown_attribute,
    attribute_rules.unknown_setting,
    attribute_rules.invalid_schema,
    attribute_rules.media_as_text,
    attribute_rules.missing_file,
    text_rules.let_value,
    text_rules.unused_variable,
    text_rules.shadowed_variable,
)
RULES = {rule.__name__.replace("_", "-"): rule for rule in _RULES}
"""Every rule by its name; each yields the faults of one page of markup."""

# The rules whose findings may repeat an error of the render.
_MAY_REPEAT_ERRORS = frozenset({"python-expression", "jinja-syntax", "let-value", "missing-file", "invalid-schema"})


class Finding(Problem):
    """A warning: the template renders, but probably not as intended.

    Attributes:
        message: What is wrong.
        remedy: What to write instead.
        file: The file with the problem, which may be an included one; None for inline markup.
        line: The line, from 1.
        column: The column, from 1, in characters.

    Example:
        >>> str(Finding("{x} is sent as it is", "single-braces", "a.poml", 1, 4, remedy="write {{x}}"))
        'a.poml:1:4: {x} is sent as it is: write {{x}} [single-braces]'
    """

    @property
    def rule(self) -> str:
        """The name of the rule, ``unknown-attribute`` for example. Each is described in docs/check.md."""
        return self.kind

    def __str__(self) -> str:
        return f"{self.place}: {self.message}: {self.remedy} [{self.rule}]"


@dataclass(frozen=True)
class LintSettings:
    """Which rules apply, and whether warnings are failures."""

    select: frozenset[str] = frozenset(RULES)
    ignore: frozenset[str] = frozenset()
    strict: bool = False


def lint_settings(folder: Path) -> LintSettings:
    """Read ``select``, ``ignore`` and ``strict`` under ``[tool.pomlflow]`` of the nearest pyproject.toml."""
    file, values = tool_settings(folder)
    found: dict[str, frozenset[str]] = {}
    for key in ("select", "ignore"):
        names = values.get(key)
        if names is None:
            continue
        if not isinstance(names, list) or (unknown := [name for name in names if name not in list(RULES)]):
            what = f"has no rule {unknown[0]!r}" if isinstance(names, list) else "must be a list of rules"
            raise ConfigurationError(f"{file}: {key} under [tool.pomlflow] {what}; the rules are {', '.join(RULES)}")
        found[key] = frozenset(names)
    strict = values.get("strict", False)
    if not isinstance(strict, bool):
        raise ConfigurationError(f"{file}: strict under [tool.pomlflow] must be true or false, got {strict!r}")
    return LintSettings(**found, strict=strict)


def lint(
    snapshot: Snapshot,
    settings: LintSettings,
    stylesheet: Mapping[str, Any] | None = None,
    errors: Iterable[Problem] = (),
) -> list[Finding]:
    """Return the findings in a template and the files that it includes, in reading order.

    Findings that repeat one of `errors`, the problems of a render, are left out.
    """
    rules = [name for name in RULES if name in settings.select and name not in settings.ignore]
    found: list[Finding] = []
    for page in _pages(snapshot, stylesheet):
        source, ignored = page.document.source, _ignored_lines(page.document)
        file = snapshot.file_of(source)
        reported = [(one.line, one.column or 1, one.width) for one in errors if one.file == file]
        in_page: dict[Finding, None] = {}  # without duplicates
        for name in rules:
            for fault in RULES[name](page):
                line, column, text = source.locate(fault.offset)
                is_reported = any(line == at and start <= column < start + width for at, start, width in reported)
                if not (is_reported and name in _MAY_REPEAT_ERRORS) and name not in ignored.get(line, ()):
                    finding = Finding(fault.message, name, file, line, column, text, fault.width, fault.remedy)
                    in_page[finding] = None
        found += sorted(in_page, key=lambda one: (one.line or 0, one.column or 0))
    return found


def _pages(snapshot: Snapshot, stylesheet: Mapping[str, Any] | None) -> Iterator[Page]:
    for source in snapshot.inference.sources:
        if source.file is None or source.file.suffix == ".poml":
            yield Page(parse(*source), snapshot, stylesheet)


def _ignored_lines(document: Document) -> dict[int, set[str]]:
    """Return the rules to ignore by line, from comments ``<!-- pomlflow: ignore rule -->``.

    A comment applies to its own line and the next one, and to all rules if it names none.
    """
    found: dict[int, set[str]] = {}
    for comment in document.comments:
        words = comment.text.replace(",", " ").replace(":", ": ").split()
        if words[:2] == ["pomlflow:", "ignore"]:
            line = document.source.locate(comment.at(len(comment.text)))[0]
            for ignored in (line, line + 1):
                found.setdefault(ignored, set()).update(words[2:] or RULES)
    return found

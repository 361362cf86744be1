"""Warnings about templates that render, but probably not as intended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomlflow.engine.file_access import decode, read_file
from pomlflow.exceptions import ConfigurationError, Problem
from pomlflow.template import attribute_rules, text_rules, variable_rules
from pomlflow.template.markup import SourceText, parse_document
from pomlflow.template.names import tool_settings
from pomlflow.template.page import Page, Rule
from pomlflow.template.source import Snapshot

RULES: Mapping[str, Rule] = {**text_rules.RULES, **attribute_rules.RULES, **variable_rules.RULES}
"""Every rule by its name; each yields the faults of one page of markup."""

# The rules whose findings may repeat an error of the render.
_REPEATED = frozenset(
    {"python-expression", "jinja-syntax", "let-value", "missing-file", "poml-version", "invalid-schema"}
)
_IGNORED = re.compile(r"<!--\s*pomlflow:\s*ignore\b(?P<rules>[^>]*?)-->")


@dataclass(frozen=True)
class Finding:
    """A warning: the template renders, but probably not as intended.

    Attributes:
        rule: The name of the rule, ``unknown-attribute`` for example. Each is described in docs/check.md.
        message: What is wrong.
        remedy: What to write instead.
        file: The file with the problem, which may be an included one; None for inline markup.
        line: The line, from 1.
        column: The column, from 1, in characters.
        text: The text of that line.
        width: The number of characters from that column that the warning is about.

    Example:
        >>> str(Finding("single-braces", "{x} is sent as it is", "write {{x}}", "a.poml", 1, 4, "<p>{x}</p>", 3))
        'a.poml:1:4: {x} is sent as it is: write {{x}} [single-braces]'
    """

    rule: str
    message: str
    remedy: str
    file: str | None
    line: int
    column: int
    text: str
    width: int = 1

    @property
    def place(self) -> str:
        """The place, ``file:line:column``."""
        return f"{self.file or '<inline>'}:{self.line}:{self.column}"

    def __str__(self) -> str:
        return f"{self.place}: {self.message}: {self.remedy} [{self.rule}]"


@dataclass(frozen=True)
class LintSettings:
    """Which rules apply, and whether warnings are failures."""

    select: frozenset[str] = frozenset(RULES)
    ignore: frozenset[str] = frozenset()
    strict: bool = False


def lint_settings(folder: Path | None) -> LintSettings:
    """Read ``select``, ``ignore`` and ``strict`` under ``[tool.pomlflow]`` of the nearest pyproject.toml."""
    file, values = tool_settings(folder) if folder is not None else (None, {})
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
    reported = [problem for problem in errors if problem.line is not None]
    rules = [name for name in RULES if name in settings.select and name not in settings.ignore]
    found: dict[Finding, None] = {}
    for page, file in _pages(snapshot, stylesheet):
        ignored = _ignored_lines(page.text)
        for name in rules:
            for fault in RULES[name](page):
                line, column, text = page.source.locate(fault.offset)
                if name not in ignored.get(line, ()):
                    found[Finding(name, fault.message, fault.remedy, file, line, column, text, fault.width)] = None
    order = {file: index for index, file in enumerate(dict.fromkeys(one.file for one in found))}
    found = {one: None for one in found if not any(_is_about(problem, one) for problem in reported)}
    return sorted(found, key=lambda one: (order[one.file], one.line, one.column))


def _is_about(problem: Problem, finding: Finding) -> bool:
    """Return whether a finding repeats an error."""
    if finding.rule not in _REPEATED:
        return False
    start = problem.column or 1
    same_line = (problem.file, problem.line) == (finding.file, finding.line)
    return same_line and start <= finding.column < start + problem.width


def _pages(snapshot: Snapshot, stylesheet: Mapping[str, Any] | None) -> Iterator[tuple[Page, str | None]]:
    sources = [(SourceText(snapshot.source), snapshot.folder, snapshot.label)]
    for file in snapshot.inference.includes:
        content = read_file(file)
        if content is not None and file.suffix == ".poml":
            sources.append((SourceText(decode(content, str(file))[0], file), file.parent, str(file)))
    for source, folder, label in sources:
        yield Page(source, parse_document(source.text), folder, snapshot, stylesheet), label


def _ignored_lines(text: str) -> dict[int, set[str]]:
    """Return the rules to ignore by line, from comments ``<!-- pomlflow: ignore rule -->``.

    A comment applies to its own line and the next one, and to all rules if it names none.
    """
    found: dict[int, set[str]] = {}
    for comment in _IGNORED.finditer(text):
        line = text.count("\n", 0, comment.end()) + 1
        rules = re.findall(r"[\w-]*\w", comment["rules"])
        for ignored in (line, line + 1):
            found.setdefault(ignored, set()).update(rules or RULES)
    return found

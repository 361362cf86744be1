"""The whitespace of retrieved text: kept where the markup shows it, collapsed by POML elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate

import pomlflow.template
from pomlflow.llama_index import PomlPromptTemplate

TEXT = "def f(r):\n    if r < 0:\n\traise  X {a} {{b}} & <p>\r\n\n\n| a | b |\u00a0 \u2003end "
COLLAPSED = "def f(r): if r < 0: raise X {a} {{b}} & <p> | a | b |\u00a0 \u2003end"


def shown(markup: str, **options) -> str:
    messages = PomlPromptTemplate(markup, **options).format_messages(context_str=TEXT, query_str="why?")
    return "\n".join(message.content for message in messages)


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("Context:\n\n{{ context_str }}\n\nQuery: {{query_str}}", "Context:\n\n{}\n\nQuery: why?"),
        ("<p>{{context_str}}</p>", "{}"),
        ("<task>Use {{context_str}}</task><hint>{{query_str}}</hint>", "# Task\n\nUse {}\n\n**Hint:** why?"),
        ("<system-msg><p>Use <b>{{context_str}}</b></p></system-msg>", "Use **{}**"),
        ('<text whiteSpace="pre">{{context_str}}</text>', "{}"),
        ("<!-- {{context_str}} --><p>{{context_str}}</p>", "{}"),
        ('<p>He said "a > b": {{context_str}}</p>', 'He said "a > b": {}'),
        ('<img alt="a dot" src="missing.png" if="!query_str"/><p>{{context_str}}</p>', "{}"),
        ('<poml syntax="xml"><p>{{context_str}}</p></poml>', "{}"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_whitespace_of_a_text_that_is_only_shown_is_kept(markup: str, expected: str) -> None:
    """As PromptTemplate and RichPromptTemplate keep it; engine/test_whitespace.py has the other forms."""
    value = TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") if "xml" in markup else TEXT
    assert shown(markup) == expected.replace("{}", value)


@pytest.mark.parametrize(
    "markup",
    [
        '<cp caption="{{context_str}}">{{query_str}}</cp>',
        '<let name="x">{"a": 1}</let><p for="i in [context_str]">{{i}}</p>',
    ],
)
def test_elsewhere_poml_collapses_whitespace(markup: str) -> None:
    """Where an expression computes with the text, or newlines would break the output, POML's own output is kept."""
    ours = PomlPromptTemplate(markup).format_messages(context_str=TEXT, query_str="why?")
    record = pomlflow.template.Template(markup).render({"context_str": TEXT, "query_str": "why?"})
    assert [message.content for message in ours] == [message["content"] for message in record.result()["messages"]]


def test_an_additional_stylesheet_decides_as_well() -> None:
    """A stylesheet with JSON output leaves the JSON valid."""
    assert COLLAPSED.partition(" & ")[0] in shown(
        '<cp caption="a">{{context_str}}</cp>', stylesheet={"cp": {"syntax": "json"}}
    )


def test_each_place_keeps_or_collapses_by_itself() -> None:
    """The same text may be shown, computed with and be an attribute's value."""
    assert shown("<p>{{context_str}}</p><p>{{context_str.trim()}}</p>") == f"{TEXT}\n\n{COLLAPSED}"
    assert shown('<cp caption="{{context_str.length}}">{{context_str}}</cp>') == f"# {len(TEXT)}\n\n{TEXT}"


def test_included_files_are_treated_alike(tmp_path: Path) -> None:
    """A variable that an included file shows keeps its whitespace; the result of an expression does not."""
    (tmp_path / "shows.poml").write_text("<p>{{context_str}}</p>")
    (tmp_path / "trims.poml").write_text("<p>{{context_str.trim()}}</p>")
    assert shown('<include src="shows.poml"/><p>{{query_str}}</p>', base_dir=tmp_path) == f"{TEXT}\n\nwhy?"
    assert shown('<include src="trims.poml"/><p>{{context_str}}</p>', base_dir=tmp_path) == f"{COLLAPSED}\n\n{TEXT}"


def test_the_record_holds_the_text_unchanged(renders) -> None:
    """Variables and messages of the render, and what failed renders were given."""
    shown("<p>{{context_str}}</p><tool-response id='1' name='x'>{{query_str}}</tool-response>")
    record = renders[0].record
    assert dict(record.variables) == {"context_str": TEXT, "query_str": "why?"}
    assert record.output["messages"][0]["content"] == TEXT
    assert record.kept_whitespace
    with pytest.raises(KeyError):
        PomlPromptTemplate("<p>{{context_str}} {{other}}</p>").format(context_str=TEXT)
    assert dict(renders[1].record.variables) == {"context_str": TEXT}


def test_a_history_next_to_the_text_is_unchanged() -> None:
    """Native messages are placed as ever."""
    prompt = PomlPromptTemplate('<conversation messages="{{h}}"/><human-msg>{{x}}</human-msg>')
    history = [ChatMessage(role="user", content="a\n  b")]
    assert [m.content for m in prompt.format_messages(h=history, x="c\n  d")] == ["a\n  b", "c\n  d"]


def test_a_list_of_texts_for_the_context_is_their_text() -> None:
    """SimpleSummarize of llama-index-core passes its text in a list, which PromptTemplate shows as a list."""
    prompt = PomlPromptTemplate("<p>{{context_str}}</p>")
    assert prompt.format(context_str=["a\n b", "c"]) == "a\n b\n\nc"
    assert PromptTemplate("{context_str}").format(context_str=["a"]) == "['a']"
    assert PomlPromptTemplate("<p>{{x}}</p>").format(x=["a", "b"]) == '["a","b"]'

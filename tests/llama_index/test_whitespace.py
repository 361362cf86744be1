"""The whitespace of retrieved text: kept where the markup shows it, collapsed by POML elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate

import pomlflow.template
from pomlflow.exceptions import RenderError
from pomlflow.llama_index import PomlPromptTemplate

TEXT = "def f(r):\n    if r < 0:\n\traise  X {a} {{b}} & <p>\r\n\n\n| a | b |\u00a0 \u2003end "
COLLAPSED = "def f(r): if r < 0: raise X {a} {{b}} & <p> | a | b |\u00a0 \u2003end"


def shown(markup: str, **options) -> str:
    messages = PomlPromptTemplate(markup, **options).format_messages(context_str=TEXT, query_str="why?")
    return "\n".join(message.content for message in messages)


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("{{context_str}}", "{}"),
        ("Context:\n\n{{ context_str }}\n\nQuery: {{query_str}}", "Context:\n\n{}\n\nQuery: why?"),
        ("<p>{{context_str}}</p>", "{}"),
        ("<poml>Context: {{context_str}} Query: {{query_str}}</poml>", "Context: {} Query: why?"),
        ("<poml>\n  <p>\n    {{context_str}}\n  </p>\n</poml>", "{}"),
        ('<cp caption="Context">{{context_str}}</cp>', "# Context\n\n{}"),
        ("<task>Use {{context_str}}</task><hint>{{query_str}}</hint>", "# Task\n\nUse {}\n\n**Hint:** why?"),
        ("<human-msg>{{context_str}}</human-msg><ai-msg>{{query_str}}</ai-msg>", "{}\nwhy?"),
        ("<system-msg><p>Use <b>{{context_str}}</b></p></system-msg>", "Use **{}**"),
        ('<p whiteSpace="pre">{{context_str}}</p>', "{}"),
        ('<text whiteSpace="pre">{{context_str}}</text>', "{}"),
        ('<p if="context_str">{{context_str}}</p>', "{}"),
        ("<list><item>{{context_str}}</item></list>", "- {}"),
        ('<code inline="false">{{context_str}}</code>', "```\n{}\n```"),
        ("<!-- {{context_str}} --><p>{{context_str}}</p>", "{}"),
        ('<p>He said "a > b": {{context_str}}</p>', 'He said "a > b": {}'),
        ('<output-schema>{"type": "object"}</output-schema><p>{{context_str}}</p>', "{}"),
        ('<img alt="a dot" src="missing.png" if="!query_str"/><p>{{context_str}}</p>', "{}"),
        ('<poml syntax="xml"><p>{{context_str}}</p></poml>', "{}"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_whitespace_of_a_text_that_is_only_shown_is_kept(markup: str, expected: str) -> None:
    """In the usual forms of such a prompt, as PromptTemplate and RichPromptTemplate keep it."""
    value = TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") if "xml" in markup else TEXT
    assert shown(markup) == expected.replace("{}", value)


@pytest.mark.parametrize(
    "markup",
    [
        "<p>{{context_str.trim()}}</p>",
        '<poml syntax="json"><cp caption="a">{{context_str}}</cp></poml>',
        '<poml syntax="yaml"><cp caption="a">{{context_str}}</cp></poml>',
        '<poml><stylesheet>{"cp": {"syntax": "json"}}</stylesheet><cp caption="a">{{context_str}}</cp></poml>',
        '<cp caption="{{context_str}}">{{query_str}}</cp>',
        "<table records='[[1]]'/><p>{{context_str}}</p>",
        '<let name="x">{"a": 1}</let><p for="i in [context_str]">{{i}}</p>',
        '<p charLimit="1000">{{context_str}}</p>',
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


def test_schemas_tools_and_paths_receive_the_text_unchanged(tmp_path: Path, renders) -> None:
    """A schema's JSON with newlines stays JSON, a path with two blanks a path."""
    (tmp_path / "a  b.txt").write_text("noted")
    PomlPromptTemplate('<output-schema>{{schema}}</output-schema><document src="{{path}}"/>', base_dir=tmp_path).format(
        schema='{\n  "type":  "object"\n}', path="a  b.txt"
    )
    output = renders[0].record.output
    assert output["schema"] == {"type": "object"}
    assert output["messages"][0]["content"] == "noted"


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


def test_noncharacters_in_values_survive() -> None:
    """A text that holds the placeholders of whitespace is collapsed by POML."""
    text = "a\ufdd0b\n c\ufdd1"
    assert PomlPromptTemplate("<p>{{x}}</p>").format(x=text) == "a\ufdd0b c\ufdd1"
    other = PomlPromptTemplate("<p>{{x}} {{y}}</p>").format(x=text, y="d\n  e")
    assert other == "a\ufdd0b c\ufdd1 d e"


def test_whitespace_at_the_ends_is_kept() -> None:
    """Also a single one, which POML strips."""
    assert PomlPromptTemplate("<p>{{x}}</p><p>{{y}}</p>").format(x=" a b ", y="  c\n") == " a b \n\n  c\n"
    assert PomlPromptTemplate("<p>{{x}}</p>").format(x="") == ""
    assert PomlPromptTemplate("<p>{{x}}</p>").format(x=" ") == " "


def test_tool_calls_next_to_the_text_are_unchanged() -> None:
    """Their arguments are no text."""
    markup = """<ai-msg><p>{{x}}</p><tool-request id="1" name="f" parameters='{"a": [1, null, "b  c"]}'/></ai-msg>"""
    (message,) = PomlPromptTemplate(markup).format_messages(x="a\n b")
    assert message.content == "a\n b"
    assert message.blocks[1].tool_kwargs == {"a": [1, None, "b  c"]}


def test_a_missing_include_is_pomls_error(tmp_path: Path) -> None:
    with pytest.raises(RenderError):
        shown('<include src="no.poml"/><p>{{context_str}}</p>', base_dir=tmp_path)


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

"""Displays in notebooks: what they show, that they are escaped and bounded, and that reprs are short."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import pomlflow
from pomlflow import engine
from pomlflow.display import result_html, template_html
from pomlflow.langchain import PomlPromptTemplate as LangChainPrompt
from pomlflow.tracking.compare import Difference
from pomlflow.tracking.replay import Replay, ReplayedRender

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = '</pre></div><script>alert(1)</script><img src=x onerror=alert(1)>" & \ud800 ünïcode'
TAGS = {"style", "div", "small", "b", "pre", "span", "img", "details", "summary"}
MARKUP = f"""<poml>
  <system-msg>Be kind.</system-msg>
  <conversation messages="{{{{history}}}}"/>
  <human-msg>{{{{text}}}}<img base64="{PIXEL}" alt="a dot" syntax="multimedia"/></human-msg>
  <tool-definition name="add">z.object({{ a: z.number() }})</tool-definition>
  <output-schema>z.object({{ sum: z.number() }})</output-schema>
  <runtime temperature="0.5"/>
</poml>"""
HUGE = "x" * 1_000_000


class Elements(HTMLParser):
    """The elements of HTML, with the check that each is closed, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag == "img" else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if "style" in self.open else data


def assert_harmless(html: str) -> Elements:
    """No element or attribute is from the content, and the size is bounded."""
    assert len(html.encode()) <= 200_000
    page = Elements(html)
    assert {tag for tag, _ in page.found} <= TAGS
    assert {name for _, attributes in page.found for name in attributes} <= {"class", "src", "alt"}
    assert all((one.get("src") or "data:image/").startswith("data:image/") for _, one in page.found)
    return page


def prompts() -> Iterator[Any]:
    yield LangChainPrompt
    try:
        from pomlflow.llama_index import PomlPromptTemplate
    except ImportError:
        return
    yield PomlPromptTemplate


def results(text: str) -> Iterator[Any]:
    """The result of a render in each framework and without one."""
    markup = MARKUP.replace('<conversation messages="{{history}}"/>', "")
    yield pomlflow.render(markup, {"text": text})
    for prompt in prompts():
        template = prompt.from_template(markup)
        yield template.invoke({"text": text}) if prompt is LangChainPrompt else template.render({"text": text})
    yield LangChainPrompt.from_template("<poml>{{text}}</poml>", chat=False).invoke({"text": text})


def test_a_render_shows_roles_pictures_tools_and_schema() -> None:
    history = [("ai", "Good day")]
    value = LangChainPrompt.from_template(MARKUP, name="greet").invoke({"history": history, "text": "Hi <b>"})
    page = assert_harmless(value._repr_html_() or "")
    assert re.search(r"greet.*system.*Be kind\..*ai.*Good day.*human.*Hi <b>", page.text, re.DOTALL)
    parts = [one["class"] for tag, one in page.found if tag == "div" and "class" in one]
    assert [part and part.split("-")[-1] for part in parts] == ["pomlflow", "system", "ai", "human"]
    pictures = [attributes for tag, attributes in page.found if tag == "img"]
    assert [(one["alt"], (one["src"] or "")[:33]) for one in pictures] == [
        ("a dot", "data:image/png;base64,iVBORw0KGgo")
    ]
    assert [tag for tag, _ in page.found].count("details") == 3
    assert re.search(r"1 tool: add.*output schema.*sum.*settings.*0\.5", page.text, re.DOTALL)


def test_each_kind_of_result_shows_its_text_escaped() -> None:
    found = list(results(HOSTILE))
    for result in found:
        page = assert_harmless(result._repr_html_())
        assert "<script>alert(1)</script>" in page.text
    assert len(found) == 2 + len(list(prompts()))


@pytest.mark.parametrize("place", ["speaker", "type", "alt", "base64", "name", "content", "tool", "key", "title"])
def test_hostile_data_stays_text_in_every_place(place: str) -> None:
    given = {"speaker": "ai", "type": "image/png", "alt": "", "base64": PIXEL, "name": "f", "content": "", "tool": "t"}
    given |= {"key": "k", "title": "T", place: HOSTILE}
    media = {key: given[key] for key in ("type", "base64", "alt")}
    call = {"type": "application/vnd.poml.toolrequest", "id": "1", "name": given["name"], "content": given["content"]}
    answer = {**call, "type": "application/vnd.poml.toolresponse", "content": [given["content"], media]}
    output = {
        "messages": [{"speaker": given["speaker"], "content": [given["content"], media, call, answer]}],
        "tools": [{"name": given["tool"]}],
        "runtime": {given["key"]: 1},
    }
    assert_harmless(result_html(output, given["title"]))
    assert_harmless(template_html(given["title"], {given["key"]: [given["name"]]}, given["content"]))


@pytest.mark.parametrize(
    "output",
    [
        {"messages": [{"speaker": "human", "content": "&" * 50_000}] * 40},
        {"messages": [{"speaker": "human", "content": "ü"}] * 20_000},
        {"messages": [{"speaker": "human", "content": ["&"] * 100_000}]},
        {"messages": HUGE},
        {"messages": [], "tools": [{"name": HUGE}] * 3, "schema": {"a": HUGE}, "runtime": {"a": HUGE}},
        {"messages": [{"speaker": HUGE, "content": [{"type": "image/png", "base64": PIXEL, "alt": HUGE}]}]},
    ],
    ids=["long", "many", "parts", "text", "folded", "names"],
)
def test_a_display_is_bounded_and_counts_what_is_left_out(output: dict[str, Any]) -> None:
    page = assert_harmless(result_html(output, HUGE))
    assert re.search(r"… \[?[\d,]+ more (characters|messages|parts)", page.text)


def test_a_picture_that_is_too_large_is_left_out_with_its_size() -> None:
    data = base64.b64encode(bytes(300_000)).decode()
    large = {"type": "image/png", "base64": data, "alt": "the sea"}
    small = {"type": "image/png", "base64": PIXEL}
    page = assert_harmless(result_html({"messages": [{"speaker": "human", "content": [large, small]}]}))
    assert "[image/png, 300,000 bytes: too large to be shown, the sea]" in page.text
    assert [attributes["src"] for tag, attributes in page.found if tag == "img"] == [f"data:image/png;base64,{PIXEL}"]


def test_a_template_shows_its_variables_and_markup_and_starts_no_process(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "greet.poml"
    file.write_text(MARKUP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = engine.stats().rendered
    for prompt in prompts():
        page = assert_harmless(prompt.from_file(file)._repr_html_())
        assert re.search(r"greet\.poml.*registry greet.*needs text.*takes history \(messages\)", page.text, re.DOTALL)
        assert "<system-msg>Be kind.</system-msg>" in page.text
        assert str(tmp_path) not in page.text
        assert_harmless(prompt.from_template("<poml>{{ <not markup")._repr_html_())
        assert_harmless(prompt.from_template(f"<p>{HUGE}</p>")._repr_html_())
    assert engine.stats().rendered == before


def test_a_replay_marks_what_differs() -> None:
    difference = Difference("messages[0].content", "Be <b>kind</b>.", "Be brief.")
    renders = (
        ReplayedRender("1", "poml a", "a.poml", "identical"),
        ReplayedRender("2", "poml b", None, "different", (difference,), ("tone.poml has changed",)),
    )
    html = Replay("tr-1", renders)._repr_html_()
    page = assert_harmless(html)
    assert "  - Be &lt;b&gt;kind&lt;/b&gt;.\n  + Be brief.\n" in html
    assert re.search(r"tr-1: 1 identical, 1 different.*poml a.*identical.*tone\.poml has changed", page.text, re.DOTALL)
    assert "Be brief." in assert_harmless(renders[1]._repr_html_()).text
    many = assert_harmless(Replay("tr-2", renders * 5_000)._repr_html_())
    assert re.search(r"… [\d,]+ more renders", many.text)
    lines = ReplayedRender("3", "poml c", None, "different", (difference,) * 20_000)
    assert re.search(r"… [\d,]+ more characters", assert_harmless(lines._repr_html_()).text)


def test_reprs_are_short() -> None:
    difference = (Difference("messages", HUGE, HUGE),)
    replayed = ReplayedRender("1", "poml a", None, "different", difference, record=None)
    templates = [prompt.from_template(f"<p>{HUGE}</p>") for prompt in prompts()]
    for shown in (*results(HUGE), *templates, replayed, Replay("tr-1", (replayed,) * 1000)):
        assert len(repr(shown)) < 350
        assert type(shown).__name__ in repr(shown)
    assert repr(pomlflow.render("<p>Hi</p>")).startswith(
        "PomlFrame(messages=[PomlMessage(speaker='human', content='Hi')]"
    )

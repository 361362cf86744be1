"""Where the bundle cannot be kept warm, poml itself renders, and one warning says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pomlflow import engine
from pomlflow.engine import installation as install
from pomlflow.exceptions import RenderError, RenderTimeoutError
from pomlflow.template import Template


@pytest.fixture
def cold(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that does not end as that of poml 0.0.8 does: another version's."""
    found = install.find()
    bundle = tmp_path / "cli.js"
    bundle.write_text("module.exports = {}; // another poml", encoding="utf-8")
    monkeypatch.setattr(install, "find", lambda: install.Installation(found.node, bundle))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_poml_itself_renders_and_one_warning_says_why(
    cold: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from poml import cli

    calls: list[Any] = []
    original = cli.run

    def spy(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(cli, "run", spy)
    request = engine.Request("<p>Hello {{who}}</p>", b'{"who":"Ada"}')
    with ThreadPoolExecutor(2) as threads:
        results = [*threads.map(lambda _: engine.run(request), range(2)), engine.run(request)]
    assert [(r.output, r.engine, r.node_ms) for r in results] == [
        ({"messages": [{"speaker": "human", "content": "Hello Ada"}]}, "poml", None)
    ] * 3
    assert len(calls) == 3
    [warning] = warnings(caplog)
    assert warning.startswith("POML cannot be kept warm (the bundle ")
    assert "does not end as that of poml 0.0.8 does" in warning


def test_a_bundle_that_fails_to_load_is_not_kept_warm_either(
    cold: None, caplog: pytest.LogCaptureFixture, hello: Callable[[], str]
) -> None:
    """It has the entry, and other modules behind it."""
    bundle = install.find().bundle
    bundle.write_text(
        'var __webpack_require__ = (id) => { throw new Error("no module " + id) };\n'
        'var x = __webpack_require__(__webpack_require__.s = "./packages/poml/cli.ts");\n',
        encoding="utf-8",
    )
    assert hello() == "Hello Ada"
    [warning] = warnings(caplog)
    assert "(no module ./node_modules/react/index.js)" in warning


async def test_async_renders_too(cold: None) -> None:
    output = await engine.arender("<p>{{who}}</p>", {"who": "Ada"})
    assert output["messages"][0]["content"] == "Ada"


def test_everything_that_a_request_holds_arrives(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Path, stylesheet, native messages, and what JSON cannot carry: as in the warm engine."""
    (tmp_path / "note.txt").write_text("noted", encoding="utf-8")
    markup = (
        '<poml><document src="note.txt"/><task>{{number}} {{bytes.length}}</task>'
        '<conversation messages="{{history}}"/></poml>'
    )
    history = [{"speaker": "tool", "content": "a result"}, {"speaker": "human", "content": "thanks"}]
    context, revive = engine.encode({"number": float("nan"), "bytes": b"abc", "history": history})
    sheet = {"task": {"captionStyle": "bold", "caption": "Job"}}
    path, marks = str(tmp_path / "x.poml"), {"history": ["mark-1", "mark-2"]}
    one = engine.Request(markup, context, revive, sheet, path, inline=True, natives=marks)
    warm = engine.run(one)
    request.getfixturevalue("cold")
    cold = engine.run(one)
    assert (warm.engine, cold.engine) == ("warm", "poml")
    assert cold.output == warm.output
    assert [message["content"] for message in cold.output["messages"]] == [
        "noted\n\n**Job:** NaN 3",
        "mark-1",
        "mark-2",
    ]


def test_chat_off(cold: None) -> None:
    assert engine.render("<p>a</p>", {}, chat=False) == {"messages": "a"}


def test_a_text_that_is_a_path_stays_a_text(cold: None, tmp_path: Path) -> None:
    """poml.poml() would take it for a file."""
    file = tmp_path / "secret"
    file.write_text("<p>secret</p>", encoding="utf-8")
    assert engine.render(str(file), {})["messages"][0]["content"] == str(file)


def test_an_error_tells_why_and_where(cold: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "a.poml")
    with pytest.raises(RenderError) as failed:
        engine.render("<poml>\n  <p>{{ nobody }}</p>\n</poml>", {}, path=file)
    assert (
        str(failed.value) == f"{file}:2:6: nobody is not defined\n      <p>{{{{ nobody }}}}</p>\n         ^^^^^^^^^^^^"
    )
    assert failed.value.problems[0].kind == "ReadError"


def test_an_error_in_an_include_names_no_wrong_place(cold: None, tmp_path: Path) -> None:
    (tmp_path / "part.poml").write_text('<poml>\n<img src="none.png"/></poml>', encoding="utf-8")
    with pytest.raises(RenderError, match="Image file not found") as failed:
        engine.render('<poml><include src="part.poml"/></poml>', {}, path=str(tmp_path / "a.poml"))
    assert failed.value.line is None


def test_a_template_that_ends_node_is_an_error(cold: None) -> None:
    with pytest.raises(RenderError, match=r"^<inline>: poml ended without a word"):
        engine.render("<p>{{ process.exit(0) }}</p>", {})


def test_a_render_that_never_ends_is_ended_at_its_limit(cold: None, hello: Callable[[], str]) -> None:
    assert hello() == "Hello Ada"  # the warning is said, and the limit is the render's alone
    with pytest.raises(RenderTimeoutError, match=r"^<inline>: the render took longer than 2 s and was ended"):
        engine.run(engine.Request("<p>{{ (() => { while (true); })() }}</p>"), 2)
    assert hello() == "Hello Ada"


def test_a_render_that_waits_for_its_turn_in_vain_is_told_so(cold: None, hello: Callable[[], str]) -> None:
    assert hello() == "Hello Ada"
    places = engine._engine._cold_places
    places.acquire()
    try:
        with pytest.raises(RenderTimeoutError, match=r"no Node process came free for the render within 0\.01 s"):
            engine.run(engine.Request("<p>Hi</p>"), 0.01)
    finally:
        places.release()


def test_a_record_says_who_refused_the_render(cold: None, hello: Callable[[], str]) -> None:
    assert hello() == "Hello Ada"
    record = Template("<p>{{ null.x }}</p>").render({})
    assert (type(record.error), record.engine) == (RenderError, "poml")

"""A trace's renders again, on a real store: identical, or where they differ and what has changed."""

from __future__ import annotations

import base64
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Trace
from PIL import Image
from tests.corpus.cases import cases, shapes
from tests.template.test_history import Note, Notes
from tests.templates import HELLO, write

import pomlflow
from pomlflow import ConfigurationError, TemplateNotFoundError, TraceNotFoundError
from pomlflow.template import Template
from pomlflow.tracking.follow import open_prompt
from pomlflow.tracking.replay import Replay, ReplayedRender
from pomlflow.tracking.spans import log_render
from pomlflow.tracking.versions import register as publish


def picture(colour: int = 0) -> bytes:
    """A picture that is large enough to become an attachment."""
    made = io.BytesIO()
    Image.frombytes("RGB", (16, 16), random.Random(colour).randbytes(768)).save(made, "png")
    return made.getvalue()


PICTURE = picture()
REMEDY = "run the replay in the prompt root or working folder of that time, or set POMLFLOW_PROMPT_ROOT to it"


class FullNotes(Notes):
    """Notes whose descriptions are complete, like the adapters'."""

    def describe(self, message: Note) -> dict[str, Any]:
        return {**self.to_poml(message), "long": True}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is the prompt root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")  # a flush of the background takes a second
    mlflow.tracing.reset()
    return tmp_path


@pytest.fixture
def trace_of(mlflow_store: str) -> Iterator[Callable[..., str]]:
    """Render templates in one trace; return its id."""

    def store(*renders: tuple[Template, Mapping[str, Any]], native: bool = False, **options: Any) -> str:
        with mlflow.start_span("chain") as span:
            for template, variables in renders:
                record = template.render(variables, history=FullNotes() if native else None)
                assert record.output or record.error
                log_render(record, parent=span, **{"register": False, **options})
        return str(span.trace_id)

    yield store
    mlflow.tracing.reset()


def only_render(trace_id: str) -> ReplayedRender:
    (render,) = pomlflow.replay(trace_id).renders
    return render


def difference_texts(render: ReplayedRender) -> list[str]:
    return [str(difference) for difference in render.differences]


# --- an edited file ---


def test_an_edited_file_is_rendered_with_the_values_of_the_trace(trace_of: Callable[..., str], folder: Path) -> None:
    """It may read what any file of the user may; the trace's other prompts are rendered as stored."""
    file = write(folder / "a.poml", "<p>Be kind to {{name}}.</p>")
    other = Template("<p>{{name}}</p>", name="other")
    trace_id = trace_of((Template(path=file), {"name": "Ada"}), (other, {"name": "Bo"}))
    write(file, "<poml><p>Be brief to {{name}}.</p><document src='more.txt'/></poml>")
    write(folder / "more.txt", "More.")
    assert pomlflow.replay(trace_id).identical
    edited, same = pomlflow.replay(trace_id, "a.poml").renders
    assert (edited.outcome, same.outcome) == ("different", "identical")
    assert difference_texts(edited) == ["messages[0].content\n- Be kind to Ada.\n+ Be brief to Ada.\n+ \n+ More."]
    assert edited.reasons == ("rendered with a.poml",)
    write(file, "<p>{{title}}</p>")
    edited, _ = pomlflow.replay(trace_id, file).renders
    assert edited.differences[0].where == "error"
    assert "needs the variable title" in str(edited)


def test_an_edited_file_of_another_name_is_for_the_only_prompt(trace_of: Callable[..., str], folder: Path) -> None:
    file = write(folder / "new.poml", "<p>Hi {{n}}</p>")
    (render,) = pomlflow.replay(trace_of((Template("<p>{{n}}</p>"), {"n": PICTURE})), file).renders
    assert render.outcome == "different"
    two = trace_of((Template("<p>{{n}}</p>", name="one"), {"n": 1}), (Template("<p>{{n}}</p>", name="two"), {"n": 1}))
    with pytest.raises(
        ConfigurationError, match=r"new\.poml is none of the prompts of the trace tr-\w+: poml one, poml two"
    ):
        pomlflow.replay(two, file)
    with pytest.raises(TemplateNotFoundError):
        pomlflow.replay(two, "nowhere.poml")


# --- identical ---


def test_prompts_of_the_corpus_are_replayed(trace_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the corpus, with errors and attachments, in one trace."""
    pomlflow.configure(prompt_root=Path(__file__).parents[1] / "corpus")
    every = [*shapes(), *(one for one in cases()[::4] if one.fails)]
    store = [
        (Template(path=one.file, stylesheet=one.stylesheet, chat=one.chat, register=False), one.variables)
        for one in every
    ]
    replayed = pomlflow.replay(trace_of(*store))
    assert [str(render) for render in replayed.renders if render.outcome != "identical"] == []
    assert len(replayed.renders) == len(every) > 40
    assert {render.record.error is None for render in replayed.renders if render.record} == {True, False}


def test_values_that_json_cannot_hold_are_replayed(trace_of: Callable[..., str]) -> None:
    markup = "<p>{{n}} {{up}} {{data.toString()}} {{big}} {{none}} {{typeof n}}</p>"
    given = {"n": float("nan"), "up": float("-inf"), "data": b"caf\xc3\xa9", "big": 2**60, "none": None}
    render = only_render(trace_of((Template(markup), given)))
    assert render.outcome == "identical"
    assert render.record is not None
    assert render.record.result()["messages"][0]["content"] == "NaN -Infinity café 1152921504606846976 number"


@pytest.mark.parametrize("chat", [True, False])
def test_native_messages_keep_their_places(trace_of: Callable[..., str], chat: bool) -> None:
    """An expression chooses them; they hold tool calls and a picture. With chat=False they are text."""
    media = base64.b64encode(PICTURE).decode()
    notes = [
        Note("human", "one"),
        Note("ai", "two", ({"type": "application/vnd.poml.toolrequest", "id": "1", "name": "f", "content": {}},)),
        Note("human", "three", ({"type": "image/png", "base64": media},)),
        Note("tool", "four"),
    ]
    markup = '<poml><conversation messages="{{h.slice(1)}}"/><human-msg>{{h.length}} {{q}}</human-msg></poml>'
    render = only_render(trace_of((Template(markup, chat=chat), {"h": notes, "q": "?"}), native=True))
    assert (render.outcome, difference_texts(render)) == ("identical", [])
    assert render.record is not None
    assert (len(render.record.result()["messages"]) == 4) == chat


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"], ids=["base64", "data URI"])
def test_media_are_read_back_from_the_artifact_store(trace_of: Callable[..., str], folder: Path, head: str) -> None:
    """In variables and in the result; a data URI stays one, and plain base64 stays plain."""
    text = head + base64.b64encode(PICTURE).decode()
    markup = "<poml><p>{{text.length}} {{text.slice(0, 5)}}</p><img base64=\"{{data.toString('base64')}}\"/></poml>"
    trace_id = trace_of((Template(markup), {"text": text, "data": PICTURE, "list": [{"of": text}]}))
    assert only_render(trace_id).outcome == "identical"
    assert len(list(folder.rglob("attachments/*"))) == 4

    for attachments in folder.rglob("attachments"):
        shutil.rmtree(attachments)
    gone = only_render(trace_id)
    assert gone.outcome == "incomplete"
    assert "an attachment (image/png) is not in the artifact store" in gone.reasons[0]


def test_a_failed_render_fails_alike(trace_of: Callable[..., str], folder: Path) -> None:
    """Errors are compared without the file, whose path differs between machines."""
    wrong = Template(path=write(folder / "a.poml", "<poml>\n  <p>{{ x.y.z }}</p>\n</poml>"))
    replayed = pomlflow.replay(trace_of((wrong, {"x": {}}), (wrong, {"y": 1})))
    assert replayed.identical
    assert [type(render.record.error).__name__ for render in replayed.renders if render.record] == [
        "RenderError",
        "MissingVariableError",
    ]


def test_the_markup_of_the_trace_is_rendered(trace_of: Callable[..., str], folder: Path) -> None:
    """Even if its file has changed or is missing."""
    file = write(folder / "a.poml", HELLO)
    trace_id = trace_of((Template(path=file), {"name": "Ada"}))
    write(file, "<p>Bye {{name}}</p>")
    assert only_render(trace_id).outcome == "identical"
    file.unlink()
    assert only_render(trace_id).outcome == "identical"


# --- different ---


def test_a_file_that_has_changed_or_is_gone_is_named(trace_of: Callable[..., str], folder: Path) -> None:
    write(folder / "p" / "tone.poml", "<p>Be kind.</p>")
    write(folder / "p" / "facts.txt", "The sky is blue.\nSo is the sea.")
    markup = '<poml><include src="tone.poml"/><document src="facts.txt"/><p>{{q}}</p></poml>'
    trace_id = trace_of((Template(path=write(folder / "p" / "a.poml", markup)), {"q": "Why?"}))
    assert pomlflow.replay(trace_id).identical

    write(folder / "p" / "facts.txt", "The sky is grey.\nSo is the sea.")
    render = only_render(trace_id)
    assert difference_texts(render) == ["messages[0].content\n- The sky is blue.\n+ The sky is grey."]
    assert render.reasons[0].startswith("p/facts.txt has changed: it was written at 20")
    assert len(render.reasons) == 1

    (folder / "p" / "tone.poml").unlink()
    render = only_render(trace_id)
    assert [difference.where for difference in render.differences] == ["error"]
    tone = folder / "p" / "tone.poml"
    assert render.reasons[0] == f"p/tone.poml is not there ({tone}): unless it was removed, {REMEDY}"
    shown = str(pomlflow.replay(trace_id)).splitlines()
    assert shown[:3] == [f"{trace_id}: 1 different", "poml p.a (p/a.poml): different", "  error"]
    assert shown[-2].startswith("  p/tone.poml is not there (")


def test_files_are_found_from_the_prompt_root(
    trace_of: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "p" / "tone.poml", "<p>Be kind.</p>")
    trace_id = trace_of((Template('<include src="tone.poml"/>', base_dir="p"), {}))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert only_render(trace_id).reasons == (f"there is no folder {folder / 'elsewhere' / 'p'}: {REMEDY}",)
    pomlflow.configure(prompt_root=folder)
    assert only_render(trace_id).outcome == "identical"


def test_missing_files_are_read_from_the_registry(trace_of: Callable[..., str], folder: Path, publisher: Any) -> None:
    """From the version that the trace names, as on another machine; files that exist are read from the disk."""
    name = f"p{os.getpid()}"
    write(folder / name / "tone.poml", "<p>Be kind.</p>")
    template = Template(path=write(folder / name / "a.poml", '<poml><include src="tone.poml"/><p>{{q}}</p></poml>'))
    version = publish(template).version
    assert version is not None
    from_there = Template(origin=open_prompt(version.uri))
    trace_of((template, {"q": "Why?"}), register=True)
    assert publisher.flush(30)  # the version is known from here on, and the next span names it
    trace_id = trace_of((template, {"q": "Why?"}), (from_there, {"q": "Why?"}), register=True)
    assert pomlflow.replay(trace_id).identical
    write(folder / name / "tone.poml", "<p>Be brief.</p>")
    assert [render.outcome for render in pomlflow.replay(trace_id).renders] == ["different", "identical"]
    shutil.rmtree(folder / name)
    assert pomlflow.replay(trace_id).identical


def test_versions_that_have_changed_are_named(trace_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    trace_id = trace_of((Template("<p>{{ Math.random() }}</p>"), {}))
    monkeypatch.setattr("pomlflow.engine.poml_version", lambda: "0.0.9")
    assert only_render(trace_id).reasons == ("poml was 0.0.8, and is 0.0.9 now",)


def test_a_difference_without_a_change_that_the_trace_names(trace_of: Callable[..., str], folder: Path) -> None:
    """A clock, chance, or a file that a variable names: only the difference is known."""
    write(folder / "one.txt", "one")
    trace_id = trace_of((Template('<document src="{{file}}"/>'), {"file": "one.txt"}))
    assert only_render(trace_id).outcome == "identical"
    write(folder / "one.txt", "two")
    render = only_render(trace_id)
    assert difference_texts(render) == ["messages[0].content\n- one\n+ two"]
    assert render.reasons == ("none of the files and versions that the trace names has changed",)


def test_a_trace_is_not_trusted(trace_of: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read files in the prompt root, the working folder and `allow_read`, whatever folder it names."""
    work, other = folder / "work", folder / "other"
    write(other / "note.txt", "the secret")
    work.mkdir()
    monkeypatch.chdir(work)
    trace_id = trace_of((Template('<document src="note.txt"/>', base_dir=other), {}))
    render = only_render(trace_id)
    assert render.record is not None
    assert "may not be read: this template is not trusted" in str(render.record.error)
    assert "the secret" not in "".join(difference.now or "" for difference in render.differences)
    pomlflow.configure(prompt_root=folder)
    assert only_render(trace_id).outcome == "different"  # its folder is named from the new root


def test_a_picture_that_has_changed_is_shown_by_its_digest(trace_of: Callable[..., str], folder: Path) -> None:
    (folder / "a.png").write_bytes(picture(1))
    trace_id = trace_of((Template('<img src="a.png" syntax="multimedia"/>'), {}))
    (folder / "a.png").write_bytes(picture(2))
    (difference,) = only_render(trace_id).differences
    assert difference.where == "messages[0].content[0].image_url.url"
    assert difference.then is not None
    assert difference.now is not None
    assert difference.then.startswith("[image/png, ")
    assert " bytes, SHA-256 " in difference.now
    assert difference.then != difference.now


# --- what is not in the trace ---

NOT_THERE = "the markup and the variables are not in the trace: something redacted or cut them"


def remove_inputs(span: Any) -> None:
    span.set_inputs({"prompt": "…"})


def test_what_a_mask_removed_is_a_reason(trace_of: Callable[..., str]) -> None:
    render = Template(HELLO), {"name": "Ada"}
    nothing = only_render(trace_of(render, mask=lambda _: {}))
    assert (nothing.outcome, nothing.record) == ("incomplete", None)
    assert nothing.reasons == ("a mask or max_content changed the markup or the variables before they were stored",)
    inputs = only_render(trace_of(render, mask=lambda kept: {"inputs": kept["inputs"]}))
    lost = "a mask or max_content changed the result before it was stored"
    assert inputs.reasons == (lost,)
    assert inputs.record is not None
    assert only_render(trace_of(render, mask=lambda kept: kept)).outcome == "identical"
    failed = only_render(
        trace_of((Template("<p>{{x.y}}</p>"), {"x": None}), mask=lambda kept: {"inputs": kept["inputs"]})
    )
    assert failed.reasons == (lost,)


def test_what_a_span_processor_removed_is_a_reason(trace_of: Callable[..., str]) -> None:
    mlflow.tracing.configure(span_processors=[remove_inputs])
    try:
        trace_id = trace_of((Template(HELLO), {"name": "Ada"}))
    finally:
        mlflow.tracing.reset()
    assert only_render(trace_id).reasons == (NOT_THERE,)


def test_what_was_cut_is_a_reason(trace_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "300")
    mlflow.tracing.reset()
    render = only_render(trace_of((Template(HELLO), {"name": "Ada" * 200})))
    assert render.reasons == (NOT_THERE,)


def test_an_attachment_that_was_too_large_is_a_reason(
    trace_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACE_MAX_ATTACHMENT_SIZE", "10")
    render = only_render(trace_of((Template("<p>{{data.length}}</p>"), {"data": PICTURE})))
    assert render.outcome == "incomplete"
    assert render.reasons[0].startswith("context.data.__base64__ is not in the trace: Attachment too large: ")


def test_a_missing_trace_is_an_error(mlflow_store: str) -> None:
    with pytest.raises(TraceNotFoundError, match=r"no trace tr-none in sqlite:.*MLFLOW_TRACKING_URI"):
        pomlflow.replay("tr-none")


def test_a_trace_without_poml_has_no_renders(mlflow_store: str) -> None:
    with mlflow.start_span("other") as span:
        pass
    replayed = pomlflow.replay(span.trace_id)
    assert replayed == Replay(span.trace_id, ())
    assert not replayed.identical
    assert str(replayed) == f"{span.trace_id}: no POML render"


def test_a_trace_that_is_not_stored_yet_is_waited_for(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow exports in the background."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    mlflow.tracing.reset()
    with mlflow.start_span("chain") as span:
        log_render(Template(HELLO).render({"name": "Ada"}), parent=span, register=False)
    assert pomlflow.replay(span.trace_id).identical


def test_a_span_stores_no_default_values_for_replay(trace_of: Callable[..., str]) -> None:
    """Most prompts have only default values."""
    trace: Trace = mlflow.get_trace(trace_of((Template(HELLO), {"name": "Ada"})))
    assert trace.data.spans[1].attributes["poml.replay"] == {"pomlflow": pomlflow.__version__}

"""A prompt of the registry follows it in the background and renders anywhere; on a real SQLite store."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import DEAD
from tests.programs import run_program
from tests.registry_prompts import HELLO, publish, warnings_of
from tests.templates import text, write
from tests.waiting import until

import pomlflow
from pomlflow.exceptions import ConfigurationError, NotPomlError, PromptNotFoundError, RegistryError, RenderError
from pomlflow.template import Template
from pomlflow.tracking.follow import open_prompt
from pomlflow.tracking.load import Reference
from pomlflow.tracking.versions import register

pytestmark = pytest.mark.usefixtures("mlflow_store")

LINKED = "mlflow.linkedPrompts"


def registry_template(name: str, **options: Any) -> Template:
    """A template that follows the version in production, checked ten times a second."""
    return Template(origin=open_prompt(name, **{"alias": "production", "refresh": 0.1, **options}))


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Simulate another machine: a new, empty working folder, and all other files deleted."""

    def switch() -> None:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        monkeypatch.chdir(folder)
        for entry in tmp_path.iterdir():
            if entry != folder:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    return switch


def test_a_prompt_renders_and_records_its_version(name: str) -> None:
    uri = f"prompts:/{name}/{publish(name)}"
    template = registry_template(name)
    record = template.render({"name": "Ada"})
    assert record.result()["messages"] == [{"speaker": "human", "content": "Hello Ada"}]
    assert (record.name, record.version, record.path, record.register) == (name, 1, None, None)
    assert template.current().uri == uri
    assert template.digest == Template(HELLO).digest


def test_an_alias_is_followed_whether_the_template_is_rendered_or_not(name: str) -> None:
    publish(name)
    used, unused = registry_template(name), registry_template(name)
    assert text(used, name="Ada") == "Hello Ada"
    publish(name, "<p>Bye {{who}}</p>")
    until(lambda: used.render({"name": "Ada", "who": "Ada"}).version == 2)
    until(lambda: unused.current().version == 2)  # it was not rendered
    assert text(unused, who="Ada") == "Bye Ada"
    assert used.inference.variables == ("who",)


def test_a_prompt_is_followed_while_too_many_tasks_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(name)
    monkeypatch.setattr("pomlflow.tracking.background._MAX_TASKS", 0)
    template = registry_template(name)
    publish(name, "<p>Bye {{name}}</p>")
    until(lambda: text(template, name="Ada") == "Bye Ada")
    assert template.current().version == 2


def test_model_settings_of_mlflow_apply_where_the_file_sets_none(name: str) -> None:
    """The file's settings override MLflow's, whatever their spelling; changes in MLflow are followed."""
    publish(name, "<poml><runtime maxOutputTokens='300' stop='END'/><p>Hello</p></poml>")
    template = registry_template(name)
    own = {"maxOutputTokens": 300, "stop": "END"}
    assert template.render({}).output["runtime"] == own
    config = {"model_name": "gpt-5", "max_tokens": 9, "top_p": 0.5, "stop_sequences": ["x"], "reasoning_effort": "low"}
    mlflow.genai.set_prompt_model_config(name, 1, config)
    until(lambda: template.render({}).added_runtime)
    record = template.render({})
    assert record.output["runtime"] == {**own, "model": "gpt-5", "topP": 0.5, "reasoningEffort": "low"}
    assert record.frame.runtime["topP"] == 0.5
    assert (record.version, record.digest) == (1, template.digest)
    mlflow.genai.delete_prompt_model_config(name, 1)
    until(lambda: template.render({}).output["runtime"] == own)


def test_the_snippet_in_a_versions_tag_loads_it(name: str) -> None:
    uri = f"prompts:/{name}/{publish(name)}"
    names: dict[str, Any] = {}
    exec(mlflow.MlflowClient().get_prompt_version(name, 1).tags["poml_use"], names)
    assert names["prompt"].uri == uri


def test_the_active_run_and_model_are_linked_at_load_as_mlflow_links_them(name: str) -> None:
    import mlflow.genai

    uri = f"prompts:/{name}/{publish(name)}"
    expected = []
    for load in (open_prompt, mlflow.genai.load_prompt):
        with mlflow.start_run() as run:
            model = mlflow.create_external_model().model_id
            with mlflow.set_active_model(model_id=model):
                load(uri)
        assert pomlflow.flush()
        until(lambda model=model: LINKED in mlflow.get_logged_model(model).tags)
        expected.append(
            (mlflow.get_run(run.info.run_id).data.tags[LINKED], mlflow.get_logged_model(model).tags[LINKED])
        )
    ours, theirs = expected
    assert ours == theirs
    assert json.loads(ours[0]) == [{"name": name, "version": "1"}]


def test_the_newest_version_is_followed_where_none_is_named(name: str) -> None:
    publish(name)
    template = registry_template(name, alias=None)
    mlflow.genai.register_prompt(name, "<p>Newer</p>")
    until(lambda: text(template, name="Ada") == "Newer")
    assert template.current().version == 2


def test_a_call_never_waits_for_the_registry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(name)
    template = registry_template(name)
    called, answer = threading.Event(), threading.Event()
    fetch = Reference.fetch

    def slowly(self: Reference, place: Any) -> Any:
        called.set()
        answer.wait(60)
        return fetch(self, place)

    monkeypatch.setattr(Reference, "fetch", slowly)
    publish(name, "<p>Newer</p>")
    assert called.wait(60)
    assert text(template, name="Ada") == "Hello Ada"
    answer.set()
    until(lambda: text(template, name="Ada") == "Newer")


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each reference was looked up."""
    counts: Counter[str] = Counter()
    fetch = Reference.fetch

    def counted(self: Reference, place: Any) -> Any:
        counts[self.uri] += 1
        return fetch(self, place)

    monkeypatch.setattr(Reference, "fetch", counted)
    return counts


def test_a_version_number_is_looked_up_once(name: str, lookups: Counter[str]) -> None:
    publish(name)
    followed, fixed = registry_template(name), registry_template(name, alias=None, version=1)
    assert text(fixed, name="Ada") == "Hello Ada"
    until(lambda: lookups[followed.origin.uri] > 3)
    assert lookups[fixed.origin.uri] == 1


def test_following_ends_with_the_last_template(name: str, lookups: Counter[str]) -> None:
    publish(name)
    template, other = registry_template(name), registry_template(name, alias=None)
    uri, others = template.origin.uri, other.origin.uri
    del template
    gc.collect()
    now = lookups[others]
    until(lambda: lookups[others] > now + 1)  # a lookup that was under way has ended
    last, now = lookups[uri], lookups[others]
    until(lambda: lookups[others] > now + 3)
    assert lookups[uri] == last


def test_an_unreachable_registry_keeps_no_template_alive(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_registry_uri(DEAD)
    template = registry_template(name, fallback=Template(path=write(tmp_path / "fallback.poml", "<p>Fallback</p>")))
    until(lambda: warnings_of(caplog))
    origin = weakref.ref(template.origin)
    del template
    gc.collect()
    assert until(lambda: origin() is None)


@pytest.mark.parametrize("change", ["plain text", "alias gone"])
def test_the_last_good_version_stays(
    name: str, change: str, lookups: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One warning is logged, however often it is looked up; the next good version is followed."""
    publish(name)
    template = registry_template(name)
    if change == "plain text":
        version = mlflow.genai.register_prompt(name, "Hello {{name}}")
        mlflow.genai.set_prompt_alias(name, "production", version.version)
    else:
        mlflow.genai.delete_prompt_alias(name, "production")
    until(lambda: warnings_of(caplog))
    now = lookups[template.origin.uri]
    until(lambda: lookups[template.origin.uri] > now + 1)
    assert text(template, name="Ada") == "Hello Ada"
    (warning,) = warnings_of(caplog)
    assert f"prompts:/{name}/1 stays in use" in warning
    publish(name, "<p>Good again</p>")
    until(lambda: text(template, name="Ada") == "Good again")


@pytest.mark.parametrize(
    ("register_first", "error"), [(False, PromptNotFoundError), (True, NotPomlError)], ids=["not there", "plain text"]
)
def test_a_cold_start_without_a_fallback_is_an_error(
    name: str, register_first: bool, error: type[RegistryError]
) -> None:
    if register_first:
        mlflow.genai.register_prompt(name, "Hello {{name}}")
    with pytest.raises(error, match=f"prompts:/{name}"):
        registry_template(name, alias=None)


def test_a_cold_start_without_a_server_is_an_error(name: str, caplog: pytest.LogCaptureFixture) -> None:
    mlflow.set_registry_uri(DEAD)
    for _ in range(3):
        with pytest.raises(RegistryError, match=f"prompts:/{name}@production"):
            registry_template(name)
    assert warnings_of(caplog) == []


def test_the_digest_of_a_fallback_is_that_of_its_files_as_they_are_now(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "fallback.poml", '<poml><include src="rules.poml"/></poml>')
    write(tmp_path / "rules.poml", "<p>One</p>")
    template = registry_template(name, fallback=Template(path=file))
    template.render({})
    write(tmp_path / "rules.poml", "<p>Another</p>")
    assert template.render({}).digest == Template(path=file).render({}).digest


def test_a_fallback_is_used_until_the_registry_has_the_prompt(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "fallback.poml", "<p>Fallback {{name}}</p>")
    template = registry_template(name, fallback=Template(path=file))
    record = template.render({"name": "Ada"})
    assert record.result()["messages"][0]["content"] == "Fallback Ada"
    assert (record.name, record.version, record.register) == (name, None, False)
    publish(name)
    until(lambda: text(template, name="Ada") == "Hello Ada")
    assert template.current().version == 1


@pytest.mark.parametrize("options", [{"refresh": 0}, {"refresh": -1}, {"timeout": 0}, {"refresh": float("nan")}])
def test_invalid_times_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="number of seconds above 0"):
        registry_template(name, **options)


def test_a_registry_that_is_slow_is_waited_for_up_to_the_timeout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(Reference, "fetch", lambda *_: answer.wait(60))
    with pytest.raises(RegistryError, match=r"within 0\.05 s"):
        registry_template(name, timeout=0.05)
    answer.set()


# --- files


def template_with_files(folder: Path, name: str) -> Template:
    write(folder / "prompts" / "parts" / "tone.poml", "<p>Be {{mood}}.</p>")
    write(folder / "shared" / "facts.json", '{"fact": "Water is wet."}')
    write(folder / "prompts" / "note.txt", "A note.")
    source = (
        '<poml><let src="../shared/facts.json"/><include src="parts/tone.poml"/><document src="note.txt"/>'
        "<p>{{fact}}</p></poml>"
    )
    return Template(path=write(folder / "prompts" / "main.poml", source), name=name)


WHOLE = "Be kind.\n\nA note.\n\nWater is wet."


def test_a_prompt_renders_on_another_machine(name: str, tmp_path: Path, other_machine: Callable[[], None]) -> None:
    made = template_with_files(tmp_path, name)
    digest = made.digest
    register(made, alias="production")
    other_machine()
    template = registry_template(name)
    assert template.inference.variables == ("mood",)
    record = template.render({"mood": "kind"})
    assert record.result()["messages"][0]["content"] == WHOLE
    assert record.digest == digest
    assert [file.path for file in record.files] == ["parts/tone.poml", "../shared/facts.json", "note.txt"]


def test_the_files_of_a_prompt_are_restored_when_a_system_cleans_up(name: str, tmp_path: Path) -> None:
    register(template_with_files(tmp_path, name), alias="production")
    template = registry_template(name)
    for root in template.current().roots:
        shutil.rmtree(root)
    assert text(template, mood="kind") == WHOLE


LARGE = "large.txt"


def register_large_file(folder: Path, name: str) -> str:
    (folder / LARGE).write_text(os.urandom(500_000).hex(), encoding="utf-8")
    register(Template(f'<document if="large" src="{LARGE}"/><p>Small</p>', name=name), alias="production")
    return (folder / LARGE).read_text(encoding="utf-8")


def test_an_omitted_file_is_named_where_it_is_missing(
    name: str, tmp_path: Path, other_machine: Callable[[], None]
) -> None:
    register_large_file(tmp_path, name)
    other_machine()
    template = registry_template(name)
    assert text(template, large=False) == "Small"
    with pytest.raises(RenderError) as caught:
        template.render({"large": True}).result()
    message = str(caught.value)
    assert message.startswith(f"prompts:/{name}/1:")
    assert f"{LARGE} was not stored with prompts:/{name}/1: it has 1,000,000 bytes" in message
    assert "base_dir=" in message


def test_an_omitted_file_is_taken_from_base_dir(name: str, tmp_path: Path, other_machine: Callable[[], None]) -> None:
    content = register_large_file(tmp_path, name)
    other_machine()
    folder = tmp_path / "elsewhere" / "data"
    write(folder / LARGE, content)
    template = registry_template(name, base_dir=folder)
    assert text(template, large=True) == f"{content}\n\nSmall"

    write(folder / LARGE, "other")
    with pytest.raises(RenderError, match="another file, with another digest"):
        registry_template(name, base_dir=folder).render({"large": True}).result()


def test_a_version_without_tags_has_the_files_of_the_version_before(
    name: str, tmp_path: Path, other_machine: Callable[[], None]
) -> None:
    """MLflow's optimisers register a text without tags."""
    made = template_with_files(tmp_path, name)
    paths = [file.path for file in made.current().files]
    register(made)
    mlflow.genai.register_prompt(name, made.source.replace("<p>{{fact}}</p>", "<p>Remember: {{fact}}</p>"))
    for number in range(11):  # versions without files, before the next one that names some and after it
        publish(name, f"<p>No files {number}</p>")
    mlflow.genai.register_prompt(name, made.source.replace("<p>{{fact}}</p>", "<p>Never forget: {{fact}}</p>"))
    other_machine()
    for version, words in ((2, "Remember"), (14, "Never forget")):
        template = registry_template(name, alias=None, version=version)
        for one in (template, pickle.loads(pickle.dumps(template))):
            record = one.render({"mood": "kind"})
            assert record.result()["messages"][0]["content"] == WHOLE.replace("Water", f"{words}: Water")
            assert (record.version, [file.path for file in record.files]) == (version, paths)


def test_a_version_without_tags_finds_its_includes_in_base_dir(name: str, tmp_path: Path) -> None:
    """MLflow's optimisers register a text without tags, and so without its files."""
    mlflow.genai.register_prompt(name, '<include src="parts/tone.poml"/>')
    write(tmp_path / "data" / "parts" / "tone.poml", '<include src="deep.poml"/>')
    write(tmp_path / "data" / "parts" / "deep.poml", "<p>Be {{mood}}.</p>")
    bare = registry_template(name, alias=None)
    with pytest.raises(RenderError, match=r"parts/tone\.poml was not stored with .*registered without it"):
        bare.render({}).result()
    with_folder = registry_template(name, alias=None, base_dir=tmp_path / "data")
    assert with_folder.inference.variables == ("mood",)
    assert text(with_folder, mood="kind") == "Be kind."


# --- what comes from a registry is not trusted


@pytest.mark.parametrize("source", ["../secret.poml", "{absolute}"])
def test_no_file_of_this_machine_is_read_for_a_version_from_elsewhere(name: str, tmp_path: Path, source: str) -> None:
    secret = write(tmp_path / "secret.poml", "<p>{{found}}</p>")
    (tmp_path / "data").mkdir()
    markup = f'<include src="{source.format(absolute=secret.as_posix())}"/><p>Hello</p>'
    mlflow.genai.register_prompt(name, markup)
    for base_dir in (None, tmp_path / "data"):
        now = registry_template(name, alias=None, base_dir=base_dir).current()
        assert now.inference.variables == ()
        assert now.files == ()
        assert now.roots is not None
        assert not any(secret.is_relative_to(root) for root in now.roots)


def test_a_version_may_read_only_what_is_stored_with_it(name: str, tmp_path: Path) -> None:
    register(template_with_files(tmp_path, name), alias="production")
    now = registry_template(name).current()
    (root,) = now.roots
    assert {file.location.relative_to(root).as_posix() for file in now.files} == {
        "prompts/parts/tone.poml",
        "prompts/note.txt",
        "shared/facts.json",
    }
    assert len([path for path in Path(root).rglob("*") if path.is_file()]) == 3


# --- copies


def test_a_pickled_template_renders_without_a_registry(
    name: str, tmp_path: Path, other_machine: Callable[[], None]
) -> None:
    """With its files, in a folder that is deleted with the process."""
    register(template_with_files(tmp_path, name), alias="production")
    pickled = pickle.dumps(registry_template(name))
    assert mlflow.get_tracking_uri().encode() not in pickled
    other_machine()
    file = tmp_path / "template.pickle"
    file.write_bytes(pickled)
    code = (
        "import pickle, sys; template = pickle.load(open(sys.argv[1], 'rb')); print(template.current().folder)\n"
        "print(template.render({'mood': 'kind'}).result()['messages'][0]['content'])"
    )
    done = run_program(code, str(file), folder=Path.cwd(), environment={**os.environ, "MLFLOW_TRACKING_URI": DEAD})
    done.check_returncode()
    folder, shown = done.stdout.split("\n", 1)
    assert shown.strip() == WHOLE
    assert Path(folder).is_absolute()
    assert not Path(folder).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_follows_by_itself(name: str) -> None:
    publish(name)
    template = registry_template(name)
    moved = multiprocessing.get_context("fork").Event()

    def child(answers: Any) -> None:
        moved.wait(60)
        until(lambda: template.current().version == 2)
        answers.send(template.source)

    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    publish(name, "<p>Newer</p>")
    moved.set()
    assert ours.poll(60)
    assert ours.recv() == "<p>Newer</p>"
    process.join(60)

"""Each content is one version, with the name, tags and settings that MLflow shows; on a real SQLite store."""

from __future__ import annotations

import hashlib
import logging
import threading
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tests.registry_prompts import versions

from pomlflow.record import PromptFile, content_digest
from pomlflow.tracking.background import RejectedError
from pomlflow.tracking.versions import Registry, draft_of, model_config, name_of

pytestmark = pytest.mark.usefixtures("mlflow_store")


def find_or_create(record: Any, *, create: bool = True, name: str | None = None) -> Any:
    return Registry(MlflowClient(), mlflow.get_registry_uri()).find(
        draft_of(record, (name_of(record) or "") if name is None else name), create=create
    )


def test_each_content_is_one_version(record):
    first, second = record("first"), record("second")
    assert [find_or_create(one).version for one in (first, second, first, second)] == [1, 2, 1, 2]
    assert [version.template for version in versions(first.name)] == [first.source, second.source]


def test_the_same_text_registered_by_hand_is_the_same_version(record):
    """It has no digest; a later version of another text does not matter."""
    text = record("by hand").source
    mlflow.genai.register_prompt(record().name, text)
    mlflow.genai.register_prompt(record().name, "<p>another</p>")
    assert find_or_create(record("by hand")).version == 1
    assert find_or_create(record("new")).version == 3
    assert [version.template for version in versions(record().name)] == [text, "<p>another</p>", record("new").source]


def test_a_text_registered_by_hand_is_another_version_where_it_names_files(record, tmp_path):
    """Its text does not have the content of the files."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    with_file = record(files=(PromptFile("a.txt", digest, file, tmp_path),))
    mlflow.genai.register_prompt(with_file.name, with_file.source)
    assert find_or_create(with_file).version == 2


def test_a_version_that_was_rendered_is_found_if_it_still_has_its_content(record):
    """A prompt that is deleted and registered again starts with version 1."""
    source = record().source
    from_registry = record(version=1, digest=content_digest(source, ()))
    mlflow.genai.register_prompt(record().name, source)
    assert find_or_create(from_registry).version == 1
    client = MlflowClient()
    client.delete_prompt_version(record().name, "1")
    client.delete_prompt(record().name)
    mlflow.genai.register_prompt(record().name, "<p>another</p>")
    assert find_or_create(from_registry) is None
    assert [version.template for version in versions(record().name)] == ["<p>another</p>"]


class UnityCatalog(MlflowClient):
    """MLflow's client for Unity Catalog: prompts are no models, and are listed in pages, without a filter."""

    def search_model_versions(self, *_: Any, **__: Any) -> Any:
        raise MlflowException("there is no such model")

    def search_prompt_versions(self, name: str, max_results: int | None = None, page_token: str | None = None) -> Any:
        return super().search_prompt_versions(name, 2, page_token)


def test_unity_catalog_is_searched_in_pages_of_all_versions(record):
    """It has no search by tag."""
    registry = Registry(UnityCatalog(), "databricks-uc")

    def find(content: str) -> Any:
        return registry.find(draft_of(record(content), record().name), create=True)

    contents = ["first", "second", "third", "fourth", "first", "third"]
    assert [find(content).version for content in contents] == [1, 2, 3, 4, 1, 3]
    assert registry.last_with_files(record().name, 4) is None


def test_a_lookup_registers_nothing(record):
    assert find_or_create(record(), create=False) is None
    assert versions(record().name) == []
    find_or_create(record())
    assert find_or_create(record(), create=False).version == 1


def test_a_version_holds_source_and_tags_and_the_prompt_gets_no_tags(record):
    """`mlflow.genai.register_prompt` would copy the tags to the prompt, and the next version's over them."""
    answer = record(path="support/answer.poml")
    find_or_create(answer)
    (version,) = versions(answer.name)

    assert version.is_text_prompt
    assert version.template == answer.source
    assert version.commit_message == "POML from support/answer.poml"
    assert version.tags == {
        "poml_sha256": answer.digest,
        "poml_path": "support/answer.poml",
        "poml_version": "0.0.8",
        "poml_use": "from pomlflow.langchain import PomlPromptTemplate  # or pomlflow.llama_index\n"
        f'prompt = PomlPromptTemplate.from_registry("prompts:/{answer.name}/1")',
    }
    assert MlflowClient().get_prompt(answer.name).tags == {}


@pytest.mark.parametrize(
    "source",
    [
        "<p>one</p>\r\n<p>two</p>\r\n",
        "<p>\u00e9 \u4f60\u597d \U0001f600</p>",
        "  <p>blanks</p>  \n\n ",
        "{% for x in y %}<p>{{ x }}</p>{% endfor %}",
        "<p>{{ {a: 'it''s', b: `${name}`} }}</p>",
        "<p>" + "x" * 99_993 + "</p>",
    ],
    ids=["crlf", "unicode", "blanks", "jinja", "braces and quotes", "longest"],
)
def test_the_source_is_kept_exactly(record, source):
    assert find_or_create(record(source=source)).template == source
    (version,) = versions(record().name)
    assert version.template == source
    assert version.is_text_prompt


def test_a_source_too_long_is_refused(record):
    with pytest.raises(RejectedError, match=r"100,001 characters .* 100,000"):
        find_or_create(record(source="x" * 100_001))


def test_runtime_and_schema_are_shown_where_static(record):
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    output = {"messages": [], "schema": schema, "runtime": {"model": "gpt-5", "maxTokens": 100, "topP": 0.5, "seed": 7}}
    find_or_create(record("both", output=output, static_fields=frozenset({"schema", "runtime"})))
    find_or_create(record("neither", output=output))
    static, dynamic = versions(record().name)

    assert static.response_format == schema
    assert static.model_config == {"model_name": "gpt-5", "max_tokens": 100, "top_p": 0.5, "seed": 7}
    assert dynamic.response_format is None
    assert dynamic.model_config is None


def test_a_schema_that_is_too_long_is_omitted(record):
    schema = {"type": "object", "description": "x" * 100_000}
    version = find_or_create(record(output={"messages": [], "schema": schema}, static_fields=frozenset({"schema"})))
    assert version.response_format is None


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"temperature": 0.2, "topK": 5}, {"temperature": 0.2, "top_k": 5}),
        ({"maxOutputTokens": 9, "stop": "END"}, {"max_tokens": 9, "stop_sequences": ["END"]}),
        ({"stopSequences": ["a"], "frequencyPenalty": 1}, {"stop_sequences": ["a"], "frequency_penalty": 1.0}),
        ({"provider": "openai", "presencePenalty": 0.5}, {"provider": "openai", "presence_penalty": 0.5}),
        ({"topP": 2, "temperature": "hot", "reasoningEffort": "low"}, {"reasoningEffort": "low"}),
        ({"extraParams": 1, "extra_params": {"a": 1}}, {"extraParams": 1, "extra_params": {"a": 1}}),
    ],
)
def test_runtime_becomes_mlflows_model_config(runtime, expected):
    assert model_config(runtime).to_dict() == expected


def test_a_name_that_the_user_gave_holds_for_several_files(record, caplog):
    """A prompt can move to another file and keep its history."""
    find_or_create(record("before", path="old/place.poml"))
    find_or_create(record("after", path="new/place.poml"))
    assert [one.tags["poml_path"] for one in versions(record().name)] == ["old/place.poml", "new/place.poml"]
    assert caplog.records == []


def test_a_registered_model_of_that_name_is_left_alone(record):
    MlflowClient().create_registered_model(record().name)
    with pytest.raises(RejectedError, match="registered model"):
        find_or_create(record())
    assert MlflowClient().search_model_versions(f"name = '{record().name}'") == []


@pytest.mark.parametrize("name", ["it's", "a b", "", "a`b", "ü"])
def test_a_name_that_mlflow_cannot_take_is_refused(record, name):
    with pytest.raises(RejectedError, match="name"):
        find_or_create(record(), name=name)


@pytest.mark.parametrize("known", [False, True], ids=["a new prompt", "a new content"])
def test_eight_concurrent_registrations_make_one_version(record, known, caplog, monkeypatch):
    """Several threads register a version; all but the lowest number are deleted again, which is logged."""
    caplog.set_level(logging.INFO, "pomlflow")
    if known:
        find_or_create(record("before"))
    all_have_searched, make = threading.Barrier(8), Registry._make

    def make_when_all_have_searched(*args: Any, **options: Any) -> Any:
        all_have_searched.wait(60)
        return make(*args, **options)

    monkeypatch.setattr(Registry, "_make", make_when_all_have_searched)
    got = in_eight_threads(lambda _: find_or_create(record()))
    left = versions(record().name)
    assert len(left) == 1 + known
    assert {version.uri for version in got} == {left[-1].uri}
    assert "at the same time" in caplog.text


def in_eight_threads(make: Any) -> list[Any]:
    """Run it in eight threads that start together."""
    ready, got = threading.Barrier(8), []

    def run(number: int) -> None:
        ready.wait(60)
        got.append(make(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    return got

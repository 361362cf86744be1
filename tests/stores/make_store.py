"""Make the store of version 0.1.0 that `tests/test_stored_by_0_1.py` reads.

Run it with pomlflow at commit 9fa9ab6 and mlflow 3.12.0, the lowest MLflow, so that each newer one can upgrade it::

    git worktree add OLD 9fa9ab6
    uv venv VENV && uv pip install --python VENV -e 'OLD[all]' mlflow==3.12.0 pillow
    VENV/bin/python tests/stores/make_store.py

It writes into its own folder `v0_1_0.zip` (the SQLite database, the artifacts and the prompt files as they were at the
end) and `v0_1_0.json` (the versions, and the links and replays of the traces, as 0.1.0 gave them). In the database,
`file:///STORE` stands for the folder of the store: replace it with the real one after unpacking.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import sqlite3
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", MLFLOW_ENABLE_ASYNC_TRACE_LOGGING="false")

import mlflow
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from PIL import Image

import pomlflow
from pomlflow import langchain as lc
from pomlflow import llama_index as li

HERE = Path(__file__).parent
PLACEHOLDER = "file:///STORE"

SUPPORT = """\
<poml>
  <system-msg>You answer for {{shop}}. <include src="../shared/tone.poml"/></system-msg>
  <system-msg><document src="terms.txt"/><table src="prices.csv"/></system-msg>
  <conversation messages="{{history}}"/>
  <human-msg><img src="box.png" syntax="multimedia"/>{{question}}</human-msg>
  <runtime model="gpt-5" temperature="0.2" maxTokens="200"/>
  <output-schema parser="json">{"type": "object", "properties": {"days": {"type": "integer"}}}</output-schema>
</poml>
"""
GREET = ("<poml><p>Hello {{name}}</p></poml>", "<poml><p>Hi {{name}}</p></poml>", "<poml><p>Dear {{name}}</p></poml>")
QA = """\
<poml>
  <system-msg><include src="../shared/tone.poml"/></system-msg>
  <human-msg><p>{{context_str}}</p><p>{{query_str}}</p></human-msg>
</poml>
"""
CHAT = '<poml><conversation messages="{{history}}"/><human-msg>{{question}}</human-msg></poml>'
WELCOME = "<poml><task>Welcome {{name}} to {{place}}.</task></poml>"
STYLED = "<poml><task>Say {{word}}.</task></poml>"
STYLESHEET = {"task": {"captionStyle": "plain"}}
PICKY = "<poml><p>{{order.total.toFixed(2)}}</p></poml>"
MEDIA = "<poml><p>{{text.length}}</p><img base64=\"{{data.toString('base64')}}\"/></poml>"

LC_HISTORY: list[BaseMessage] = [
    HumanMessage("Look."),
    AIMessage("", tool_calls=[{"id": "c1", "name": "look", "args": {"at": "sea", "deep": [1, None]}}]),
    ToolMessage("grey", tool_call_id="c1", name="look"),
    AIMessage([{"type": "text", "text": "Grey."}], id="a1", name="mate"),
]
LI_HISTORY = [
    ChatMessage(role="user", content="Look."),
    ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"at": "sea"})]
    ),
    ChatMessage(role="tool", content="grey", additional_kwargs={"tool_call_id": "c1", "name": "look"}),
]


def picture(seed: int) -> bytes:
    """A picture that is large enough to become an attachment."""
    made = io.BytesIO()
    Image.frombytes("RGB", (16, 16), random.Random(seed).randbytes(768)).save(made, "png")
    return made.getvalue()


def write(path: str, content: str | bytes) -> None:
    """Write a prompt file below the working folder."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


class Maker:
    """Runs one scenario after the other, and keeps the trace of each."""

    def __init__(self) -> None:
        self.traces: dict[str, str] = {}

    def trace(self, key: str, call: Callable[[], Any]) -> None:
        """Run something that makes one trace; it may fail."""
        before = mlflow.get_last_active_trace_id()
        with suppress(pomlflow.PomlError):
            call()
        assert pomlflow.flush(30)
        trace_id = mlflow.get_last_active_trace_id()
        assert trace_id != before, f"{key} made no trace"
        self.traces[key] = str(trace_id)


def write_prompts() -> None:
    """Write the files; a tone and a greeting are changed later."""
    write("shared/tone.poml", "<p>Be kind.</p>")
    write("shop/terms.txt", "Returns within 14 days.\n")
    write("shop/prices.csv", "item,price\nbox,3\nlid,1\n")
    write("shop/box.png", picture(1))
    write("shop/support.poml", SUPPORT)
    write("shop/greet.poml", GREET[0])
    write("desk/chat.poml", CHAT)
    write("desk/qa.poml", QA)


def model() -> Any:
    """What follows a prompt in the chains."""
    return FakeListChatModel(responses=["Hi!"]) | StrOutputParser()


def without_framework(maker: Maker) -> None:
    """Renders under autolog, each a trace of its own."""
    pomlflow.autolog()
    maker.trace("plain", lambda: pomlflow.render(Path("shop/greet.poml"), {"name": "Ada"}))
    write("shop/greet.poml", GREET[1])
    maker.trace("plain second version", lambda: pomlflow.render(Path("shop/greet.poml"), {"name": "Ada"}))
    write("shop/greet.poml", GREET[2])
    maker.trace("plain third version", lambda: pomlflow.render(Path("shop/greet.poml"), {"name": "Bo"}))
    maker.trace("named markup", lambda: pomlflow.render(WELCOME, {"name": "Ada", "place": "Rome"}, name="welcome"))
    maker.trace("poml()", lambda: pomlflow.poml("shop/greet.poml", {"name": "Cy"}))
    maker.trace("unnamed markup", lambda: pomlflow.render("<p>Hello {{name}}</p>", {"name": "Ada"}))
    styled = {"stylesheet": STYLESHEET, "chat": False, "name": "styled"}
    maker.trace("stylesheet, one text", lambda: pomlflow.render(STYLED, {"word": "yes"}, **styled))
    maker.trace("failed", lambda: pomlflow.render(PICKY, {"order": {"total": "3"}}, name="picky"))
    maker.trace("missing variable", lambda: pomlflow.render(Path("shop/greet.poml"), {}))
    odd = {"n": float("nan"), "data": b"caf\xc3\xa9", "big": 2**60, "none": None}
    markup = "<p>{{n}} {{data.toString()}} {{big}} {{none}}</p>"
    maker.trace("values that JSON has not", lambda: pomlflow.render(markup, odd, name="odd"))
    media = {"text": "data:image/png;base64," + base64.b64encode(picture(2)).decode(), "data": picture(2)}
    maker.trace("media", lambda: pomlflow.render(MEDIA, media, name="media"))
    pomlflow.configure(max_content=40)
    long = {"name": "Ada " * 40, "place": "Rome"}
    maker.trace("cut", lambda: pomlflow.render(WELCOME, long, name="welcome"))
    pomlflow.configure(max_content=0)
    pomlflow.autolog(disable=True)


def in_langchain(maker: Maker) -> None:
    """Chains with the handler."""
    config = {"callbacks": [lc.PomlCallbackHandler()]}
    support = lc.PomlPromptTemplate.from_file("shop/support.poml")
    given = {"shop": "Acme", "history": LC_HISTORY, "question": "Why?"}
    maker.trace("langchain, old tone", lambda: (support | model()).invoke(given, config))
    write("shared/tone.poml", "<p>Be brief.</p>")
    maker.trace("langchain, files and history", lambda: (support | model()).invoke(given, config))
    without = {"shop": "Acme", "question": "When?"}
    maker.trace("langchain, async", lambda: asyncio.run((support | model()).ainvoke(without, config)))
    missing = {"shop": "Acme"}
    maker.trace("langchain, missing variable", lambda: (support | model()).invoke(missing, config))
    welcome = lc.PomlPromptTemplate.from_template(WELCOME, name="welcome")
    bound = welcome.bind_to(FakeListChatModel(responses=["Hi!"])) | StrOutputParser()
    maker.trace("langchain, bind_to", lambda: bound.invoke({"name": "Bo", "place": "Oslo"}, config))
    masked = {"callbacks": [lc.PomlCallbackHandler(mask=_without_inputs)]}
    maker.trace("langchain, masked", lambda: (welcome | model()).invoke({"name": "Eve", "place": "Bonn"}, masked))
    same = {"callbacks": [lc.PomlCallbackHandler(mask=lambda content: content)]}
    maker.trace("langchain, same by mask", lambda: (welcome | model()).invoke({"name": "Eve", "place": "Bonn"}, same))
    quiet = lc.PomlPromptTemplate.from_file("shop/greet.poml", register=False)
    maker.trace("langchain, not registered", lambda: (quiet | model()).invoke({"name": "Ada"}, config))


def in_llama_index(maker: Maker) -> None:
    """A query engine and calls of a model with the handler."""
    llm = MockLLM()
    qa = li.PomlPromptTemplate.from_file("desk/qa.poml")
    nodes = [TextNode(id_="node-1", text="def f(x):\n\treturn  x\n\nbox  & lid")]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))
    with li.PomlCallbackHandler():
        engine = index.as_query_engine(llm=llm, text_qa_template=qa)
        maker.trace("llama_index, query", lambda: engine.query("What does\n\tf do?"))
        chat = li.PomlPromptTemplate.from_file("desk/chat.poml")
        maker.trace("llama_index, history", lambda: llm.predict(chat, history=LI_HISTORY, question="Why?"))
        picky = li.PomlPromptTemplate(PICKY, name="picky")
        maker.trace("llama_index, failed", lambda: llm.predict(picky, order={"total": None}))
        greet = li.PomlPromptTemplate.from_file("shop/greet.poml")
        maker.trace("llama_index, third version", lambda: llm.predict(greet, name="Dora"))
    with li.PomlCallbackHandler(mask=_without_inputs):
        maker.trace("llama_index, masked", lambda: llm.predict(greet, name="Eve"))


def from_the_registry(maker: Maker) -> None:
    """Prompts of the registry, by alias and by number, in both frameworks."""
    for name, version in (("shop.greet", 2), ("shop.support", 2), ("desk.qa", 1), ("welcome", 1)):
        mlflow.MlflowClient().set_prompt_alias(name, "production", version)
    support = lc.PomlPromptTemplate.from_registry("prompts:/shop.support@production")
    config = {"callbacks": [lc.PomlCallbackHandler()]}
    given = {"shop": "Acme", "question": "From where?"}
    maker.trace("langchain, registry", lambda: (support | model()).invoke(given, config))
    greet = li.PomlPromptTemplate.from_registry("shop.greet", version=1)
    with li.PomlCallbackHandler():
        maker.trace("llama_index, registry", lambda: MockLLM().predict(greet, name="Finn"))


def _without_inputs(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "inputs"}


def _expected(maker: Maker) -> dict[str, Any]:
    client = mlflow.MlflowClient()
    found = client.search_model_versions("tags.`mlflow.prompt.is_prompt` = 'true'")
    versions = {
        f"{one.name}/{one.version}": {
            "digest": one.tags["poml_sha256"],
            "aliases": sorted(client.get_prompt_version(one.name, one.version).aliases),
        }
        for one in sorted(found, key=lambda one: (one.name, int(one.version)))
    }
    return {"versions": versions, "traces": {key: _trace(one) for key, one in maker.traces.items()}}


def _trace(trace_id: str) -> Mapping[str, Any]:
    links = json.loads(mlflow.get_trace(trace_id).info.tags.get("mlflow.linkedPrompts", "[]"))
    return {
        "id": trace_id,
        "links": sorted(f"{link['name']}/{link['version']}" for link in links),
        "renders": [
            {
                "title": render.title,
                "path": render.path,
                "outcome": render.outcome,
                "differences": [[one.where, one.then, one.now] for one in render.differences],
            }
            for render in pomlflow.replay(trace_id).renders
        ],
    }


def _lines(expected: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each version and each trace."""
    parts = []
    for part, entries in expected.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _pack(folder: Path, target: Path) -> None:
    with sqlite3.connect(folder / "mlflow.db") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.upper().startswith(("VARCHAR", "TEXT")):
                    place = folder.as_uri(), PLACEHOLDER
                    database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", place)
    database.execute("VACUUM")
    database.close()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in sorted(one for one in folder.rglob("*") if one.is_file() and "__pycache__" not in one.parts):
            packed.write(file, file.relative_to(folder).as_posix())


def main() -> None:
    """Make the store, and write it with what is expected of it."""
    folder = Path(tempfile.mkdtemp()).resolve()
    (folder / "prompts").mkdir()
    os.chdir(folder / "prompts")
    mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
    identity = mlflow.create_experiment("shop", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=identity)
    maker = Maker()
    write_prompts()
    without_framework(maker)
    in_langchain(maker)
    in_llama_index(maker)
    from_the_registry(maker)
    assert pomlflow.flush(60)
    (HERE / "v0_1_0.json").write_text(_lines(_expected(maker)), encoding="utf-8", newline="\n")
    _pack(folder, HERE / "v0_1_0.zip")
    sys.stdout.write(f"{(HERE / 'v0_1_0.zip').stat().st_size:,} bytes, from {folder}\n")


if __name__ == "__main__":
    main()

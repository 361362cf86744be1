"""The names of POML's features in the requests of LangChain's clients: the table in the documentation.

    python -m tests.langchain.wire_table

regenerates it; `test_wire_frame.py` checks the clients against it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CLIENTS", "DOCUMENT", "FEATURES", "REFUSED", "Feature", "documented", "found", "table", "write"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "on-the-wire.md"
CLIENTS = ("ChatOpenAI", "ChatAnthropic", "ChatGoogleGenerativeAI", "ChatOllama")
REFUSED = "refused"


def _data(name: str) -> str:
    return base64.b64encode((Path(__file__).parents[1] / "corpus" / "assets" / name).read_bytes()).decode()


TONE, REPORT = _data("tone.wav"), _data("report.pdf")
PICTURE = re.compile("^iVBORw0KGgo")  # POML encodes the picture again
AS_URL = re.compile("^data:image/png;base64,iVBORw0KGgo")
PNG = "<img src='box.png' alt='a red box' syntax='multimedia'/>"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = (
    '<tool-definition name="weather" description="The weather.">'
    '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}</tool-definition>'
)
SCHEMA = (
    '<output-schema>{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}</output-schema>'
)
OPEN = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CLOSED = {**OPEN, "additionalProperties": False}
LOOK = (
    "<human-msg>Look.</human-msg><ai-msg><tool-request id='c1' name='shot' parameters=\"{{ {at: 1} }}\"/></ai-msg>"
    f"<tool-response id='c1' name='shot'><p>Here:</p>{PNG}</tool-response>"
)


@dataclass(frozen=True)
class Feature:
    """One feature of a POML file.

    Attributes:
        label: What the documentation calls it.
        markup: What is in the ``<poml>``.
        paths: For each client, its path in the request body; `REFUSED` where it is an error.
        values: For each client, what stands there; one for all, or one each.
        given: The prompt's variables.
    """

    label: str
    markup: str
    paths: tuple[str, ...]
    values: tuple[Any, ...]
    given: dict[str, Any] = field(default_factory=dict)

    def value(self, client: str) -> Any:
        """The value for a client."""
        return self.values[CLIENTS.index(client) if len(self.values) > 1 else 0]


def _setting(label: str, written: str, paths: tuple[str, str, str, str], *values: Any) -> Feature:
    return Feature(f"`<runtime {label}>`", f"<runtime {written}/><p>Hi</p>", paths, values)


FEATURES = [
    Feature(
        "`<system-msg>`",
        "<system-msg>Be kind.</system-msg><human-msg>Hi</human-msg>",
        ("messages[0].content", "system", "systemInstruction.parts[0].text", "messages[0].content"),
        ("Be kind.",),
    ),
    Feature(
        "`<human-msg>`",
        "<human-msg>Hi</human-msg>",
        ("messages[0].content", "messages[0].content", "contents[0].parts[0].text", "messages[0].content"),
        ("Hi",),
    ),
    Feature(
        "`<ai-msg>`",
        "<human-msg>Hi</human-msg><ai-msg>Yo</ai-msg><human-msg>So?</human-msg>",
        ("messages[1].content", "messages[1].content", "contents[1].parts[0].text", "messages[1].content"),
        ("Yo",),
    ),
    Feature(
        "`<img>`",
        f"<p>See {PNG}</p>",
        (
            "messages[0].content[1].image_url.url",
            "messages[0].content[1].source.data",
            "contents[0].parts[1].inlineData.data",
            "messages[0].images[0]",
        ),
        (AS_URL, PICTURE, PICTURE, PICTURE),
    ),
    Feature(
        "`<audio>`",
        "<p>Hear <audio src='tone.wav' syntax='multimedia'/></p>",
        ("messages[0].content[1].input_audio.data", REFUSED, "contents[0].parts[1].inlineData.data", REFUSED),
        (TONE, "audio is not supported", TONE, "audio not supported"),
    ),
    Feature(
        "a PDF in a history",
        "<conversation messages='{{h}}'/>",
        (
            "messages[0].content[1].file.file_data",
            "messages[0].content[1].source.data",
            "contents[0].parts[1].inlineData.data",
            REFUSED,
        ),
        (f"data:application/pdf;base64,{REPORT}", REPORT, REPORT, "file not supported"),
        {"h": [{"speaker": "human", "content": ["Read", {"type": "application/pdf", "base64": REPORT}]}]},
    ),
    Feature(
        "a picture in a `<document>` of Word",
        "<document src='report.docx'/>",
        (
            "messages[0].content[1].type",
            "messages[0].content[1].type",
            "contents[0].parts[1].inlineData.mime_type",
            "messages[0].images[0]",
        ),
        ("image_url", "image", "image/png", PICTURE),
    ),
    Feature(
        "`<tool-request>`",
        LOOK,
        (
            "messages[1].tool_calls[0].function.arguments",
            "messages[1].content[0].input",
            "contents[1].parts[0].functionCall.args",
            "messages[1].tool_calls[0].function.arguments",
        ),
        ('{"at": 1}', {"at": 1}, {"at": 1}, {"at": 1}),
    ),
    Feature(
        "text in a `<tool-response>`",
        LOOK,
        (
            "messages[2].content",
            "messages[2].content[0].content[0].text",
            "contents[2].parts[1].functionResponse.response.output[0].text",
            "messages[2].content",
        ),
        ("Here:\n\n[image/png: a red box]", "Here:", "Here:", "\nHere:"),
    ),
    Feature(
        "`<img>` in a `<tool-response>`",
        LOOK,
        (
            "messages[3].content[1].image_url.url",
            "messages[2].content[0].content[1].source.data",
            "contents[2].parts[0].inlineData.data",
            "messages[2].images[0]",
        ),
        (AS_URL, PICTURE, PICTURE, PICTURE),
    ),
    Feature(
        "`<tool-definition name=…>`",
        f"{TOOL}<p>Hi</p>",
        ("tools[0].function.name", "tools[0].name", "tools[0].functionDeclarations[0].name", "tools[0].function.name"),
        ("weather",),
    ),
    Feature(
        "`<tool-definition description=…>`",
        f"{TOOL}<p>Hi</p>",
        (
            "tools[0].function.description",
            "tools[0].description",
            "tools[0].functionDeclarations[0].description",
            "tools[0].function.description",
        ),
        ("The weather.",),
    ),
    Feature(
        "`<tool-definition>`'s schema",
        f"{TOOL}<p>Hi</p>",
        (
            "tools[0].function.parameters",
            "tools[0].input_schema",
            "tools[0].functionDeclarations[0].parameters.required",
            "tools[0].function.parameters",
        ),
        (PARAMETERS, PARAMETERS, ["city"], PARAMETERS),
    ),
    Feature(
        "`<output-schema>`",
        f"{SCHEMA}<p>Hi</p>",
        (
            "response_format.json_schema.schema",
            "output_config.format.schema",
            "generationConfig.responseJsonSchema",
            "format",
        ),
        (CLOSED, CLOSED, OPEN, OPEN),
    ),
    Feature(
        "`<tool-definition>` with `<output-schema>`",
        f"{TOOL}{SCHEMA}<p>Hi</p>",
        (
            "tools[0].function.strict",
            "tools[0].name",
            "tools[0].functionDeclarations[0].name",
            "tools[0].function.name",
        ),
        (True, "weather", "weather", "weather"),
    ),
    _setting("model=…", 'model="m-1"', ("model", "model", "the address", "model"), "m-1"),
    _setting(
        "temperature=…",
        'temperature="0.5"',
        ("temperature", "temperature", "generationConfig.temperature", "options.temperature"),
        0.5,
    ),
    _setting(
        "max-tokens=…",
        'max-tokens="9"',
        ("max_completion_tokens", "max_tokens", "generationConfig.maxOutputTokens", "options.num_predict"),
        9,
    ),
    _setting("top-p=…", 'top-p="0.5"', ("top_p", "top_p", "generationConfig.topP", "options.top_p"), 0.5),
    _setting(
        "top-k=…",
        'top-k="5"',
        (REFUSED, "top_k", "generationConfig.topK", "options.top_k"),
        "OpenAI does not support the <runtime> setting topK",
        5,
        5,
        5,
    ),
    _setting(
        "stop-sequences=…",
        "stop-sequences='[\"END\"]'",
        ("stop", "stop_sequences", "generationConfig.stopSequences", "options.stop"),
        ["END"],
    ),
    _setting(
        "seed=…",
        'seed="7"',
        ("seed", REFUSED, "generationConfig.seed", "options.seed"),
        7,
        "Anthropic does not support the <runtime> setting seed",
        7,
        7,
    ),
    *(
        _setting(
            f"{kind}-penalty=…",
            f'{kind}-penalty="0.5"',
            (f"{kind}_penalty", REFUSED, f"generationConfig.{kind}Penalty", f"options.{kind}_penalty"),
            0.5,
            f"Anthropic does not support the <runtime> setting {kind}Penalty",
            0.5,
            0.5,
        )
        for kind in ("frequency", "presence")
    ),
    Feature(
        '`<runtime tool-choice="required">`',
        f'<runtime tool-choice="required"/>{TOOL}<p>Hi</p>',
        ("tool_choice", "tool_choice.type", "toolConfig.functionCallingConfig.mode", "not sent"),
        ("required", "any", "ANY", None),
    ),
]


def found(body: dict[str, Any], address: str, path: str) -> Any:
    """Return the value at a place in a request."""
    if path == "the address":
        return address.rpartition("/")[2].partition(":")[0]
    value: Any = body
    if path == "not sent":
        return body.get("tool_choice")
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    return value


def table(features: Sequence[Feature] = FEATURES, clients: Sequence[str] = CLIENTS) -> str:
    """The table, in Markdown."""
    rows = [["POML", *(f"`{client}`" for client in clients)], ["---"] * (len(clients) + 1)]
    for feature in features:
        words = ("the address", "not sent", REFUSED)
        rows.append([feature.label, *(path if path in words else f"`{path}`" for path in feature.paths)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def documented(framework: str = "langchain") -> str:
    """The table as the documentation has it."""
    return _parts(framework)[1]


def write(framework: str, rows: str) -> None:
    """Write a table into the documentation."""
    head, _, tail = _parts(framework)
    DOCUMENT.write_text(f"{head}<!-- {framework} -->\n{rows}<!-- /{framework} -->\n{tail}", encoding="utf-8")


def _parts(framework: str) -> tuple[str, str, str]:
    """The documentation before a table, the table, and what follows."""
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {framework} -->\n")
    inner, _, tail = rest.partition(f"<!-- /{framework} -->\n")
    return head, inner, tail


if __name__ == "__main__":
    write("langchain", table())

"""A loopback server with the protocols of OpenAI, Anthropic, Google and Ollama, which keeps the requests.

The answers are scripted: a text, or calls of tools. A stream has two pieces. The tests check the requests.
Protocols: https://platform.openai.com/docs/api-reference/chat,
https://docs.anthropic.com/en/api/messages, https://ai.google.dev/api/generate-content and
https://docs.ollama.com/api/chat.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Call", "ModelServer", "Raw", "Refusal", "model_server", "picture", "response", "words"]


@dataclass(frozen=True)
class Call:
    """An answer that calls a tool."""

    name: str
    arguments: dict[str, Any]
    id: str = "call_1"


@dataclass(frozen=True)
class Raw:
    """An answer in the form of one provider: its response, or the events of a stream."""

    events: list[dict[str, Any]]


def response(text: str) -> Raw:
    """An answer in the form of OpenAI's Responses API."""
    content = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [content]}
    head = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m"}
    usage = {
        "input_tokens": 3,
        "output_tokens": 2,
        "total_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    tools = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return Raw([{**head, **tools, "output": [message], "usage": usage}])


class Refusal(str):
    """An answer that is a refusal, by OpenAI's and Anthropic's protocols."""

    __slots__ = ()


@dataclass
class ModelServer:
    """The address of the server, its answers, and the requests that it received.

    Attributes:
        url: Its address, without a path; OpenAI's clients want ``{url}/v1``.
        answers: Its answers in turn, from the first again after the last; a text, a list of calls, or a `Raw` response.
        bodies: The request bodies, in order.
        paths: Their paths.
        headers: Their headers, with keys in lower case.
    """

    url: str
    answers: list[str | list[Call] | Raw] = field(default_factory=lambda: ["the answer"])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the last request."""
        found: list[dict[str, Any]] = self.bodies[-1]["messages"]
        return found


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """Serve on a free port of this machine, until the block ends."""

    class Handler(BaseHTTPRequestHandler):  # HTTP/1.0: a connection for each request, so that none is left open
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = state.answers[len(state.bodies) % len(state.answers)]
            state.bodies.append(dict(body))
            state.paths.append(self.path)
            state.headers.append({key.lower(): value for key, value in self.headers.items()})
            protocol = _protocol_of(self.path)
            respond = (lambda *_: iter(answer.events)) if isinstance(answer, Raw) else protocol
            body["stream"] = body.get("stream", "streamGenerateContent" in self.path)
            self.send_response(200)
            if protocol is _ollama:
                self.send_header("content-type", "application/x-ndjson")
                self.end_headers()
                for line in respond(body, answer):
                    self.wfile.write(json.dumps(line).encode() + b"\n")
            elif body["stream"]:
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for event in respond(body, answer):
                    name = f"event: {event['type']}\n" if "type" in event else ""
                    self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
                if protocol is _openai:
                    self.wfile.write(b"data: [DONE]\n\n")
            else:
                (whole,) = respond(body, answer)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(whole).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = ModelServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _protocol_of(path: str) -> Callable[[dict[str, Any], str | list[Call]], Iterator[dict[str, Any]]]:
    if path.endswith("/messages"):
        return _anthropic
    if path.endswith("/api/chat"):
        return _ollama
    return _google if "enerateContent" in path else _openai


def _openai(body: dict[str, Any], answer: str | list[Call]) -> Iterator[dict[str, Any]]:
    """The completion, or its chunks."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    text = answer if isinstance(answer, str) else None
    calls = [
        {
            "index": index,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(() if isinstance(answer, str) else answer)
    ]
    key, why = "refusal" if isinstance(answer, Refusal) else "content", "tool_calls" if calls else "stop"
    if not body.get("stream"):
        message = {"role": "assistant", "content": None, key: text, **({"tool_calls": calls} if calls else {})}
        choice = {"index": 0, "message": message, "finish_reason": why}
        yield {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return
    half = len(text or "") // 2
    pieces: list[dict[str, Any]] = (
        [{"role": "assistant", "content": None}, {"tool_calls": calls}]
        if text is None
        else [{"role": "assistant", key: text[:half]}, {key: text[half:]}]
    )
    for delta, end in [*((piece, None) for piece in pieces), ({}, why)]:
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        yield {**head, "object": "chat.completion.chunk", "choices": [choice]}
    yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def _anthropic(body: dict[str, Any], answer: str | list[Call]) -> Iterator[dict[str, Any]]:
    """The message, or its events."""
    why = "refusal" if isinstance(answer, Refusal) else "end_turn" if isinstance(answer, str) else "tool_use"
    content: list[dict[str, Any]] = (
        [{"type": "text", "text": answer}]
        if isinstance(answer, str)
        else [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in answer]
    )
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": why,
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    if not body.get("stream"):
        yield message
        return
    yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    for index, block in enumerate(content):
        text = block.get("text") or json.dumps(block.get("input"))
        kind, key = ("text_delta", "text") if "text" in block else ("input_json_delta", "partial_json")
        empty = {"text": ""} if "text" in block else {"input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty}}
        for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
            yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, key: piece}}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": why, "stop_sequence": None},
        "usage": {"output_tokens": 2},
    }
    yield {"type": "message_stop"}


def _google(body: dict[str, Any], answer: str | list[Call]) -> Iterator[dict[str, Any]]:
    """The response, or its pieces."""
    parts: list[dict[str, Any]] = (
        (_halves(answer) if body["stream"] else [{"text": answer}])
        if isinstance(answer, str)
        else [{"functionCall": {"name": call.name, "args": call.arguments}} for call in answer]
    )
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    pieces = [[part] for part in parts] if body["stream"] else [parts]
    for piece in pieces:
        candidate = {"content": {"role": "model", "parts": piece}, "index": 0}
        yield {"candidates": [candidate | ({"finishReason": "STOP"} if piece is pieces[-1] else {})]} | (
            {"usageMetadata": usage} if piece is pieces[-1] else {}
        )


def _ollama(body: dict[str, Any], answer: str | list[Call]) -> Iterator[dict[str, Any]]:
    """The response, or its lines."""
    messages: list[dict[str, Any]] = (
        [{"content": half["text"]} for half in _halves(answer)]
        if isinstance(answer, str)
        else [
            {
                "content": "",
                "tool_calls": [{"function": {"name": call.name, "arguments": call.arguments}} for call in answer],
            }
        ]
    )
    if not body["stream"]:
        messages = [{**messages[-1], "content": "".join(message["content"] for message in messages)}]
    head = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
    for message in messages:
        yield {**head, "message": {"role": "assistant", **message}, "done": False}
    counts = {"prompt_eval_count": 3, "eval_count": 2, "total_duration": 1, "load_duration": 1, "eval_duration": 1}
    yield {**head, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", **counts}


def _halves(text: str) -> list[dict[str, Any]]:
    half = len(text) // 2
    return [{"text": piece} for piece in (text[:half], text[half:]) if piece]


def picture(message: dict[str, Any]) -> bytes:
    """The picture in a message, in either provider's protocol."""
    for block in message["content"]:
        if block["type"] == "image_url":
            head, _, found = block["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            return base64.b64decode(found)
        if block["type"] == "image":
            assert (block["source"]["type"], block["source"]["media_type"]) == ("base64", "image/png")
            return base64.b64decode(block["source"]["data"])
    raise AssertionError(message)


def words(content: Any) -> str:
    """The text of a content, in either provider's protocol."""
    return content if isinstance(content, str) else "".join(block["text"] for block in content)

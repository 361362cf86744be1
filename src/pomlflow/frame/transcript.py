"""Show the result of a render as readable text, on the command line and in tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pomlflow.content import REQUEST, RESPONSE, is_chat


def transcript(rendered: Any) -> str:
    """Return a render as a readable text: messages, tools, output schema and settings.

    It is meant for snapshot tests. A picture or sound is shown by its type, digest and size, so that changes show.

    Args:
        rendered: The result of `pomlflow.render`, of a LangChain prompt's ``invoke({…})``, or of a LlamaIndex prompt's
            ``render({…})``.

    Returns:
        The text.

    Raises:
        TypeError: `rendered` is none of these.

    Example:
        >>> import pomlflow
        >>> print(pomlflow.transcript(pomlflow.render("<poml><p>Hello</p><runtime temperature='0'/></poml>")))
        --- human
        Hello
        --- runtime
        {
          "temperature": 0
        }
    """
    frame = getattr(rendered, "frame", rendered)
    if not hasattr(frame, "output_schema"):
        raise TypeError(f"{type(rendered).__name__} is no render: pass what render() or invoke() of a prompt returns")
    output = frame.model_dump(mode="json")
    output["schema"] = output.pop("output_schema")
    return "\n".join(f"--- {title}\n{_text(content)}" for title, content in sections(output))


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2)


def sections(output: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a title (empty with ``chat=False``), and a text or JSON data, for each part of a render's output."""
    messages = output["messages"]
    if not is_chat(messages):
        yield "", "\n".join(_parts(messages))
    else:
        for message in messages:
            yield message["speaker"], "\n".join(_parts(message["content"]))
    for key in ("tools", "schema", "runtime"):
        if output.get(key) is not None:
            yield key, output[key]


def _parts(content: str | list[Any]) -> Iterator[str]:
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            yield part
        elif part["type"] == REQUEST:
            yield f"[calls {part['name']} {json.dumps(part['content'], ensure_ascii=False)}]"
        elif part["type"] == RESPONSE:
            yield f"[{part['name']} returns] " + "\n".join(_parts(part["content"]))
        else:
            data = part.get("base64", "")
            digest = hashlib.sha256(data.encode()).hexdigest()[:8]
            alt = f", {part['alt']}" if part.get("alt") else ""
            yield f"[{part['type']} {digest}, {len(data) * 3 // 4:,} bytes{alt}]"

"""The private methods of LlamaIndex's models and tools that bound models and tools call.

LlamaIndex has no public way to prepare a call with tools without making it, to read a tool's callbacks, or to find out
whether a model of OpenAI's has structured output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool


def prepare_chat_with_tools(llm: LLM, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments that ``llm.chat_with_tools()`` passes to the model's chat."""
    assert isinstance(llm, FunctionCallingLLM)  # noqa: S101
    return llm._prepare_chat_with_tools_compat(*args, **kwargs)


def validate_chat_with_tools(llm: LLM, response: ChatResponse, *args: Any, **kwargs: Any) -> ChatResponse:
    """Return a response, checked as ``llm.chat_with_tools()`` does it."""
    assert isinstance(llm, FunctionCallingLLM)  # noqa: S101
    return llm._validate_chat_with_tools_response(response, *args, **kwargs)


def has_structured_output(llm: LLM) -> bool:
    """Return whether OpenAI's API has structured output for the model."""
    found: Callable[[], bool] = getattr(llm, "_should_use_structure_outputs", lambda: False)
    return found()


def callbacks(tool: FunctionTool) -> dict[str, Any]:
    """Return the callbacks of a tool, as arguments of its class."""
    return {"callback": tool._callback, "async_callback": tool._async_callback}

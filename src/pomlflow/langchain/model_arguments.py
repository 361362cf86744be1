"""Translate a POML frame to the call arguments of one of LangChain's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel, BaseLanguageModel

from pomlflow.exceptions import PomlError, ToolError
from pomlflow.frame.schema import response_format, strict_form
from pomlflow.frame.settings import Provider, provider_of, provider_parameters, unless_given
from pomlflow.frame.tools import tool_specs
from pomlflow.record import RenderRecord

# upstream: langchain-ollama 1.1: a call with options drops the options of ChatOllama's own fields (these).
_OLLAMA_FIELDS = (
    "mirostat mirostat_eta mirostat_tau num_ctx num_gpu num_thread num_predict repeat_last_n repeat_penalty "
    "temperature seed stop tfs_z top_k top_p"
).split()
# upstream: langchain-google-genai 4.2-4.4: `model` of a call is ignored, and `candidate_count` before 4.3.
_GOOGLE_FIELDS = {"model": "model", "candidate_count": "n"}


@dataclass(frozen=True)
class ModelArguments:
    """The arguments of a model call."""

    model: BaseLanguageModel[Any]  # a copy with those of the frame's settings that the client ignores in a call
    values: dict[str, Any] = field(default_factory=dict)
    tool_choice: Any = None  # in the form that `bind_tools` of every client takes


def arguments(
    model: BaseLanguageModel[Any],
    record: RenderRecord,
    bound: Mapping[str, Any],
    given: Mapping[str, Any],
    own_tools: Sequence[dict[str, Any]] = (),
) -> ModelArguments:
    """Return the arguments of a model call for one render.

    The frame overrides the arguments that are `bound` to the model, except tools: the frame's are added to bound ones.
    Call-time arguments (`given`) override the frame. `own_tools` are used if the markup defines none.
    """
    output, label = record.result(), record.label
    runtime = model_settings(model, output.get("runtime"), label)
    values, schema = dict(runtime.values), output.get("schema")
    if schema is not None:
        values |= _structured_output(model, schema, label)
    strict = "response_format" in {*bound, *values, *given} and uses_chat_completions(model)
    if tools := [*(spec.openai() for spec in tool_specs(output)), *own_tools]:
        values |= _bound_tools(runtime.model, tools, runtime.tool_choice, label)
    if isinstance(config := bound.get("generation_config"), Mapping):  # Google's, which would override the file
        bound = {**bound, "generation_config": unless_given(config, values)}
    if before := bound.get("tools"):
        values["tools"] = _merged(before, values.get("tools") or [])
    if strict and "tools" in values:
        values["tools"] = [_to_strict(tool) for tool in values["tools"]]
    return ModelArguments(runtime.model, _override({**bound, **values}, given))


def model_settings(model: BaseLanguageModel[Any], runtime: Mapping[str, Any] | None, label: str) -> ModelArguments:
    """Translate ``<runtime>`` to the parameters of a model's client."""
    if not runtime:
        return ModelArguments(model)
    provider = provider_of(type(model))
    values = provider_parameters(runtime, provider, label)
    choice = _tool_choice(values.pop("tool_choice", None), provider)
    if "stop_sequences" in values:  # renamed to LangChain's own name; the provider's would override a caller's `stop`
        values["stop"] = values.pop("stop_sequences")
    if provider == "google" and (ignored := _GOOGLE_FIELDS.keys() & values.keys()):
        model = model.model_copy(update={_GOOGLE_FIELDS[name]: values.pop(name) for name in ignored})
    if provider == "ollama" and "options" in values:
        own = {name: getattr(model, name, None) for name in _OLLAMA_FIELDS}
        values["options"] = {**{name: value for name, value in own.items() if value is not None}, **values["options"]}
    return ModelArguments(model, values, choice)


def uses_chat_completions(model: BaseLanguageModel[Any]) -> bool:
    """Return whether a model calls OpenAI's chat completions.

    Their tools must be strict if there is an output schema, and the responses of tools must be texts.
    """
    return provider_of(type(model)) == "openai" and not getattr(model, "use_responses_api", False)


def _structured_output(model: BaseLanguageModel[Any], schema: Mapping[str, Any], label: str) -> dict[str, Any]:
    if not isinstance(model, BaseChatModel):
        raise PomlError(f"{label}: {type(model).__name__} is a text model and takes no <output-schema>")
    provider = provider_of(type(model))
    if provider == "google":
        return {"response_mime_type": "application/json", "response_schema": dict(schema)}
    if provider == "ollama":
        return {"format": dict(schema)}
    return {"response_format": response_format(schema)}


def _bound_tools(
    model: BaseLanguageModel[Any], tools: Sequence[dict[str, Any]], choice: Any, label: str
) -> dict[str, Any]:
    """Return the call arguments that the client's own `bind_tools` makes for the tools."""
    if not isinstance(model, BaseChatModel):
        raise ToolError(
            f"{label}: {type(model).__name__} is a text model and takes no tools: bind a chat model", _name(tools[0])
        )
    try:
        binding: Any = model.bind_tools(tools, **({} if choice is None else {"tool_choice": choice}))
    except NotImplementedError as error:
        raise ToolError(
            f"{label}: {type(model).__name__} takes no tools: bind a model that does, or leave them out",
            _name(tools[0]),
        ) from error
    return dict(getattr(binding, "kwargs", None) or {"tools": tools})


def _tool_choice(choice: Any, provider: Provider | None) -> Any:
    """Return a tool choice in the values that LangChain's clients share: ``any``, ``auto``, a tool's name."""
    if isinstance(choice, Mapping) and isinstance(choice.get("toolName"), str):  # the form of the Vercel AI SDK
        return choice["toolName"]
    if choice == "required":
        return "any"
    return {"type": "none"} if choice == "none" and provider == "anthropic" else choice


def _merged(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """Return both lists of tools, without the tools of the first whose names are in the second."""
    names = {_name(tool) for tool in after}
    return [*(tool for tool in before if _name(tool) is None or _name(tool) not in names), *after]


def _name(tool: Any) -> Any:
    """Return the name of a tool's function; None for a provider's own tool."""
    if not isinstance(tool, Mapping):
        return getattr(tool, "name", None)
    function = tool.get("function")
    return tool.get("name") if function is None else _name(function)


def _to_strict(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or function.get("strict"):
        return tool
    parameters = strict_form(function.get("parameters") or {"type": "object"})
    return {**tool, "function": {**function, "parameters": parameters, "strict": True}}


def _override(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the frame's arguments, overridden by the caller's."""
    made = {**unless_given(values, given), **given}
    if isinstance(config := values.get("generation_config"), Mapping):  # Google's, which would override the caller
        made["generation_config"] = {**unless_given(config, given), **(given.get("generation_config") or {})}
    if isinstance(options := values.get("options"), Mapping):  # Ollama's
        moved = {name: made.pop(name) for name in {*options, "stop"} if given.get(name) is not None}
        made["options"] = {**options, **moved, **(given.get("options") or {})}
    return made

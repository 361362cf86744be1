"""A program that uses every public name with its types. It is type-checked, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, assert_type

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.prompts import PromptTemplate

import pomlflow
import pomlflow.langchain as lc
import pomlflow.llama_index as li
from pomlflow.types import Frame, Speaker


def render(folder: Path) -> list[dict[str, Any]]:
    frame = pomlflow.render("<p>Hello {{name}}</p>", {"name": "Ada"})
    assert_type(frame, Frame)
    assert_type(frame.messages[0].speaker, Speaker)
    assert_type(frame.runtime, dict[str, Any] | None)
    assert_type(pomlflow.transcript(frame), str)
    plain: dict[str, Any] = pomlflow.render(
        folder / "a.poml", format="dict", name="a", timeout=5, register=False, chat=True
    )
    messages: list[dict[str, Any]] = pomlflow.render(
        "<p>a</p>", format="message_dict", base_dir=folder, stylesheet=plain
    )
    return messages


async def arender() -> dict[str, Any]:
    frame = await pomlflow.arender("<p>Hello</p>")
    assert_type(frame, Frame)
    plain: dict[str, Any] = await pomlflow.arender("<p>Hello</p>", format="dict")
    return plain


def settings(folder: Path) -> None:
    now = pomlflow.configure(timeout=5, prompt_root=folder, max_workers=2, allow_read=[folder], sandbox=True)
    assert_type(now.timeout, float)
    with pomlflow.configured(timeout=1) as block:
        assert_type(block.max_workers, int)
    assert_type(pomlflow.flush(timeout=1), bool)
    assert_type(pomlflow.packaged(folder)["code_paths"], list[str])
    assert_type(pomlflow.__version__, str)


def versions(since: datetime) -> str:
    return str(pomlflow.compare_versions("support", [3, "challenger"], experiment_ids=["1"], since=since, until=since))


def mask(content: dict[str, Any]) -> dict[str, Any] | None:
    return {"inputs": content["inputs"]}


def tracing(folder: Path) -> None:
    pomlflow.autolog(register=False, mask=mask, trace_dir=folder)
    pomlflow.autolog(disable=True)
    replayed = pomlflow.replay("tr-1", folder / "edited.poml")
    assert_type(replayed, pomlflow.Replay)
    assert_type(replayed.identical, bool)


def langchain(model: BaseChatModel, file: Path) -> None:
    prompt = lc.PomlPromptTemplate.from_file(file, name="support", partial_variables={"name": "Ada"})
    assert_type(prompt, lc.PomlPromptTemplate)
    value = prompt.invoke({"question": "Why?"})
    assert_type(value, lc.PomlChatPromptValue | lc.PomlStringPromptValue)
    assert_type(value.frame, Frame)
    assert_type(value.to_messages(), list[BaseMessage])
    assert_type(prompt.format_messages(question="Why?"), list[BaseMessage])
    assert_type(prompt.tools({"now": str}), list[BaseTool])
    assert_type(prompt.registry_name, str | None)
    for finding in prompt.validate():
        assert_type(finding, pomlflow.Finding)
        assert_type(finding.rule, str)
    handler = lc.PomlCallbackHandler(register=False, mask=mask)
    chain: Runnable[dict[str, Any], str] = prompt | model | StrOutputParser()
    assert_type(chain.invoke({"question": "Why?"}, config={"callbacks": [handler]}), str)
    assert_type(lc.to_poml(ChatPromptTemplate.from_messages([("human", "Hi")])), str)
    bound = prompt.bind_to(model, parse=True, tools={"now": str})
    bound.invoke({"question": "Why?"}, config={"callbacks": [handler]})
    middleware = lc.PomlMiddleware(prompt, tools={"now": str})
    assert_type(middleware.prompt, lc.PomlPromptTemplate)


async def langchain_async(prompt: lc.PomlPromptTemplate) -> None:
    value = await prompt.ainvoke({"question": "Why?"})
    assert_type(value.frame, Frame)
    opened = await lc.PomlPromptTemplate.afrom_registry("prompts:/support@production")
    assert_type(opened, lc.PomlPromptTemplate)
    assert_type(opened.version, int | None)


def llama_index(model: LLM, file: Path) -> None:
    prompt = li.PomlPromptTemplate.from_file(file, name="support")
    assert_type(prompt, li.PomlPromptTemplate)
    assert_type(prompt.partial_format(name="Ada"), li.PomlPromptTemplate)
    assert_type(prompt.format_messages(question="Why?"), list[ChatMessage])
    assert_type(prompt.format(question="Why?"), str)
    assert_type(prompt.bind_to(model).predict(question="Why?"), str)
    assert_type(prompt.agent_kwargs(model), dict[str, Any])
    with li.PomlCallbackHandler(register=False, mask=mask) as handler:
        handler.attach(model)
    assert_type(li.to_poml(PromptTemplate("Hi")), str)
    registered = li.PomlPromptTemplate.from_registry("support", alias="production", fallback=file)
    assert_type(registered.uri, str | None)


def events(event: li.PomlRenderEvent) -> None:
    assert_type(event.record.variables, Mapping[str, Any])


def errors(question: str) -> int | None:  # noqa: C901, PLR0912
    try:
        pomlflow.poml("<p>{{question}}</p>", {"question": question})
    except pomlflow.MissingVariableError as error:
        assert_type(error.variable, str)
        return error.line
    except pomlflow.RenderTimeoutError as error:
        assert_type(error.problems, tuple[pomlflow.Problem, ...])
    except pomlflow.RenderError as error:
        return error.column
    except (pomlflow.EngineBusyError, pomlflow.NodeNotFoundError, pomlflow.WorkerDiedError) as error:
        assert_type(str(error), str)
    except (
        pomlflow.PromptNotFoundError,
        pomlflow.NotPomlError,
        pomlflow.CandidateError,
        pomlflow.RegistryError,
    ) as error:
        assert_type(error.uri, str)
    except pomlflow.ToolArgumentsError as error:
        assert_type(error.problems, tuple[str, ...])
    except pomlflow.ToolError as error:
        assert_type(error.tool, str)
    except pomlflow.AnswerError as error:
        assert_type(error.answer, str)
    except pomlflow.SettingError as error:
        assert_type(error.setting, str)
    except pomlflow.VariableError as error:
        assert_type(error.variable, str)
    except pomlflow.ConversionError as error:
        assert_type(error.part, str)
    except (pomlflow.ConfigurationError, pomlflow.SchemaError, pomlflow.TraceNotFoundError):
        return None
    except (pomlflow.TemplateNotFoundError, pomlflow.EngineError, pomlflow.PomlError):
        raise
    return None


def outputs(error: lc.PomlOutputParserError | lc.PomlRefusalError | li.PomlRefusalError) -> str:
    return error.answer


async def stream(chain: Runnable[dict[str, Any], str]) -> AsyncIterator[str]:
    async for part in chain.astream({"question": "Why?"}):
        yield part

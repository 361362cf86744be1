"""The interface of a framework under test."""

from __future__ import annotations

import asyncio
import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Answer = str | Callable[[list[str]], str]  # of a scripted model: a text, or a function of the texts of its messages


class Framework(ABC):
    """A framework's prompts and handler, and how its users run them.

    Attributes:
        prompts: Its `PomlPromptTemplate`.
        handler: Its `PomlCallbackHandler`.
    """

    prompts: Any
    handler: Any

    @abstractmethod
    def messages(self, prompt: Any, **variables: Any) -> list[str]:
        """Render, and return the text of each message."""

    @abstractmethod
    async def amessages(self, prompt: Any, **variables: Any) -> list[str]:
        """Render on an event loop."""

    @abstractmethod
    def run(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Run the prompt with a scripted model as users do, and return the answer.

        A new handler traces it, or `handler`; none where that is False.
        """

    @abstractmethod
    async def arun(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Async version of `run`."""

    @abstractmethod
    def stream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Run with a stream, and read it to its end."""

    @abstractmethod
    async def astream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Async version of `stream`."""

    def batch(self, prompt: Any, count: int, *, handler: Any = None, **variables: Any) -> list[str]:
        """Run several times at once: in a batch, or else in threads."""
        with ThreadPoolExecutor() as threads:
            runs = [threads.submit(self.run, prompt, handler=handler, **variables) for _ in range(count)]
            return [run.result() for run in runs]

    async def abatch(self, prompt: Any, count: int, *, handler: Any = None, **variables: Any) -> list[str]:
        """Run several times at once on an event loop: in a batch, or else in tasks."""
        return await asyncio.gather(*(self.arun(prompt, handler=handler, **variables) for _ in range(count)))

    @abstractmethod
    def run_attached(self, prompt: Any, handler: Any, *, everywhere: bool, **variables: Any) -> str:
        """Run with a handler that is attached to the model alone, or to the whole framework."""

    @abstractmethod
    def run_step(self, step: Callable[[str], str], handler: Any) -> list[list[str]]:
        """Run a function as a step of the framework; return the spans around the function in each trace."""

    @abstractmethod
    async def arun_step(self, step: Callable[[str], Awaitable[str]], handler: Any) -> list[list[str]]:
        """Async version of `run_step`."""

    @abstractmethod
    def run_agent(self, tool: Callable[[str], str]) -> list[str]:
        """Run an agent whose model calls a tool with ``name="Ada"``; return the last spans around the tool."""

    @abstractmethod
    def client(self, name: str, url: str) -> Any:
        """Make the real client of a provider, for a server at `url`; skip the test where it is not installed."""

    @abstractmethod
    def send(self, prompt: Any, client: Any, *, bound: bool = False, **variables: Any) -> str:
        """Send the prompt to a real client, in a chain or bound to it; return the answer."""

    @abstractmethod
    def streams(self, prompt: Any, client: Any, **variables: Any) -> list[str]:
        """Stream the answer of a real client, and once more on an event loop; return both answers."""

    @abstractmethod
    def call_of_tool(self, prompt: Any, client: Any, **variables: Any) -> Any:
        """Send the prompt; return the model's message, which calls a tool."""

    @abstractmethod
    def tool_result(self, text: str, call_id: str) -> Any:
        """Make the message of a tool's result."""

    @abstractmethod
    def send_messages(self, client: Any, question: str, *messages: Any) -> None:
        """Send a question and messages to the client, without a prompt."""

    @abstractmethod
    def mlflow_autolog(self, *, disable: bool = False) -> None:
        """Switch MLflow's autolog of this framework."""

    @abstractmethod
    def render(self, prompt: Any, **variables: Any) -> Any:
        """Return the framework's object of a render, with POML's frame."""

    @abstractmethod
    def hooked(self) -> list[Any]:
        """The handlers that are registered with the framework for the whole process."""

    @abstractmethod
    def partial(self, prompt: Any, **variables: Any) -> Any:
        """Return the prompt with values for some of its variables."""

    @abstractmethod
    def variables(self, prompt: Any) -> list[str]:
        """The variables that the framework sees."""

    @abstractmethod
    def history(self) -> list[Any]:
        """The framework's messages with a tool's call and result, which POML's messages cannot hold in full."""

    def text(self, prompt: Any, **variables: Any) -> str:
        """Render to one text."""
        return "\n".join(self.messages(prompt, **variables))

    def copies(self, prompt: Any) -> list[Any]:
        """Copy a prompt in each way."""
        return [copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt)), prompt.model_copy()]

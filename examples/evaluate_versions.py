"""Two versions of a prompt, evaluated, compared, and rolled out step by step. Runs offline, without a key.

python examples/evaluate_versions.py
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from mlflow.genai.datasets import create_dataset
from mlflow.genai.scorers import scorer

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

SUPPORT = "<poml><system-msg>Answer {}.</system-msg><human-msg>{{{{question}}}}</human-msg></poml>"
COLUMNS = ["traces", "error_rate", "total_tokens", "exact/mean"]


def main() -> None:
    """Evaluate both versions on a data set, then serve some users with each."""
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute().as_posix()}")
    experiment = mlflow.set_experiment("support")
    for alias, how in (("champion", "at length"), ("challenger", "in one word")):
        version = mlflow.genai.register_prompt("support", SUPPORT.format(how))
        mlflow.genai.set_prompt_alias("support", alias, version.version)
    champion, challenger = (
        PomlPromptTemplate.from_registry("support", alias=alias) for alias in ("champion", "challenger")
    )
    handler = PomlCallbackHandler()

    def ask(prompt: PomlPromptTemplate, question: str) -> str:
        chain = prompt | ScriptedChatModel() | StrOutputParser()
        return chain.invoke({"question": question}, config={"callbacks": [handler]})

    questions = create_dataset("questions", experiment_id=[experiment.experiment_id])
    questions.merge_records(
        [
            {"inputs": {"question": f"Is {title} in stock?"}, "expectations": {"expected_response": "Yes"}}
            for title in ("Emma", "Persuasion", "Sanditon")
        ]
    )
    for prompt in (champion, challenger):
        with mlflow.start_run(run_name=f"support {prompt.version}"):
            mlflow.genai.evaluate(
                data=questions,
                predict_fn=lambda question, prompt=prompt: ask(prompt, question),
                scorers=[exact],
            )
    pomlflow.flush()
    print("evaluated:", pomlflow.compare_versions("support", [1, 2])[COLUMNS], sep="\n")

    mlflow.set_experiment("support in production")

    def prompt_for(user: str, percent: int) -> PomlPromptTemplate:
        return challenger if zlib.crc32(user.encode()) % 100 < percent else champion

    users = [f"user {number}" for number in range(20)]
    for user in users:
        ask(prompt_for(user, percent=25), "Is Emma in stock?")
    pomlflow.flush()
    for trace in mlflow.search_traces(return_type="list", include_spans=False):
        mlflow.log_feedback(
            trace_id=trace.info.trace_id, name="helpful", value="Yes" in str(trace.info.response_preview)
        )
    table = pomlflow.compare_versions("support", ["champion", "challenger"])
    print("in production:", table[["traces", "error_rate", "helpful/mean"]], sep="\n")
    moved_back = [user for user in users if prompt_for(user, 25) is challenger and prompt_for(user, 50) is champion]
    print(f"with 25 and then 50 percent, {len(moved_back)} of {len(users)} users would go back")


@scorer
def exact(outputs: str, expectations: dict[str, Any]) -> bool:
    """Return whether the answer is the expected one."""
    return outputs == expectations["expected_response"]


class ScriptedChatModel(BaseChatModel):
    """A fake model that answers briefly if the instructions say so."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        text = "Yes" if "in one word" in str(messages[0].content) else "It is, since Monday."
        usage = {"input_tokens": 12, "output_tokens": len(text.split()), "total_tokens": 12 + len(text.split())}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])


if __name__ == "__main__":
    main()

"""A LlamaIndex query engine, as an MLflow model from code."""

from importlib.resources import files

import mlflow
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.query_engine import CustomQueryEngine

import pomlflow
from pomlflow.llama_index import PomlPromptTemplate

pomlflow.autolog()
prompt = PomlPromptTemplate.from_file(files("shop") / "support.poml")


class Support(CustomQueryEngine):
    """A query engine that answers a question with one call of the model."""

    llm: LLM

    def custom_query(self, query_str: str) -> str:
        """Answer a question."""
        return self.llm.predict(prompt, question=query_str)


mlflow.models.set_model(Support(llm=MockLLM()))

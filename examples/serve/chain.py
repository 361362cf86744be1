"""A LangChain chain, as an MLflow model from code."""

from importlib.resources import files

import mlflow
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser

import pomlflow
from pomlflow.langchain import PomlPromptTemplate

pomlflow.autolog()
prompt = PomlPromptTemplate.from_file(files("shop") / "support.poml")
model = FakeListChatModel(responses=["On the second shelf."])
mlflow.models.set_model(prompt | model | StrOutputParser())

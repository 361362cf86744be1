"""An agent with the interface of OpenAI's Responses API, as an MLflow model from code."""

from importlib.resources import files
from uuid import uuid4

import mlflow
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse

import pomlflow
from pomlflow.langchain import PomlPromptTemplate

pomlflow.autolog()
prompt = PomlPromptTemplate.from_file(files("shop") / "support.poml")
model = FakeListChatModel(responses=["On the second shelf."])
chain = prompt | model | StrOutputParser()


class Support(ResponsesAgent):
    """An agent that answers the last message."""

    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        """Answer the last message."""
        answer = chain.invoke({"question": request.input[-1].content})
        return ResponsesAgentResponse(output=[self.create_text_output_item(answer, str(uuid4()))])


mlflow.models.set_model(Support())

"""Log one prompt in three MLflow models of different flavors. Runs offline, without a key; needs the package langchain.

cd examples/serve
python log_models.py
mlflow models serve --env-manager local --port 5001 --model-uri models:/m-…
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow

import pomlflow


def main() -> None:
    """Log the models, and show how each is served."""
    mlflow.set_experiment("support")
    packaged = pomlflow.packaged("shop")
    logged = {
        "chain": mlflow.langchain.log_model("chain.py", name="chain", **packaged),
        "agent": mlflow.pyfunc.log_model(python_model="agent.py", name="agent", **packaged),
    }
    try:
        version("llama-index")
        logged["engine"] = mlflow.llama_index.log_model("engine.py", name="engine", **packaged)
    except PackageNotFoundError:
        print("engine: not logged, since MLflow needs the package llama-index for it")
    for name, model in logged.items():
        print(f"{name}: mlflow models serve --env-manager local --model-uri {model.model_uri}")


if __name__ == "__main__":
    main()

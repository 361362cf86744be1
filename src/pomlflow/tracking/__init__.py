"""Store renders in MLflow, as spans and prompt versions."""

"""Renders to MLflow: spans and prompt versions."""

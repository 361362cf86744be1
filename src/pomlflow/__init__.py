"""POML prompts for LangChain and LlamaIndex, rendered warm, traced and registered in MLflow."""

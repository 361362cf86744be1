"""POML prompts for LangChain."""

"""POML prompts for LlamaIndex."""

"""The shop's prompts."""

"""The real clients of four providers, connected to a local server."""

from __future__ import annotations

from typing import Any

__all__ = ["client_of"]


def client_of(name: str, url: str) -> Any:
    """The real client of that class.

    Args:
        name: Its class.
        url: The server's address.

    Returns:
        The client; None where it is not installed.
    """
    try:
        if name == "ChatOpenAI":
            from langchain_openai import ChatOpenAI

            return ChatOpenAI(model="gpt-4o", base_url=f"{url}/v1", api_key="none", max_retries=0)
        if name == "ChatAnthropic":
            from langchain_anthropic import ChatAnthropic

            return ChatAnthropic(model="claude-test", base_url=url, api_key="none", max_retries=0)
        if name == "ChatOllama":
            from langchain_ollama import ChatOllama

            return ChatOllama(model="llama", base_url=url, num_ctx=77)
        from langchain_google_genai import ChatGoogleGenerativeAI
    except ImportError:
        return None
    return ChatGoogleGenerativeAI(model="gemini-test", google_api_key="none", base_url=url, max_retries=1)

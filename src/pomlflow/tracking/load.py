"""Prompt versions out of MLflow's registry: by name, number or alias, within a bounded time."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import set_server_request_workspace

from pomlflow.exceptions import ConfigurationError, PromptNotFoundError, RegistryError
from pomlflow.template.inference import infer
from pomlflow.tracking.background import knock, store_errors
from pomlflow.tracking.bounded import bounded
from pomlflow.tracking.bundle import FILES
from pomlflow.tracking.contents import PromptContent, content_of, text_of
from pomlflow.tracking.publish import Place, client_of

__all__ = ["Reference", "first_of", "load"]

_URI: Final = re.compile(r"prompts:/([^/@]+)(?:/(\d+)|@([\w-]+))?")
_NOT_FOUND: Final = {
    "RESOURCE_DOES_NOT_EXIST",
    "NOT_FOUND",
    "INVALID_PARAMETER_VALUE",  # an alias that is not there, on SQL stores; a model of this name
}


class Reference(NamedTuple):
    """What a version is asked for by; the newest where there is neither number nor alias.

    Attributes:
        name: The prompt's name.
        number: The version's.
        alias: What the version is called at the moment.
    """

    name: str
    number: int | None = None
    alias: str | None = None

    @classmethod
    def of(cls, name_or_uri: str, version: int | str | None = None, alias: str | None = None) -> Reference:
        """Read what a user gave.

        Args:
            name_or_uri: A prompt's name, ``prompts:/name/3`` or ``prompts:/name@alias``.
            version: The version's number, beside a name.
            alias: An alias, beside a name.

        Raises:
            ConfigurationError: This names no version, or two.

        Example:
            >>> Reference.of("prompts:/support@production").uri
            'prompts:/support@production'
            >>> Reference.of("support", version=3).uri
            'prompts:/support/3'
        """
        if version is not None and alias is not None:
            raise ConfigurationError(f"the prompt {name_or_uri!r}: give version= or alias=, not both")
        if not name_or_uri.startswith("prompts:"):
            uri = f"prompts:/{name_or_uri}"
            uri += f"/{version}" if version is not None else f"@{alias}" if alias is not None else ""
        elif version is not None or alias is not None:
            raise ConfigurationError(f"{name_or_uri!r} is a URI: write the version or alias into it, or give a name")
        else:
            uri = name_or_uri
        found = _URI.fullmatch(uri)
        if found is None:
            raise ConfigurationError(f"{uri!r} names no prompt: write prompts:/name/3 or prompts:/name@alias")
        name, number, called = found.groups()
        return cls(name, None if number is None else int(number), None if called == "latest" else called)

    @property
    def uri(self) -> str:
        """As MLflow spells it."""
        return f"prompts:/{self.name}" + (
            f"/{self.number}" if self.number is not None else f"@{self.alias or 'latest'}"
        )

    def fetch(self, place: Place) -> PromptContent:
        """Read the version from the store, however long it takes.

        Args:
            place: The registry.

        Raises:
            PromptNotFoundError: There is none.
            NotPomlError: It is not POML.
            RegistryError: It is not what was registered.
            MlflowException: The registry failed, or is away.
        """
        client = client_of(place)
        found: PromptVersion | None
        try:
            if self.number is not None:
                found = client.get_prompt_version(self.name, self.number)
            else:
                found = client.get_prompt_version_by_alias(self.name, self.alias or "latest")
        except MlflowException as error:
            if error.error_code not in _NOT_FOUND:
                raise
            raise PromptNotFoundError(
                f"MLflow's registry does not have {self.uri} ({error.message})", self.uri
            ) from error
        if found is None:
            raise PromptNotFoundError(f"MLflow's registry does not have {self.uri}", self.uri)
        return content_of(found, _inherited(client, found))


def _inherited(client: MlflowClient, version: PromptVersion) -> dict[str, str] | None:
    """The tags of the last version before it that has files, where it names some and was registered without any.

    So MLflow's optimisers, which register a text and nothing else, can change a prompt that includes files.
    """
    if version.tags.keys() & {FILES, "poml_sha256"} or not version.is_text_prompt:
        return None
    named = infer(text_of(version), Path(os.sep), read=lambda _: None)
    if not (named.includes or named.assets):
        return None
    query = f"name = '{version.name}' AND tags.`mlflow.prompt.is_prompt` = 'true'"
    for other in client.search_model_versions(query, max_results=10, order_by=["version_number DESC"]):
        if int(other.version) < int(version.version) and FILES in other.tags:
            return dict(other.tags)
    return None


def load(
    name_or_uri: str, *, version: int | str | None = None, alias: str | None = None, timeout: float = 10.0
) -> PromptContent:
    """Load a version out of the registry that is set now.

    Args:
        name_or_uri: A prompt's name (its newest version), ``prompts:/name/3`` or ``prompts:/name@alias``.
        version: The version's number, beside a name.
        alias: An alias, beside a name.
        timeout: Seconds to wait at most; MLflow's own client waits for minutes for a server that is away.

    Returns:
        All that the version holds.

    Raises:
        PromptNotFoundError: There is no such version.
        NotPomlError: It is not POML.
        RegistryError: The registry is away, or the version is not what was registered.
        ConfigurationError: The arguments name no version.

    Example:
        >>> load("prompts:/support@production").source  # doctest: +SKIP
        '<poml>…'
    """
    return first_of(Reference.of(name_or_uri, version, alias), Place.now(), timeout)


def first_of(reference: Reference, place: Place, timeout: float) -> PromptContent:
    """Load a version while somebody waits for it.

    Args:
        reference: What is asked for.
        place: Where.
        timeout: Seconds to wait at most.

    Returns:
        All that the version holds.

    Raises:
        RegistryError: As `load` raises it.
    """

    def fetch() -> PromptContent:
        if place.workspace:
            set_server_request_workspace(place.workspace)
        knock(place.registry)
        return reference.fetch(place)

    try:
        return bounded(fetch, timeout)
    except RegistryError:
        raise
    except store_errors() as error:
        uri = reference.uri
        raise RegistryError(f"MLflow's registry cannot give {uri}: {error}", uri) from error

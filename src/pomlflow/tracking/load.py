"""Load prompt versions from MLflow's registry by name, number or alias, within a time limit."""

from __future__ import annotations

import contextvars
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException

from pomlflow.exceptions import ConfigurationError, NotPomlError, PromptNotFoundError, RegistryError
from pomlflow.record import PromptFile, content_digest
from pomlflow.template.inference import infer
from pomlflow.template.markup import is_poml
from pomlflow.tracking.bundle import FILES_TAG, Bundle, unpack
from pomlflow.tracking.stores import Stores, store_errors
from pomlflow.tracking.versions import DIGEST_TAG, Registry, text_of

_URI: Final = re.compile(r"prompts:/([^/@]+)(?:/(\d+)|@([\w-]+))?")
_MORE_TIME: Final = "; try again, or allow more time with timeout= (--timeout on the command line)"
_NOT_FOUND: Final = {
    "RESOURCE_DOES_NOT_EXIST",
    "NOT_FOUND",
    "INVALID_PARAMETER_VALUE",  # an alias that does not exist, on SQL stores; a model of this name
}


@dataclass(frozen=True)
class PromptContent:
    """The checked content of a prompt version: its markup, and the same digest as that of a template."""

    version: PromptVersion  # read its `template` at each use: MLflow's optimisers replace it during their trials
    source: str
    digest: str
    bundle: Bundle

    @property
    def uri(self) -> str:
        """``prompts:/name/number``."""
        return str(self.version.uri)

    @property
    def identity(self) -> tuple[str, str, str]:
        """The version's URI, digest and model config: what a change of the prompt's content changes."""
        return self.uri, self.digest, repr(self.version.model_config)

    @classmethod
    def of(cls, version: PromptVersion, inherited_tags: Mapping[str, str] | None = None) -> PromptContent:
        """Read and check a version; with `inherited_tags`, the tags of another version, its files come from those."""
        uri = str(version.uri)
        if not version.is_text_prompt:
            raise NotPomlError(f"{uri} is a chat prompt, not POML: load it with mlflow.genai.load_prompt", uri)
        source, expected = text_of(version), version.tags.get(DIGEST_TAG)
        if expected is None and not is_poml(source):
            start = source if len(source) <= 40 else f"{source[:39]}…"  # noqa: PLR2004 - fits into a line
            raise NotPomlError(
                f"{uri} is plain text, not POML ({start!r}): load it with mlflow.genai.load_prompt, or register it "
                "with <poml> around it",
                uri,
            )
        try:
            bundle = unpack(inherited_tags or version.tags)
        except ValueError as error:
            raise RegistryError(f"{uri} is not what was registered: {error}. Register it again", uri) from error
        digest = content_digest(source, [PromptFile(file.path, file.sha256, Path()) for file in bundle.files])
        if expected not in {None, digest}:
            raise RegistryError(
                f"{uri} is not what was registered: its content has the digest {digest[:12]}…, its tag {DIGEST_TAG} "
                f"is {str(expected)[:12]}…. Register it again; do not copy the tags of another version",
                uri,
            )
        return cls(version, source, digest, bundle)


class Reference(NamedTuple):
    """A prompt's name with a version's number or an alias; without both, it refers to the newest version."""

    name: str
    number: int | None = None
    alias: str | None = None

    @classmethod
    def of(cls, name_or_uri: str, version: int | str | None = None, alias: str | None = None) -> Reference:
        """Parse a name with a number or an alias, or a URI; raise a `ConfigurationError` if it is invalid."""
        if version is not None and alias is not None:
            raise ConfigurationError(f"the prompt {name_or_uri!r}: give version= or alias=, not both")
        uri = name_or_uri
        if not uri.startswith("prompts:"):
            uri = f"prompts:/{name_or_uri}"
            uri += f"/{version}" if version is not None else f"@{alias}" if alias is not None else ""
        elif version is not None or alias is not None:
            raise ConfigurationError(f"{uri!r} is a URI: write the version or alias into it, or use a name")
        found = _URI.fullmatch(uri)
        if found is None:
            raise ConfigurationError(f"{uri!r} names no prompt: write prompts:/name/3 or prompts:/name@alias")
        name, number, alias = found.groups()
        return cls(name, None if number is None else int(number), None if alias == "latest" else alias)

    @property
    def uri(self) -> str:
        """The reference in MLflow's spelling."""
        version = f"@{self.alias or 'latest'}" if self.number is None else f"/{self.number}"
        return f"prompts:/{self.name}{version}"

    def fetch(self, stores: Stores) -> PromptContent:
        """Read the version from the store; raise a `RegistryError` or MLflow's error. It may block for minutes."""
        client, found, why = stores.client(), None, ""
        try:
            if self.number is not None:
                found = client.get_prompt_version(self.name, self.number)
            else:
                found = client.get_prompt_version_by_alias(self.name, self.alias or "latest")
        except MlflowException as error:
            if error.error_code not in _NOT_FOUND:
                raise
            why = f" ({error.message})"
        if found is None:
            raise PromptNotFoundError(f"MLflow's registry does not have {self.uri}{why}", self.uri)
        return PromptContent.of(found, _inherited_tags(Registry(client, stores.registry), found))


def load(
    name_or_uri: str, *, version: int | str | None = None, alias: str | None = None, timeout: float = 10.0
) -> PromptContent:
    """Load a version from the registry that is set now within `timeout` seconds, or raise a `RegistryError`."""
    reference = Reference.of(name_or_uri, version, alias)
    try:
        return fetch_within(timeout, reference, Stores.current())
    except store_errors() as error:
        uri, remedy = reference.uri, _MORE_TIME if isinstance(error, TimeoutError) else ""
        raise RegistryError(f"{uri} cannot be loaded from MLflow's registry: {error}{remedy}", uri) from error


def fetch_within(timeout: float, reference: Reference, stores: Stores) -> PromptContent:
    """Return or raise what `Reference.fetch` does in another thread; after `timeout` seconds raise a TimeoutError."""
    # upstream: mlflow 3.12-3.18: its client retries for 247 s while a server is unreachable; a call has no limit.
    future: Future[PromptContent] = Future()

    def run() -> None:
        try:
            future.set_result(reference.fetch(stores))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            future.set_exception(error)

    context = contextvars.copy_context()  # with MLflow's workspace
    try:
        threading.Thread(target=context.run, args=(run,), name="pomlflow-registry-load", daemon=True).start()
    except RuntimeError:  # from Python 3.12 on no thread can start while the interpreter ends
        run()
    wait([future], timeout)
    if not future.done():
        raise TimeoutError(f"no answer within {timeout:g} s")
    return future.result()


def _inherited_tags(registry: Registry, version: PromptVersion) -> dict[str, str] | None:
    """Return the tags of the last version with files, for an optimiser's text that names files and has no tags."""
    if version.tags.keys() & {FILES_TAG, DIGEST_TAG} or not version.is_text_prompt:
        return None
    named = infer(text_of(version), Path(os.sep), read=lambda _: None)
    if not (named.includes or named.assets):
        return None
    other = registry.last_with_files(str(version.name), int(version.version))
    return None if other is None else dict(other.tags)

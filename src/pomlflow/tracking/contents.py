"""What a prompt version holds: the markup, the files that travelled with it, and whether they are what they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlflow.entities.model_registry import PromptVersion
from mlflow.prompt.constants import PROMPT_TEXT_TAG_KEY

from pomlflow.exceptions import NotPomlError, RegistryError
from pomlflow.record import PromptFile, content_digest
from pomlflow.template.markup import is_poml
from pomlflow.tracking.bundle import Enclosures, opened

__all__ = ["PromptContent", "content_of", "text_of"]

_DIGEST: Final = "poml_sha256"


@dataclass(frozen=True)
class PromptContent:
    """All that a prompt version holds, checked.

    Attributes:
        version: MLflow's version. Its `template` is read where it is used: MLflow's optimisers replace that property.
        source: The markup that was registered.
        digest: What the content is known by, as `pomlflow.template.Template.digest` is: equal digests are equal
            contents, files included.
        enclosures: Its files.
    """

    version: PromptVersion
    source: str
    digest: str
    enclosures: Enclosures

    @property
    def name(self) -> str:
        """The prompt's name."""
        return str(self.version.name)

    @property
    def number(self) -> int:
        """The version's number."""
        return int(self.version.version)

    @property
    def uri(self) -> str:
        """``prompts:/name/number``."""
        return str(self.version.uri)

    @property
    def files(self) -> Mapping[str, bytes]:
        """The contents of the files that travelled, by their path relative to the markup's folder."""
        return {file.path: file.content for file in self.enclosures.files if file.content is not None}

    @property
    def left(self) -> Mapping[str, str]:
        """Why the other files that it names did not travel, by path."""
        return {file.path: file.left for file in self.enclosures.files if file.content is None}


def text_of(version: PromptVersion) -> str:
    """The text that was registered: `template` is what MLflow's optimisers replace for trials (mlflow 3.12 to 3.17)."""
    return str(version._tags[PROMPT_TEXT_TAG_KEY])


def content_of(version: PromptVersion, inherited: Mapping[str, str] | None = None) -> PromptContent:
    """Read what a version holds, and check it.

    Args:
        version: MLflow's.
        inherited: The tags of a version whose files it shall have, where it was registered without any.

    Returns:
        Its content.

    Raises:
        NotPomlError: It is a chat, or plain text.
        RegistryError: It is not what it was when it was registered.
    """
    uri = str(version.uri)
    if not version.is_text_prompt:
        raise NotPomlError(f"{uri} is a chat prompt, not POML: load it with mlflow.genai.load_prompt", uri)
    source = text_of(version)
    told = version.tags.get(_DIGEST)
    if told is None and not is_poml(source):
        raise NotPomlError(
            f"{uri} is plain text, not POML ({_shortened(source)!r}): load it with mlflow.genai.load_prompt, or "
            "register it with <poml> around it",
            uri,
        )
    try:
        enclosures = opened(inherited or version.tags)
    except ValueError as error:
        raise RegistryError(f"{uri} is not what was registered: {error}. Register it again", uri) from error
    files = [PromptFile(file.path, file.sha256, Path()) for file in enclosures.files]
    digest = content_digest(source, files)
    if told not in {None, digest}:
        raise RegistryError(
            f"{uri} is not what was registered: its content has the digest {digest[:12]}…, its tag {_DIGEST} says "
            f"{str(told)[:12]}…. Register it again; a version made by hand must not have the tags of another",
            uri,
        )
    return PromptContent(version, source, digest, enclosures)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"  # noqa: PLR2004 - what fits into a line

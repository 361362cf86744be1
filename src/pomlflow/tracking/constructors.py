"""Where a prompt comes from: markup, a file, MLflow's registry; the same in every framework."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pomlflow.template import Template
    from pomlflow.template.source import Origin

__all__ = ["Sources", "reopened"]


class Sources:
    """The ways to make a prompt, and what it then tells of where it comes from.

    Beside a framework's own class of prompts it makes our prompt of that framework, whose constructor takes
    `registry_origin`, and which holds its template as ``_core``.
    """

    if TYPE_CHECKING:
        _core: Template

        def __init__(self, template: str | None = None, **kwargs: Any) -> None: ...

    @classmethod
    def from_template(cls, template: str, **kwargs: Any) -> Self:
        """Make a prompt of markup.

        Args:
            template: The markup; never a path.
            **kwargs: As the class takes them.

        Returns:
            The prompt.
        """
        return cls(template, **kwargs)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Make a prompt of a file.

        Args:
            path: The ``.poml`` file.
            **kwargs: As the class takes them.

        Returns:
            The prompt.

        Raises:
            TemplateNotFoundError: The file does not exist.
        """
        return cls(path=path, **kwargs)

    @classmethod
    def from_registry(
        cls,
        name_or_uri: str,
        *,
        version: int | str | None = None,
        alias: str | None = None,
        refresh: float = 60.0,
        timeout: float = 10.0,
        fallback: str | os.PathLike[str] | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a prompt of a version in MLflow's registry, the one that is set now, and follow it.

        Make it once and keep it: the version is loaded here. A moved alias is followed in the background, and no call
        waits for that; while the server is away the last version stays in use, and one warning is logged. The files
        that the prompt names with ``src=`` come along where they fit into the registry. The prompt is not trusted as a
        file of this machine is: it may read these files, and no others.

        Args:
            name_or_uri: A prompt's name (its newest version), ``prompts:/name/3`` or ``prompts:/name@alias``.
            version: The version's number, beside a name.
            alias: An alias, beside a name.
            refresh: Seconds after which a moved alias, or a newer version, is in use at the latest; the default is how
                long MLflow itself caches an alias.
            timeout: Seconds that this call may take.
            fallback: A ``.poml`` file to use for as long as the registry does not give the prompt.
            base_dir: The folder that has the prompt's files, where some did not fit into the registry; where the prompt
                names files above itself with ``..``, the one that has all of them.
            **kwargs: As the class takes them.

        Returns:
            The prompt.

        Raises:
            PromptNotFoundError: There is no such version, and no fallback.
            NotPomlError: The version is plain text or a chat, and there is no fallback.
            RegistryError: The registry is away, or the version is not what was registered, and there is no fallback.
            ConfigurationError: The arguments make no sense.

        Example:
            >>> prompt = PomlPromptTemplate.from_registry("prompts:/support@production")  # doctest: +SKIP
            >>> prompt.version, prompt.uri  # doctest: +SKIP
            (3, 'prompts:/support/3')
        """
        from pomlflow.tracking.follow import open_prompt

        origin = open_prompt(
            name_or_uri,
            version=version,
            alias=alias,
            refresh=refresh,
            timeout=timeout,
            fallback=fallback,
            base_dir=base_dir,
        )
        return cls(registry_origin=origin, base_dir=base_dir, **kwargs)

    @classmethod
    async def afrom_registry(cls, name_or_uri: str, **kwargs: Any) -> Self:
        """Make a prompt of a version in MLflow's registry without holding up the event loop; else as `from_registry`.

        Args:
            name_or_uri: As `from_registry` takes it.
            **kwargs: As `from_registry` takes them.

        Returns:
            The prompt.
        """
        return await asyncio.to_thread(cls.from_registry, name_or_uri, **kwargs)

    @property
    def source(self) -> str:
        """The markup as it is now."""
        return self._core.source

    @property
    def version(self) -> int | None:
        """The number of the registry's version that it is now; None where it comes from elsewhere, a fallback too."""
        return self._core.current().version

    @property
    def uri(self) -> str | None:
        """The same as ``prompts:/name/version``."""
        return None if self.version is None else f"prompts:/{self._core.name}/{self.version}"


def reopened(uri: str, refresh: float, markup: str | None, base_dir: str | os.PathLike[str] | None) -> Origin:
    """Open a prompt in MLflow's registry that was written down with what it was.

    Args:
        uri: What was asked for.
        refresh: Seconds between looks whether that is another version by now.
        markup: What it was then, for as long as the registry does not give it.
        base_dir: As `Sources.from_registry` takes it.

    Returns:
        Its origin.
    """
    from pomlflow.tracking.follow import open_prompt

    return open_prompt(uri, refresh=refresh, markup=markup, base_dir=base_dir)

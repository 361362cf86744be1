"""What the prompts of every framework share: constructors from markup, a file or MLflow's registry, and `validate`."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self

from pomlflow.display import short, template_html
from pomlflow.template import Template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pomlflow.template.history import History
    from pomlflow.template.lint import Finding
    from pomlflow.template.source import Origin, Snapshot


class PromptConstructors:
    """The constructors of a prompt template, its validation, and properties that describe its source.

    A mixin for a framework's prompt class. That class takes `registry_origin` in its ``__init__``, and keeps its
    template in ``_core`` and the snapshot that its fields were read from in ``_snapshot``.
    """

    if TYPE_CHECKING:
        _core: Template
        _snapshot: Snapshot

        def __init__(self, template: str | None = None, **kwargs: Any) -> None: ...

        def _set_snapshot(self, now: Snapshot) -> None: ...  # updates the fields

        # The variables, the history and the snapshot for a render.
        def _prepared(self, given: Any) -> tuple[Mapping[str, Any], History[Any], Snapshot]: ...

    @classmethod
    def from_template(cls, template: str, **kwargs: Any) -> Self:
        """Make a prompt from markup.

        Args:
            template: The markup; never a path.
            **kwargs: The arguments of the class.

        Returns:
            The prompt.
        """
        return cls(template, **kwargs)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Make a prompt from a file.

        Args:
            path: The ``.poml`` file.
            **kwargs: The arguments of the class.

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
        """Make a prompt from a version in the MLflow registry that is set now, and keep it up to date.

        Make it once and keep it: this call loads the version and the files that it names. A moved alias or a newer
        version is loaded in the background. While the server is unreachable, the last loaded version stays in use.

        Args:
            name_or_uri: A prompt's name (its newest version), ``prompts:/name/3`` or ``prompts:/name@alias``.
            version: The version's number, if `name_or_uri` is a name.
            alias: An alias, if `name_or_uri` is a name.
            refresh: Seconds between checks for a moved alias or a newer version.
            timeout: Seconds that this call may take.
            fallback: A ``.poml`` file to use until the prompt can be loaded from the registry.
            base_dir: A folder with the files that did not fit into the registry.
            **kwargs: The arguments of the class.

        Returns:
            The prompt. It is trusted less than a file of this machine: it may read only its own files.

        Raises:
            RegistryError: There is no fallback, and the registry is unreachable, or the version does not exist
                (`PromptNotFoundError`), is not POML (`NotPomlError`) or was changed after it was registered.
            ConfigurationError: An argument is invalid.

        Example:
            >>> prompt = PomlPromptTemplate.from_registry("prompts:/support@production")  # doctest: +SKIP
        """
        from pomlflow.tracking.follow import open_prompt

        origin = open_prompt(
            name_or_uri,
            version=version,
            alias=alias,
            refresh=refresh,
            timeout=timeout,
            fallback=None if fallback is None else Template(path=fallback),
            base_dir=base_dir,
        )
        return cls(registry_origin=origin, base_dir=base_dir, **kwargs)

    @classmethod
    async def afrom_registry(cls, name_or_uri: str, **kwargs: Any) -> Self:
        """Make a prompt like `from_registry`, without blocking the event loop.

        Args:
            name_or_uri: As in `from_registry`.
            **kwargs: As in `from_registry`.

        Returns:
            The prompt.
        """
        return await asyncio.to_thread(cls.from_registry, name_or_uri, **kwargs)

    def validate(self, **variables: Any) -> list[Finding]:
        """Check the prompt, at start-up instead of in the first call. Nothing is traced.

        Args:
            **variables: The variables. Without any, only errors that do not depend on their values are reported: in the
                markup, unknown components, missing files, the syntax of expressions.

        Returns:
            Warnings about markup that renders, but probably not as intended. pyproject.toml selects the rules.

        Raises:
            PomlError: The error that a render would raise.
        """
        prepared, history, now = self._prepared(variables)
        if variables:
            record = self._core.render(prepared, history=history, snapshot=now)
        else:
            record = self._core.check(prepared, history=history)
        if record.error is not None:
            raise record.error
        return self._core.lint()

    def _refreshed(self) -> Snapshot:
        """Return the current template, read again if its files have changed, and update the framework's fields."""
        now = self._core.current()
        if now is not self._snapshot:
            self._set_snapshot(now)
        return now

    @property
    def source(self) -> str:
        """The current markup."""
        return self._core.source

    @property
    def registry_name(self) -> str | None:
        """The prompt's name in MLflow's registry; None for markup without a name."""
        return self._core.name

    @property
    def version(self) -> int | None:
        """The number of the version in use; None for a prompt that is not from the registry, and for a fallback."""
        return self._core.current().version

    @property
    def uri(self) -> str | None:
        """The version in use as ``prompts:/name/version``; None where `version` is None."""
        return None if self.version is None else f"prompts:/{self._core.name}/{self.version}"

    def __repr__(self) -> str:
        return short(super().__repr__())

    def _repr_html_(self) -> str:
        """Show variables and markup in a notebook, without a render."""
        now = self._core.current()
        found = now.inference
        facts = {
            "registry": [self.uri or self.registry_name or ""],
            "needs": found.variables,
            "takes": [f"{name} (messages)" if name in found.messages else name for name in found.optional],
            "reads": [file.path for file in now.files],
        }
        return template_html(self._core.trace_path or "POML", facts, now.source)


def restore_origin(uri: str, refresh: float, markup: str | None, base_dir: str | os.PathLike[str] | None) -> Origin:
    """Open a prompt in MLflow's registry again, from a dump; `markup`, its last text, is used until it is loaded."""
    from pomlflow.tracking.follow import open_prompt

    fallback = None if markup is None else Template(markup)
    return open_prompt(uri, refresh=refresh, fallback=fallback, base_dir=base_dir)


def source_fields(core: Template) -> dict[str, Any]:
    """Return the fields of a framework's prompt that record where its template comes from; dumps include them."""
    return {
        "path": None if core.path is None else str(core.path),
        "base_dir": None if core.base_dir is None else str(core.base_dir),
        "stylesheet": core.stylesheet,
        "chat": core.chat,
        "register_prompt": core.register,
        "registry_uri": None if core.origin is None else core.origin.uri,
        "registry_refresh": None if core.origin is None else core.origin.refresh,
    }

"""A prompt version in MLflow's registry: found by its digest, made once.

Everything here talks to the store and may block as long as MLflow does; `pomlflow.tracking.publish` calls it in the
background.

MLflow has no uniqueness constraint on a version's content, so one content becomes one version by a rule
that every process follows: the lowest version with the digest is the one. A version's number is only given once all
lower ones are stored (mlflow 3.12 to 3.17, SQL stores: ``max + 1`` under a primary key), so whoever has made a version
sees every lower one, and withdraws its own where it lost.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptModelConfig, PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.prompt.registry_utils import model_version_to_prompt_version
from pydantic import ValidationError

from pomlflow.record import PromptFile, RenderRecord
from pomlflow.template.names import NAMES, registry_name
from pomlflow.tracking.bundle import FileChangedError, pack
from pomlflow.tracking.turns import turn

__all__ = [
    "Draft",
    "RefusedError",
    "draft_of",
    "ensure",
    "model_config",
    "name_of",
]

_log = logging.getLogger("pomlflow")

_LONGEST: Final = 100_000  # characters of one tag of a version, the source among them (mlflow.utils.validation)
_LONGEST_NAME: Final = 256  # characters, on PostgreSQL
# POML's names of model settings, in snake case, where MLflow's differ.
_SETTINGS: Final = {
    "model": "model_name",
    "max_output_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
}


class RefusedError(Exception):
    """The registry can never take this prompt as it is; trying again is of no use."""


class _TakenError(Exception):
    def __init__(self, owner: PromptVersion) -> None:
        super().__init__(owner.uri)
        self.path = owner.tags["poml_path"]


_clashes: set[tuple[str, str | None]] = set()  # pairs of files already told of


@dataclass(frozen=True)
class Draft:
    """What is needed of a render to find or make its version; much smaller than the record.

    Attributes:
        name: The prompt's name.
        source: The complete markup.
        digest: SHA-256 of the source and of the files that it names.
        path: The file, relative to the prompt root; None for inline markup.
        files: The files that it names.
        folder: The folder that they are relative to, relative to the prompt root.
        tags: The tags of a version made from it.
        runtime: The ``<runtime>`` that depends on no variable, or None.
        schema: The ``<output-schema>`` that depends on no variable, or None.
    """

    name: str
    source: str
    digest: str
    path: str | None
    tags: Mapping[str, str]
    files: tuple[PromptFile, ...] = ()
    folder: str | None = None
    runtime: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None

    @property
    def derived(self) -> bool:
        """Whether the name is the path's own, rather than one that the user gave."""
        return self.path is not None and self.name == registry_name(self.path.removesuffix(".poml"))


def name_of(record: RenderRecord) -> str | None:
    """The name that a render asks for, or None where the registry shall not know the prompt.

    Inline markup without a name is registered only where the template asks for it: markup built per call must not
    flood the registry.
    """
    if record.register is False:
        return None
    return record.name or (f"inline-{record.digest[:12]}" if record.register else None)


def draft_of(record: RenderRecord, name: str) -> Draft:
    """Take from a render what the registry needs."""
    NAMES.warn_of_folder(name)
    tags = {"poml_sha256": record.digest, "poml_path": record.path, "poml_version": record.poml_version}
    output = record.output or {}
    # Copies: the output is the caller's to change as soon as the render is delivered, and this waits in a thread.
    static = {key: copy.deepcopy(output.get(key)) for key in ("runtime", "schema") if key in record.static}
    return Draft(
        name=name,
        source=record.source,
        digest=record.digest,
        path=record.path,
        tags={key: value for key, value in tags.items() if value},
        files=record.files,
        folder=record.folder,
        runtime=static.get("runtime"),
        schema=static.get("schema"),
    )


def ensure(client: MlflowClient, draft: Draft, *, create: bool, store: str) -> PromptVersion | None:
    """Find the version with the draft's digest, or make it.

    Args:
        client: Of the registry to use.
        draft: The prompt.
        create: Whether to make a version where there is none.
        store: The registry's URI: processes on one machine that make versions there take turns.

    Returns:
        The one version of this content; None where there is none and none shall be made.

    Raises:
        RefusedError: The registry cannot take the prompt.
        MlflowException: The registry failed, or is away.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", draft.name):
        raise RefusedError(f"MLflow takes no prompt named {draft.name!r}: use letters, digits, '_', '-' and '.'")
    if len(draft.source) > _LONGEST:
        raise RefusedError(
            f"the prompt {draft.name!r} has {len(draft.source):,} characters and MLflow's registry takes {_LONGEST:,}: "
            "move data out of the markup, into variables or documents"
        )
    version = _claim_any(client, draft, create=False)
    if version is None and create:
        # Eight workers that start together would make eight versions and withdraw seven, whose numbers are gone.
        with turn(store):
            version = _claim_any(client, draft, create=True)
    return version


def _claim_any(client: MlflowClient, draft: Draft, *, create: bool) -> PromptVersion | None:
    """Find or make the version under the draft's name, or under the file's own where another file has that."""
    try:
        return _claim(client, draft, draft.name, create=create)
    except _TakenError as taken:
        if (taken.path, draft.path) not in _clashes:
            _clashes.add((taken.path, draft.path))
            _log.warning(
                "The files %s and %s would share the prompt name %r: the prompt of %s is named %r instead. Give one of "
                "them a name= of its own.",
                taken.path,
                draft.path,
                draft.name,
                draft.path,
                _own_name(draft),
            )
        return _claim(client, draft, _own_name(draft), create=create)


def _claim(client: MlflowClient, draft: Draft, name: str, *, create: bool) -> PromptVersion | None:
    """Find or make the version under this very name."""
    found = _lowest(client, name, draft.digest)
    if found is not None and not _another_file(found, draft):
        return found
    owner = _lowest(client, name)
    if owner is not None and _another_file(owner, draft):
        raise _TakenError(owner)
    if found is not None or not create:
        return found
    return _make(client, draft, name, first=owner is None)


def _own_name(draft: Draft) -> str:
    """A name for a file whose own name another file has."""
    return f"{draft.name[: _LONGEST_NAME - 9]}-{hashlib.sha256((draft.path or '').encode()).hexdigest()[:8]}"


def _another_file(version: PromptVersion, draft: Draft) -> bool:
    """Whether the name, which nobody chose for this file, was first that of another file.

    A name that the user gave is taken at its word: several files may have it, so that a prompt can move.
    """
    path = version.tags.get("poml_path")
    own = version.name == draft.name
    return own and draft.derived and path is not None and path != draft.path


def _lowest(client: MlflowClient, name: str, digest: str | None = None) -> PromptVersion | None:
    """The first version of a prompt, or the first with a digest. No name and no digest can hold a quote."""
    query = f"name = '{name}' AND tags.`mlflow.prompt.is_prompt` = 'true'"
    if digest is not None:
        query += f" AND tags.`poml_sha256` = '{digest}'"
    found = client.search_model_versions(query, max_results=1, order_by=["version_number ASC"])
    return model_version_to_prompt_version(found[0]) if found else None


def _make(client: MlflowClient, draft: Draft, name: str, *, first: bool) -> PromptVersion:
    """Make a version, and give the one that holds.

    Not `MlflowClient.register_prompt`: it copies the version's tags, digest and path, to the prompt, writes the
    current thread's experiment and starts a thread of its own for that.
    """
    try:
        files = pack(draft.files, draft.folder)
    except FileChangedError as error:  # then the content is another one, and the next render has that
        raise RefusedError(f"the prompt {name!r}: {error}") from error
    if first:
        _make_prompt(client, name)
    mine: PromptVersion = client.create_prompt_version(
        name,
        draft.source,
        description=f"POML from {draft.path}"[:1000] if draft.path else "POML, inline",
        tags={**draft.tags, **files},
        response_format=_response_format(draft),
        model_config=model_config(draft.runtime) if draft.runtime else None,
    )
    owner = _lowest(client, name) if first else None
    if owner is not None and _another_file(owner, draft):
        _withdraw(client, mine)
        raise _TakenError(owner)
    lowest = _lowest(client, name, draft.digest) or mine
    if lowest.version == mine.version:
        return mine
    _withdraw(client, mine)
    _log.info(
        "The prompt %r was registered by another process at the same time: both use version %s.", name, lowest.version
    )
    return lowest


def _make_prompt(client: MlflowClient, name: str) -> None:
    try:
        client.create_prompt(name)
    except MlflowException as error:
        # Mostly another process that registers the same name now; but a model may have it, and no version of a prompt
        # must get into a user's model.
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if client.get_prompt(name) is None:
            raise RefusedError(f"{name!r} is the name of a registered model: give the prompt another name=") from error


def _withdraw(client: MlflowClient, version: PromptVersion) -> None:
    """Delete a version made a moment ago, which nobody can have linked: all who look by digest take a lower one."""
    try:
        client.delete_prompt_version(version.name, str(version.version))
    except MlflowException as error:
        _log.info("Version %s of the prompt %r is a duplicate and stays: %s", version.version, version.name, error)


def _response_format(draft: Draft) -> dict[str, Any] | None:
    if not draft.schema or len(json.dumps(draft.schema)) > _LONGEST:
        return None
    return dict(draft.schema)


def model_config(runtime: Mapping[str, Any]) -> PromptModelConfig:
    """Give POML's ``<runtime>`` in MLflow's words.

    Args:
        runtime: Settings in POML's camelCase, ``maxTokens`` for example, with typed values.

    Returns:
        The settings that MLflow names in its own fields, all others under their own names in ``extra_params``. A
        value that MLflow does not allow, such as a ``topP`` of 2, is left out.

    Example:
        >>> model_config({"model": "gpt-5", "maxTokens": 100, "seed": 7}).to_dict()
        {'model_name': 'gpt-5', 'max_tokens': 100, 'seed': 7}
    """
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in runtime.items():
        snake = re.sub("(?<=[a-z0-9])([A-Z])", r"_\1", key).lower()
        field = _SETTINGS.get(snake, snake)
        if field in PromptModelConfig.model_fields and field != "extra_params":
            fields[field] = [value] if field == "stop_sequences" and isinstance(value, str) else value
        else:
            extra[key] = value
    try:
        return PromptModelConfig(**fields, extra_params=extra)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors()}
        _log.debug("Model settings left out of the registry: %s", error)
        return PromptModelConfig(**{k: v for k, v in fields.items() if k not in wrong}, extra_params=extra)

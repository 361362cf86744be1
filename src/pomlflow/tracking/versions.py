"""Find a prompt version in MLflow's registry by its digest, or make it once.

`Registry` calls the store and may block as long as MLflow does. `register` calls it at once, and
`pomlflow.tracking.publish` in the background.

Several processes may make a version of the same content at the same time, since MLflow does not prevent that. They all
use the one with the lowest number, and delete their own. Each of them finds it: MLflow's SQL stores number versions by
``max + 1`` under a primary key, so all lower versions are stored before a new one.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptModelConfig, PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.prompt.registry_utils import model_version_to_prompt_version
from mlflow.utils.gorilla import get_original_attribute
from pydantic import ValidationError

from pomlflow._log import logger
from pomlflow.exceptions import ConfigurationError, RegistryError
from pomlflow.record import RenderRecord
from pomlflow.template import Template
from pomlflow.template.names import NAMES
from pomlflow.template.runtime import canonical, name_for
from pomlflow.tracking.background import RejectedError
from pomlflow.tracking.bundle import FILES_TAG, pack
from pomlflow.tracking.stores import Stores

_MAX_SOURCE: Final = 100_000  # characters of one tag of a version, the source among them (mlflow.utils.validation)
_NEWEST: Final = 20  # newest versions whose text is compared if no version has the digest
_ALIAS: Final = re.compile(r"(?!(?:latest|v\d+)$)[\w-]{1,255}", re.IGNORECASE)
_IS_PROMPT: Final = "mlflow.prompt.is_prompt"
DIGEST_TAG: Final = "poml_sha256"
_USE_TAG: Final = "poml_use"
_USE: Final = """\
from pomlflow.langchain import PomlPromptTemplate  # or pomlflow.llama_index
prompt = PomlPromptTemplate.from_registry("{}")"""


def name_of(record: RenderRecord) -> str | None:
    """Return the name to register a render's prompt under, or None if it is not to be registered."""
    if record.register is False:
        return None
    # Inline markup without a name is registered only on request: a program that builds markup in each call would make a
    # prompt in each call.
    return record.name or (f"inline-{record.digest[:12]}" if record.register else None)


def draft_of(record: RenderRecord, name: str) -> RenderRecord:
    """Return a copy of a record to find or make its version under a name, without the variables and messages."""
    NAMES.warn_if_outside(name)
    output = record.output or {}
    # Copied, since the caller may change the output while the draft waits for the background thread.
    static: dict[str, Any] = {
        key: copy.deepcopy(output.get(key)) for key in ("runtime", "schema") if key in record.static_fields
    }
    return replace(record, name=name, context=b"{}", output=static, error=None)


@dataclass(frozen=True)
class Registry:
    """One registry, through MLflow's client."""

    client: MlflowClient
    uri: str

    def find(self, draft: RenderRecord, *, create: bool, message: str | None = None) -> PromptVersion | None:
        """Return the version with a draft's content. If there is none, create it (with `create`), or return None."""
        name = str(draft.name)
        if draft.version is not None:  # it may have been deleted, and made again with another content
            version = self.client.get_prompt_version(name, draft.version)
            return version if version is not None and _has_content(version, draft) else None
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise RejectedError(
                f"MLflow does not accept {name!r} as a prompt name: use letters, digits, '_', '-' and '.'"
            )
        if len(draft.source) > _MAX_SOURCE:
            raise RejectedError(
                f"the prompt {name!r} has {len(draft.source):,} characters and the limit of MLflow's registry is "
                f"{_MAX_SOURCE:,}: move data out of the markup, into variables or documents"
            )
        found = self._first(name, draft.digest)
        if found is not None:
            return found
        newest = self._search(name, newest=True, limit=_NEWEST)
        by_text = [version for version in newest if _has_content(version, draft)]
        if by_text or not create:
            return by_text[-1] if by_text else None
        return self._make(name, draft, message, is_first=not newest)

    def last_with_files(self, name: str, before: int) -> PromptVersion | None:
        """Return the newest version with files and a lower number than `before`."""
        return next(iter(self._search(name, FILES_TAG, before=before, newest=True)), None)

    def _first(self, name: str, digest: str) -> PromptVersion | None:
        """Return the version with a digest that has the lowest number."""
        return next(iter(self._search(name, DIGEST_TAG, digest)), None)

    def _search(
        self,
        name: str,
        tag: str | None = None,
        value: str | None = None,
        *,
        before: int | None = None,
        newest: bool = False,
        limit: int = 1,
    ) -> list[PromptVersion]:
        """Return versions in the order of their numbers, or the `newest` first.

        With a tag, only versions that have it, with this value unless that is None.
        """
        if self.uri.startswith("databricks-uc"):  # its prompts are not models, and it has no search by tag
            found = [one for one in self._all(name) if before is None or int(one.version) < before]
            found = [one for one in found if tag is None or (tag in one.tags and value in {None, one.tags[tag]})]
            return sorted(found, key=lambda one: int(one.version), reverse=newest)[:limit]
        # Names and digests contain no quotes, so none are escaped.
        query = f"name = '{name}' AND tags.`{_IS_PROMPT}` = 'true'"
        if tag is not None:
            query += f" AND tags.`{tag}` LIKE '%'" if value is None else f" AND tags.`{tag}` = '{value}'"
        if before is not None:
            query += f" AND version_number < {before}"
        order = f"version_number {'DESC' if newest else 'ASC'}"
        models = self.client.search_model_versions(query, max_results=limit, order_by=[order])
        return [model_version_to_prompt_version(version) for version in models]

    def _all(self, name: str) -> Iterator[PromptVersion]:
        """Yield all versions, in pages; none of a prompt that does not exist."""
        token: str | None = ""
        while token is not None:
            try:
                page = self.client.search_prompt_versions(name, page_token=token or None)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return
                raise
            yield from page
            token = page.token or None

    def _make(self, name: str, draft: RenderRecord, message: str | None, *, is_first: bool) -> PromptVersion:
        """Make a version; return it, or a lower one with this content, which another process has made."""
        # upstream: mlflow 3.12-3.18: `register_prompt` copies the version's tags to the prompt, changes their dict,
        # writes the current thread's experiment and starts a thread for that.
        files = pack(draft.files, draft.folder)
        if is_first:
            self._make_prompt(name)
        tags = {DIGEST_TAG: draft.digest, "poml_path": draft.path, "poml_version": draft.poml_version}
        schema, runtime = draft.result().get("schema"), draft.result().get("runtime")
        mine: PromptVersion = self.client.create_prompt_version(
            name,
            draft.source,
            description=message or (f"POML from {draft.path}"[:1000] if draft.path else "POML, inline"),
            tags={**{key: value for key, value in tags.items() if value}, **files},
            response_format=dict(schema) if schema and len(json.dumps(schema)) <= _MAX_SOURCE else None,
            model_config=model_config(runtime) if runtime else None,
        )
        lowest = self._first(name, draft.digest) or mine
        if lowest.version == mine.version:
            # The snippet that MLflow's page shows, with load_prompt() and format(), fails for POML.
            self.client.set_prompt_version_tag(name, str(mine.version), _USE_TAG, _USE.format(mine.uri))
            return mine
        # Nothing is linked to it, since lookups find the lower one. If the deletion fails, the next try finds it too.
        self.client.delete_prompt_version(name, str(mine.version))
        logger.info("Another process registered the prompt %r at the same time: both use %s.", name, lowest.uri)
        return lowest

    def _make_prompt(self, name: str) -> None:
        try:
            self.client.create_prompt(name)
        except MlflowException as error:
            # Usually another process has just made the prompt. But it may be a registered model of the user, which must
            # get no prompt versions.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            if self.client.get_prompt(name) is None:
                raise RejectedError(
                    f"{name!r} is the name of a registered model: give the prompt another name="
                ) from error


def _has_content(version: PromptVersion, draft: RenderRecord) -> bool:
    """Whether a version has the draft's digest or, if it was registered by hand, without a digest, its text."""
    digest = version.tags.get(DIGEST_TAG)
    if digest is not None:
        return bool(digest == draft.digest)
    if not version.is_text_prompt or (draft.files and draft.version is None):  # equal texts may have different files
        return False
    return text_of(version) == draft.source


def text_of(version: PromptVersion) -> str:
    """Return a version's text as it is in the registry."""
    # upstream: mlflow 3.12-3.18: optimize_prompts replaces the property `template` for all versions during its trials.
    return str(get_original_attribute(version, "template"))  # type: ignore[no-untyped-call] # in MLflow


def model_config(runtime: Mapping[str, Any]) -> PromptModelConfig:
    """Return POML's ``<runtime>`` as MLflow's model config, without values that MLflow refuses."""
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in runtime.items():
        field = name_for(canonical(key), "mlflow")
        if field in PromptModelConfig.model_fields and field != "extra_params":
            fields[field] = [value] if field == "stop_sequences" and isinstance(value, str) else value
        else:
            extra[key] = value
    try:
        return PromptModelConfig(**fields, extra_params=extra)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors()}
        logger.debug("Model settings left out of the registry: %s", error)
        return PromptModelConfig(**{k: v for k, v in fields.items() if k not in wrong}, extra_params=extra)


def runtime_of(version: PromptVersion) -> dict[str, Any]:
    """Return a version's model config as POML's runtime settings."""

    def camel(name: str) -> str:
        return "model" if name == "model_name" else re.sub("_([a-z])", lambda found: found[1].upper(), name)

    return {camel(name): value for name, value in (version.model_config or {}).items()}


@dataclass(frozen=True)
class Registration:
    """The result of `register`."""

    name: str
    version: PromptVersion | None  # None if a dry run found none
    is_new: bool  # whether the version was made, or would be


def register(
    template: Template,
    *,
    record: RenderRecord | None = None,
    alias: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> Registration:
    """Find or make the version of a template's content in the registry that is set now, and set an alias to it.

    `record` is a render of the template, by default one for a check: its static ``<runtime>`` and ``<output-schema>``
    become MLflow's model config and response format.
    """
    if alias is not None and not _ALIAS.fullmatch(alias):  # here, since MLflow refuses it after the version is written
        allowed = 'up to 255 letters, digits, _ and -, except "latest" and a version such as "v1"'
        raise ConfigurationError(f"the alias {alias!r} is invalid: MLflow accepts {allowed}")
    record = replace(record or template.check(), register=True, version=None)
    draft = draft_of(record, str(name_of(record)))
    stores = Stores.current()
    uri = f"prompts:/{draft.name}"
    try:
        registry = Registry(stores.client(), stores.registry)
        version = registry.find(draft, create=False)
        is_new = version is None
        if is_new and not dry_run:
            version = registry.find(draft, create=True, message=message)
        if alias is not None and version is not None and not dry_run:
            registry.client.set_prompt_alias(version.name, alias, int(version.version))
    except RejectedError as error:
        raise RegistryError(str(error), uri) from error
    except MlflowException as error:
        raise RegistryError(f"MLflow's registry cannot take {uri}: {error}", uri) from error
    return Registration(str(draft.name), version, is_new)

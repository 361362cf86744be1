"""Register a template in MLflow's registry at once, unlike renders, which are registered in the background."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException

from pomlflow.exceptions import RegistryError
from pomlflow.record import RenderRecord
from pomlflow.template import Template
from pomlflow.tracking.background import RejectedError
from pomlflow.tracking.stores import Place, check_reachable
from pomlflow.tracking.versions import Draft, Registry, draft_of, name_of

__all__ = ["Registration", "register"]


@dataclass(frozen=True)
class Registration:
    """The result of registering a template.

    `version` is None if a dry run found none. `is_new` is whether the version was made by this call, or would be.
    """

    name: str
    digest: str
    version: PromptVersion | None
    is_new: bool


def register(
    template: Template,
    *,
    record: RenderRecord | None = None,
    alias: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> Registration:
    """Find or make the version of a template's content in the registry that is set now, and set an alias to it.

    `message` is the commit message of a new version; by default it names the file. Inline markup without a name is
    registered as ``inline-<digest>``. `record` is a render of the template, whose static ``<runtime>`` and
    ``<output-schema>`` become MLflow's model config and response format. Without a record, the template is rendered
    once with empty variables.

    Raises:
        RegistryError: The registry is unreachable, or refuses the prompt.

    Example:
        >>> register(Template(path="support.poml"), alias="staging").version.uri  # doctest: +SKIP
        'prompts:/support/4'
    """
    draft = replace(_draft(template, record), message=message)
    place = Place.now()
    registry = Registry(place.client(), place.registry)
    uri = f"prompts:/{draft.name}"
    try:
        check_reachable(place.registry)
        version = registry.find(draft, create=False)
        is_new = version is None
        if is_new and not dry_run:
            version = registry.find(draft, create=True)
        if alias is not None and version is not None and not dry_run:
            registry.client.set_prompt_alias(version.name, alias, int(version.version))
    except RejectedError as error:
        raise RegistryError(str(error), uri) from error
    except MlflowException as error:
        raise RegistryError(f"MLflow's registry cannot take {uri}: {error}", uri) from error
    return Registration(draft.name if version is None else str(version.name), draft.digest, version, is_new)


def _draft(template: Template, record: RenderRecord | None) -> Draft:
    if record is None:
        found = template.inference
        empty: dict[str, Any] = dict.fromkeys((*found.variables, *found.optional), "")
        record = template.render({**empty, **{name: [] for name in found.messages}})
    record = replace(record, register=True, version=None)
    name = name_of(record)
    assert name is not None  # noqa: S101 - register=True
    return draft_of(record, name)

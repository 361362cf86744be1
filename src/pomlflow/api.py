"""POML without a framework."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Never

from pomlflow.dispatch import RenderContext, dispatch
from pomlflow.exceptions import ConfigurationError, TemplateNotFoundError
from pomlflow.frame.openai import Format, check_format, converted, raw
from pomlflow.record import RenderRecord
from pomlflow.settings import refuse_removed, settings
from pomlflow.template import Template
from pomlflow.template.names import absolute, working_folder

__all__ = ["arender", "flush", "poml", "poml_record", "render"]


def render(
    markup: str | os.PathLike[str],
    context: Mapping[str, Any] | None = None,
    *,
    format: Format = "pydantic",  # noqa: A002 - poml's own name
    stylesheet: Mapping[str, Any] | None = None,
    chat: bool = True,
    name: str | None = None,
    base_dir: str | os.PathLike[str] | None = None,
    register: bool | None = None,
    timeout: float | None = None,
    **removed: Never,
) -> Any:
    """Render markup or a file.

    It is traced where something traces here: `pomlflow.autolog`, or a handler of the chain, agent or engine that the
    call is part of.

    Args:
        markup: A string is markup and never taken for a path; a ``Path`` is a file.
        context: The variables.
        format: Which of poml's formats it is to give; see `pomlflow.poml`.
        stylesheet: A POML stylesheet beside the markup's own.
        chat: Whether to give messages, or one text.
        name: The prompt's name in the registry; by default the file's path relative to the prompt root.
        base_dir: The folder that relative sources in inline markup are resolved against; by default the working folder.
        register: Whether to register the prompt: yes, no, or as `autolog` is set.
        timeout: Seconds; None for `pomlflow.configure`'s.
        **removed: Arguments of earlier versions, which raise an error that names the replacement.

    Returns:
        poml's ``PomlFrame`` (``messages``, ``output_schema``, ``tools``, ``runtime``), or what `format` says.

    Raises:
        PomlError: The file is not there, a variable is missing, or POML refuses it.

    Example:
        >>> import pomlflow
        >>> pomlflow.render("<p>Hello {{name}}</p>", {"name": "Ada"}).messages[0].content
        'Hello Ada'
    """
    refuse_removed({name: name for name in removed})
    check_format(format)
    template = _template(markup, stylesheet, chat, name, base_dir, register)
    record = template.render(_variables(context), timeout=timeout)
    dispatch(record, RenderContext(file=template.path))
    return converted(record, format)


async def arender(
    markup: str | os.PathLike[str],
    context: Mapping[str, Any] | None = None,
    *,
    format: Format = "pydantic",  # noqa: A002
    stylesheet: Mapping[str, Any] | None = None,
    chat: bool = True,
    name: str | None = None,
    base_dir: str | os.PathLike[str] | None = None,
    register: bool | None = None,
    timeout: float | None = None,
    **removed: Never,
) -> Any:
    """Render without holding up the event loop; otherwise as `render`.

    Example:
        >>> import asyncio, pomlflow
        >>> asyncio.run(pomlflow.arender("<p>Hello</p>", format="message_dict"))
        [{'speaker': 'human', 'content': 'Hello'}]
    """
    refuse_removed({name: name for name in removed})
    check_format(format)
    template = _template(markup, stylesheet, chat, name, base_dir, register)
    record = await template.arender(_variables(context), timeout=timeout)
    dispatch(record, RenderContext(file=template.path))
    return converted(record, format)


def poml(
    markup: str | Path,
    context: Mapping[str, Any] | str | Path | None = None,
    stylesheet: Mapping[str, Any] | str | Path | None = None,
    chat: bool = True,
    output_file: str | Path | None = None,
    format: Format = "message_dict",  # noqa: A002
    extra_args: list[str] | None = None,
    **removed: Never,
) -> Any:
    """Render as ``poml.poml()`` does, warm: it takes what that takes (poml 0.0.8) and returns what that returns.

    It differs where poml's own has a fault: the variables may be more than JSON (dates, models, data frames …),
    relative sources in inline markup are found from the working folder, JSON text is taken for `context` and
    `stylesheet`, as poml documents and does not do, the errors say what is wrong and where, and ``openai_chat`` is what
    OpenAI's API takes. `pomlflow.render` never guesses whether a string is a path, and takes a prompt's name.

    Args:
        markup: A file, or markup. A string that is the path of something that exists is a file.
        context: The variables: a dict, JSON text, or a JSON file.
        stylesheet: A POML stylesheet, in the same forms.
        chat: Whether to give messages, or one text.
        output_file: Where to write the ``raw`` output, beside returning the result.
        format: ``message_dict`` for the messages; ``dict`` for messages, schema, tools and runtime; ``raw`` for the
            same as JSON text; ``openai_chat`` for the arguments of ``client.chat.completions.create``; ``langchain``
            for ``messages_from_dict``; ``pydantic`` for a ``PomlFrame``.
        extra_args: Options of poml's command line. There is none here, so it is refused.
        **removed: Arguments of earlier versions, which raise an error that names the replacement.

    Returns:
        In the format's type.

    Raises:
        PomlError: The file is not there, a variable is missing, or POML refuses it. Each is a ``RuntimeError`` too, and
            that of a file a ``FileNotFoundError``, as poml's are.
        ConfigurationError: There is no such format, or `extra_args` are given.

    Example:
        >>> import pomlflow
        >>> pomlflow.poml("<p>Hello {{name}}</p>", {"name": "Ada"}, format="openai_chat")
        {'messages': [{'role': 'user', 'content': 'Hello Ada'}]}
    """
    refuse_removed({name: name for name in removed})
    if extra_args:
        raise ConfigurationError(
            f"pomlflow.poml() runs no command line, so it takes no extra_args ({' '.join(extra_args)}): give variables "
            "as context=, a folder to start from as the working folder, or call poml.poml()"
        )
    record = poml_record(markup, context, stylesheet, chat, format)
    if output_file is not None:
        Path(output_file).write_text(raw(record.result()), encoding="utf-8", newline="")
    return converted(record, format)


def poml_record(
    markup: str | Path,
    context: Mapping[str, Any] | str | Path | None,
    stylesheet: Mapping[str, Any] | str | Path | None,
    chat: bool,
    format: Format,  # noqa: A002
) -> RenderRecord:
    """Render what ``poml.poml()`` takes to a record, of a failed render too, and dispatch it.

    Args:
        markup: As `poml` takes it, and so are the next four.
        context: The variables.
        stylesheet: A stylesheet.
        chat: Whether to give messages, or one text.
        format: Checked before anything is rendered.
    """
    check_format(format)
    if not isinstance(markup, os.PathLike) and _exists(markup):
        markup = Path(markup)
    elif isinstance(markup, str) and re.match(r"^[\w\-./]+$", markup):
        warnings.warn(
            f"The markup '{markup}' looks like a file path, but it does not exist. Assuming it is a POML string.",
            stacklevel=3,  # whoever called `poml`
        )
    template = _template(markup, _read(stylesheet, "stylesheet"), chat, None, None, None)
    record = template.render(_read(context, "context") or {})
    dispatch(record, RenderContext(file=template.path))
    return record


def _read(given: Mapping[str, Any] | str | Path | None, what: str) -> Mapping[str, Any] | None:
    """A context or stylesheet, out of its file where it is one."""
    if not given or isinstance(given, Mapping):
        return given or None  # type: ignore[return-value]  # an empty string is none, as to poml
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"the {what} is a {type(given).__name__}: give a dict, JSON text, or a file")
    try:
        text = Path(given).read_bytes() if _exists(given) else str(given)
        if isinstance(text, str) and not text.lstrip().startswith("{"):
            raise TemplateNotFoundError(2, f"the {what}'s file does not exist; give a dict, or a JSON file", text)
        read = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"the {what} {str(given)[:200]} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigurationError(f"the {what} {str(given)[:200]} holds no JSON object, but a {type(read).__name__}")
    return read


def _exists(path: str | os.PathLike[str]) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - of markup, Path.exists raises that the name is too long


def _variables(context: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if context is None:
        return {}
    if not isinstance(context, Mapping):
        raise ConfigurationError(f"context takes a mapping of variables, not a {type(context).__name__}")
    return context


def _template(
    markup: str | os.PathLike[str],
    stylesheet: Mapping[str, Any] | None,
    chat: bool,
    name: str | None,
    base_dir: str | os.PathLike[str] | None,
    register: bool | None,
) -> Template:
    if not isinstance(markup, str | os.PathLike):
        raise TypeError(f"the markup is a {type(markup).__name__}: give markup, or the path of a file")
    if isinstance(markup, str):
        return Template(markup, name=name, base_dir=base_dir, stylesheet=stylesheet, chat=chat, register=register)
    if stylesheet:  # seldom, and no key for a cache
        return Template(path=markup, name=name, stylesheet=stylesheet, chat=chat, register=register)
    if not _exists(markup):  # a template that was read once lives on, and this call asks for the file
        _file_template.cache_clear()
    # The name depends on the prompt root and the working folder.
    home = str(settings().prompt_root or working_folder())
    return _file_template(str(absolute(markup)), chat, name, register, home)


@lru_cache(maxsize=256)
def _file_template(path: str, chat: bool, name: str | None, register: bool | None, _home: str) -> Template:
    """A file's template: reading a file and what it includes anew costs half a millisecond, asking for changes 0.02."""
    return Template(path=path, name=name, chat=chat, register=register)


def flush(timeout: float | None = 30.0) -> bool:
    """Finish what is pending: prompt versions to be registered, traces to be exported.

    Args:
        timeout: Seconds to wait at most; None waits for as long as it takes. What is for another store than those that
            MLflow is set to now is not waited for while that store is away.

    Returns:
        Whether everything was finished, in all stores.

    Example:
        >>> import pomlflow
        >>> pomlflow.flush()
        True
    """
    if "pomlflow.tracking.shutdown" not in sys.modules:
        return True  # nothing was ever traced
    from pomlflow.tracking.shutdown import flush as finish

    return finish(timeout)

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
from typing import Any, Literal, Never, TypedDict, Unpack, overload

from pomlflow._arguments import refuse_arguments
from pomlflow.dispatch import RenderContext, dispatch
from pomlflow.engine.file_access import decode, read_file
from pomlflow.exceptions import ConfigurationError, RenderError, TemplateNotFoundError
from pomlflow.frame.openai import Format, check_format, convert_output, raw_json
from pomlflow.record import RenderRecord
from pomlflow.settings import settings
from pomlflow.template import Template
from pomlflow.template.names import absolute, working_folder
from pomlflow.types import Frame


class RenderOptions(TypedDict, total=False):
    """The keyword arguments of `render`; see there for their meaning."""

    stylesheet: Mapping[str, Any] | None
    chat: bool
    name: str | None
    base_dir: str | os.PathLike[str] | None
    register: bool | None
    timeout: float | None


_VARIABLE_REMEDY = 'pass it as a variable, {"rows": …}'
Markup = str | os.PathLike[str]
Variables = Mapping[str, Any] | None


@overload
def render(
    markup: Markup, context: Variables = None, *, format: Literal["pydantic"] = ..., **options: Unpack[RenderOptions]
) -> Frame: ...
@overload
def render(markup: Markup, context: Variables = None, *, format: Format, **options: Unpack[RenderOptions]) -> Any: ...
def render(
    markup: Markup,
    context: Variables = None,
    *,
    format: Format = "pydantic",  # noqa: A002 - poml's own name
    **options: Unpack[RenderOptions],
) -> Any:
    """Render markup or a file.

    The render is traced if `pomlflow.autolog` is on, or if the call is part of a chain, agent or engine that a handler
    traces.

    Args:
        markup: A string is markup and never a path; a ``Path`` is a file.
        context: The variables.
        format: One of poml's formats; see `pomlflow.poml`.
        stylesheet: A POML stylesheet in addition to the markup's own.
        chat: True, the default, for messages; False for one text.
        name: The prompt's name in the registry; by default the file's path relative to the prompt root.
        base_dir: The folder that relative sources in inline markup are resolved against; by default the working folder.
        register: Whether to register the prompt; None, the default, uses the setting of `autolog` or the handler.
        timeout: Seconds that the render may take; None, the default, uses the setting of `pomlflow.configure`.
        **options: The arguments `stylesheet` to `timeout`.

    Returns:
        poml's ``PomlFrame`` (``messages``, ``output_schema``, ``tools``, ``runtime``), or the result in `format`.

    Raises:
        PomlError: The file does not exist, a variable is missing, or POML refuses the template.

    Example:
        >>> import pomlflow
        >>> pomlflow.render("<p>Hello {{name}}</p>", {"name": "Ada"}).messages[0].content
        'Hello Ada'
    """
    template, variables = _template_and_variables(markup, context, format, options)
    return _dispatch_and_convert(template, template.render(variables, timeout=options.get("timeout")), format)


@overload
async def arender(
    markup: Markup, context: Variables = None, *, format: Literal["pydantic"] = ..., **options: Unpack[RenderOptions]
) -> Frame: ...
@overload
async def arender(
    markup: Markup, context: Variables = None, *, format: Format, **options: Unpack[RenderOptions]
) -> Any: ...
async def arender(
    markup: Markup,
    context: Variables = None,
    *,
    format: Format = "pydantic",  # noqa: A002
    **options: Unpack[RenderOptions],
) -> Any:
    """Render without blocking the event loop; otherwise as `render`.

    Example:
        >>> import asyncio, pomlflow
        >>> asyncio.run(pomlflow.arender("<p>Hello</p>", format="message_dict"))
        [{'speaker': 'human', 'content': 'Hello'}]
    """
    template, variables = _template_and_variables(markup, context, format, options)
    return _dispatch_and_convert(template, await template.arender(variables, timeout=options.get("timeout")), format)


def _template_and_variables(
    markup: Markup,
    context: Variables,
    format: Format,  # noqa: A002
    options: RenderOptions,
) -> tuple[Template, Mapping[str, Any]]:
    known = RenderOptions.__annotations__.keys()
    remedy = '; pass a variable in a mapping, as the second argument: {{"{}": …}}'
    refuse_arguments(options.keys() - known, known=known, remedy=remedy)
    check_format(format)
    if context is not None and not isinstance(context, Mapping):
        raise ConfigurationError(
            f"context must be a mapping of variables, not a {type(context).__name__}; {_VARIABLE_REMEDY}"
        )
    return template_of(markup, options), context or {}


def _dispatch_and_convert(template: Template, record: RenderRecord, format: Format) -> Any:  # noqa: A002
    """Dispatch a record, and return its output in the format."""
    dispatch(record, RenderContext(file=template.path))
    return convert_output(record, format)


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
    """Render like ``poml.poml()`` of poml 0.0.8, with the same arguments and results, in a long-lived Node process.

    It differs only where poml has a fault. Variables may have types that JSON lacks: dates, models, data frames …
    Relative sources in inline markup are resolved against the working folder. `context` and `stylesheet` may be JSON
    text, as poml's documentation says. Errors name the cause and the place. ``openai_chat`` is what OpenAI's API
    accepts.

    A string may be a path or markup here; `pomlflow.render` takes every string as markup.

    Args:
        markup: A file, or markup. A string that is the path of an existing file is a file.
        context: The variables: a dict, JSON text, or a JSON file.
        stylesheet: A POML stylesheet, in the same forms.
        chat: True for messages; False for one text.
        output_file: The file to write the ``raw`` output to.
        format: ``message_dict`` for the messages; ``dict`` for messages, schema, tools and runtime; ``raw`` for the
            same as JSON text; ``openai_chat`` for the arguments of ``client.chat.completions.create``; ``langchain``
            for ``messages_from_dict``; ``pydantic`` for a ``PomlFrame``.
        extra_args: Not supported, since pomlflow does not run poml's command line.
        **removed: Arguments of earlier versions, which raise an error that names the replacement.

    Returns:
        The result in the format.

    Raises:
        PomlError: The file does not exist (also a ``FileNotFoundError``), a variable is missing, or POML refuses the
            template. Each is also a ``RuntimeError``, as poml's errors are.
        ConfigurationError: The format is unknown, or `extra_args` are given.
    """
    refuse_arguments(removed)
    if extra_args:
        raise ConfigurationError(
            f"pomlflow.poml() does not run poml's command line and takes no extra_args ({' '.join(extra_args)}): pass "
            "variables as context=, change the working folder, or call poml.poml()"
        )
    check_format(format)
    record = _poml_record(markup, context, stylesheet, chat)
    if output_file is not None:
        Path(output_file).write_text(raw_json(record.result()), encoding="utf-8", newline="")
    return convert_output(record, format)


def _poml_record(markup: Any, context: Any, stylesheet: Any, chat: bool) -> RenderRecord:
    """Render the arguments of ``poml.poml()``; dispatch and return the record."""
    if not isinstance(markup, os.PathLike) and _exists(markup):
        markup = Path(markup)
    elif isinstance(markup, str) and re.match(r"^[\w\-./]+$", markup):
        warnings.warn(
            f"The markup '{markup}' looks like a file path, but it does not exist. Assuming it is a POML string.",
            stacklevel=3,  # the caller of `poml`
        )
    template = template_of(markup, {"stylesheet": json_object(stylesheet, "stylesheet"), "chat": chat})
    record = template.render(json_object(context, "context") or {})
    dispatch(record, RenderContext(file=template.path))
    return record


def json_object(given: Any, what: str) -> Mapping[str, Any] | None:
    """Return a context or stylesheet, read from its file or parsed from its JSON text."""
    if given is None or (isinstance(given, str | list | tuple) and not given):  # as poml, ignore what is empty
        return None
    if isinstance(given, Mapping):
        return given or None
    if not isinstance(given, str | os.PathLike):
        remedy = f"; {_VARIABLE_REMEDY}" if what == "context" else ""
        raise ConfigurationError(
            f"the {what} must be a dict, JSON text or a file, not a {type(given).__name__}{remedy}"
        )
    try:
        text, problem = str(given), None
        if _exists(given):
            content = read_file(Path(given))
            if content is None:
                raise ConfigurationError(f"the {what} {text} cannot be read: it is not a regular file")
            text, problem = decode(content, text)
        elif not text.lstrip().startswith("{"):
            raise TemplateNotFoundError(2, f"the {what}'s file does not exist; pass a dict or a JSON file", text)
        if problem is not None:
            raise RenderError([problem])
        read = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"the {what} {str(given)[:200]} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigurationError(f"the {what} {str(given)[:200]} must be a JSON object, not a {type(read).__name__}")
    return read


def _exists(path: str | os.PathLike[str]) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises an error for markup that is too long for a name


def template_of(markup: Markup, options: RenderOptions) -> Template:
    """Return the template of markup or, from a cache, of a file."""
    if not isinstance(markup, str | os.PathLike):
        raise TypeError(f"the markup must be a str or a Path, not a {type(markup).__name__}")
    given: dict[str, Any] = {name: value for name, value in options.items() if name != "timeout"}
    if isinstance(markup, str):
        return Template(markup, **given)
    stylesheet = given.pop("stylesheet", None)
    given.pop("base_dir", None)  # a file's own folder is its base
    if stylesheet:  # not hashable, so not cached
        return Template(path=markup, stylesheet=stylesheet, **given)
    path = absolute(markup)
    if not _exists(path):  # raise TemplateNotFoundError: a cached template would render its last content
        _file_template.cache_clear()
    root = str(settings().prompt_root or working_folder())  # the name depends on it
    return _file_template(str(path), root, **given)


@lru_cache(maxsize=256)
def _file_template(path: str, _root: str, **options: Any) -> Template:
    """Return a file's template. Reading it takes 0.5 ms with its includes; checking it for changes, 0.02 ms."""
    return Template(path=path, **options)


def flush(timeout: float | None = 30.0) -> bool:
    """Wait until pending work is done: register prompt versions and export traces.

    Args:
        timeout: The maximum number of seconds; None for no limit. Prompt versions and links are not waited for while
            their store is unreachable.

    Returns:
        Whether everything was finished, in all stores.

    Example:
        >>> import pomlflow
        >>> pomlflow.flush()
        True
    """
    if "pomlflow.tracking.shutdown" not in sys.modules:
        return True  # nothing was traced
    from pomlflow.tracking.shutdown import flush as flush_all

    return flush_all(timeout)

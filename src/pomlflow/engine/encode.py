"""Variables to the JSON that crosses the pipe: converted as a user would expect, or refused by name.

orjson does nearly all of it at a gigabyte a second. It writes NaN as null and refuses integers that JavaScript cannot
hold; both are rare, so a careful second walk happens only where its output shows that one may be there.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import os
from collections.abc import Callable, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from pomlflow.exceptions import VariableError

__all__ = ["encode", "is_identifier"]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_STRICT_INTEGER
_SAFE_INTEGER = 2**53 - 1  # the largest that JavaScript's numbers hold exactly
_DEPTH = 200

# Words that no parameter of `new Function(...)`, which POML calls with the variables' names, can have. Strict mode's
# further ones (let, static, package …) are allowed there: POML's expressions run in sloppy mode.
_RESERVED = frozenset(
    "break case catch class const continue debugger default delete do else enum export extends false finally for "
    "function if import in instanceof new null return super switch this throw true try typeof var void while with "
    "__proto__".split()
)


@lru_cache(maxsize=4096)
def is_identifier(name: str) -> bool:
    """Whether a variable of this name can be named by a POML expression.

    POML makes a JavaScript function whose parameters are the variables' names, so that any other name would be run as
    code; such a name must never reach Node.

    Args:
        name: The variable's name.

    Returns:
        True for a plain identifier that is no reserved word.

    Example:
        >>> is_identifier("context_str"), is_identifier("my-key"), is_identifier("class")
        (True, False, False)
    """
    return name.replace("$", "_").isidentifier() and name not in _RESERVED


def encode(variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Write variables as JSON.

    Dates become ISO 8601, pydantic models, dataclasses and named tuples objects, decimals and UUIDs their text (a
    decimal keeps its digits), paths their text, sets lists, numpy scalars and arrays numbers and lists, bytes a
    JavaScript ``Buffer``, NaN and infinities JavaScript's own; integers beyond 2**53 become text, so that no digit
    is lost. A name that is no plain identifier is left out, since no expression could name it.

    Args:
        variables: By name.

    Returns:
        The JSON object, and whether Node must revive values that JSON cannot carry.

    Raises:
        VariableError: A value has no such form; the message names the variable and the place in it.
    """
    if not all(map(is_identifier, variables)):
        variables = {name: value for name, value in variables.items() if is_identifier(name)}
    try:
        text = orjson.dumps(variables, default=_convert, option=_OPTIONS)
    except TypeError:  # orjson's JSONEncodeError is one
        text = orjson.dumps(_walk(variables), option=_OPTIONS)
    else:
        if b"null" in text and _has_non_finite(variables):
            text = orjson.dumps(_walk(variables), option=_OPTIONS)
    return text, b'"__base64__":' in text or b'"$number":' in text


def _convert(value: Any) -> Any:  # noqa: PLR0911 - a table, a line for each kind
    """Give what orjson does not know a form that it knows; one level, orjson calls again for what is inside."""
    if isinstance(value, Decimal | os.PathLike | dt.timedelta | complex):
        return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        import base64

        return {"__base64__": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, AbstractSet):
        return list(value)
    dump: Callable[..., Any] | None = getattr(value, "model_dump", None) if not isinstance(value, type) else None
    if dump is not None:  # pydantic's models
        return dump()
    if hasattr(value, "tolist"):  # numpy's arrays that are not contiguous, pandas' series, torch's tensors
        return value.tolist()
    if hasattr(value, "to_dict"):  # pandas' data frames: rows, as POML's <table records> takes them
        return value.to_dict("records")
    if isinstance(value, tuple | list | range | ValuesView):
        return list(value)
    raise TypeError


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str | int) or value is None:
        return False
    if isinstance(value, Mapping):
        return any(map(_has_non_finite, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_non_finite, value))
    return True  # a model, an array: let the careful walk look into it


def _walk(value: Any, place: str = "", depth: int = 0) -> Any:
    """Convert everything by hand, keeping track of where we are, so that what cannot be converted is named."""
    if value is None or isinstance(value, str | bool):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value) if -_SAFE_INTEGER <= value <= _SAFE_INTEGER else str(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$number": str(float(value)).replace("inf", "Infinity")}
    if depth > _DEPTH:
        raise VariableError(
            f"variable {place[:200]!r} is nested more than {_DEPTH} deep, or holds itself", _name(place)
        )
    if isinstance(value, Mapping):
        return {str(k): _walk(v, f"{place}.{k}" if place else str(k), depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_asdict"):
        return [_walk(v, f"{place}[{i}]", depth + 1) for i, v in enumerate(value)]
    return _walk(_one_level(value, place), place, depth + 1)


def _one_level(value: Any, place: str) -> Any:
    if hasattr(value, "_asdict"):  # named tuples: orjson would write a list, and lose the names
        return value._asdict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    try:
        return _convert(value)
    except TypeError:
        pass
    try:
        return orjson.loads(orjson.dumps(value, option=_OPTIONS))  # dates, UUIDs, enums, numpy's scalars
    except TypeError:
        raise VariableError(
            f"variable {place!r} is a {type(value).__module__}.{type(value).__qualname__}, which has no form in JSON: "
            "pass text, a number, a list, a dict, a dataclass or a pydantic model",
            _name(place),
        ) from None


def _name(place: str) -> str:
    return place.split(".", 1)[0].split("[", 1)[0]

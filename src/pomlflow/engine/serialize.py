"""Variables to the JSON that crosses the pipe: converted as a user would expect, or refused by name.

orjson does nearly all of it at a gigabyte a second. It writes NaN as null and refuses integers that JavaScript cannot
hold; both are rare, so a careful second walk happens only where its output shows that one may be there. What orjson
does not know goes through `_convert` on both ways, so that both give the same.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import ipaddress
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson

from pomlflow.exceptions import VariableError
from pomlflow.record import well_formed

__all__ = ["decode", "dumps", "encode", "is_identifier"]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_STRICT_INTEGER | orjson.OPT_PASSTHROUGH_DATACLASS
_SAFE_INTEGER = 2**53 - 1  # the largest that JavaScript's numbers hold exactly
_DEPTH = 100
_SHOWN = 60  # characters of a place that is too deep: its first steps tell where to look
_NUMBER = "\ue000number"  # the key that NaN and the infinities travel under; private, so that no user's key is it
_JAVASCRIPT = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_AS_TEXT = (Decimal, dt.timedelta, complex, UUID, ipaddress.IPv4Address, ipaddress.IPv6Address)

# Words that no parameter of `new Function(...)`, which POML calls with the variables' names, can have. Strict mode's
# further ones (let, static, package …) are allowed there: POML's expressions run in sloppy mode.
_RESERVED = frozenset(
    "break case catch class const continue debugger default delete do else enum export extends false finally for "
    "function if import in instanceof new null return super switch this throw true try typeof var void while with "
    "__proto__".split()
)


def is_identifier(name: object) -> bool:
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
    return isinstance(name, str) and name.replace("$", "_").isidentifier() and name not in _RESERVED


def encode(variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Write variables as JSON.

    Dates become ISO 8601, pydantic models, dataclasses and named tuples objects, decimals and UUIDs their text (a
    decimal keeps its digits), paths their text, sets lists (in order, where their members have one), numpy scalars and
    arrays numbers and lists, data frames lists of rows, bytes a JavaScript ``Buffer``, NaN and infinities
    JavaScript's own; integers beyond 2**53 become text, so that no digit is lost. A name that is no plain identifier
    is left out, since no expression could name it.

    Args:
        variables: By name.

    Returns:
        The JSON object, and whether Node must revive values that JSON cannot carry.

    Raises:
        VariableError: A value has no such form; the message names the variable and the place in it.
    """
    return dumps({name: value for name, value in variables.items() if is_identifier(name)})


def dumps(values: dict[str, Any]) -> tuple[bytes, bool]:
    """Write values as JSON; what `encode` does once the names are known to be good."""
    try:
        text = orjson.dumps(values, default=_convert, option=_OPTIONS)
        careful = b"null" in text and _has_non_finite(values.values())
    except Exception:  # noqa: BLE001 - the walk reports what a user's own object raises, with its place
        careful = True
    if careful:
        text = orjson.dumps(_walk(values, "", 0))
    return text, b'"__base64__":' in text or _NUMBER.encode() in text  # a trace's variables hold them already


def decode(text: bytes) -> Any:
    """Read what `encode` wrote into JSON's own types; NaN and infinities are text then."""
    return json.loads(text, object_hook=lambda found: found.get(_NUMBER, found))


def _convert(value: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 - a table, a line for each kind
    """Give what is not of JSON's own types a form nearer to them: one level, it is called again for what is inside."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, type):
        raise TypeError
    if isinstance(value, str):
        return str.__str__(value)  # what a subclass holds, not what its own __str__ says
    if isinstance(value, float | int):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"__base64__": base64.b64encode(value).decode()} if value else ""  # poml takes an empty one for data
    if hasattr(value, "model_dump"):  # pydantic's models
        return value.model_dump()
    if hasattr(value, "_asdict"):  # named tuples
        return value._asdict()
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if hasattr(value, "tolist"):
        return _from_array(value)
    if hasattr(value, "to_dict"):  # pandas' data frames: rows, as POML's <table records> takes them
        return value.to_dict("records")
    if hasattr(value, "unicode_string"):  # pydantic's URLs
        return str(value)
    if isinstance(value, Sequence | AbstractSet | ValuesView):
        return list(value)
    if type(value).__name__ == "NAType":  # pandas' missing value
        return None
    raise TypeError


def _from_array(value: Any) -> Any:
    """Numpy's scalars and arrays, pandas' series, torch's tensors."""
    dtype = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "")
    if kind == "f" and str(dtype) != "float64":  # the digits that numpy shows: 0.1, not 0.10000000149011612
        value = value.astype(str).astype(float)
    elif kind == "M":  # tolist() gives an integer where the unit is nanoseconds
        value = value.astype(str)
    elif kind == "m":
        value = value.astype("m8[us]")
    return value.tolist()


def _has_non_finite(values: Iterable[Any]) -> bool:
    for value in values:
        kind = type(value)
        if kind is str or kind is int or kind is bool or value is None:
            continue
        if kind is float:
            if not math.isfinite(value):
                return True
        elif kind is dict:
            if _has_non_finite(value.values()):
                return True
        elif _has_non_finite(value if kind in {list, tuple} else (_convert(value),)):
            return True
    return False


def _walk(value: Any, place: str, depth: int) -> Any:  # noqa: PLR0911 - a table, a line for each kind
    """Convert everything by hand, keeping track of where we are, so that what cannot be converted is named."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return well_formed(value)
    if kind is int:
        return value if -_SAFE_INTEGER <= value <= _SAFE_INTEGER else _text(value, place)
    if kind is float:
        return value if math.isfinite(value) else {_NUMBER: _JAVASCRIPT[str(value)]}
    if depth > _DEPTH:
        begin = place if len(place) <= _SHOWN else f"{place[:_SHOWN]}…"
        why = f"variable {begin!r} is nested more than {_DEPTH} deep, or holds itself"
        raise VariableError(why, _variable(place))
    if kind is dict:
        named = ((_key(key, place), inner) for key, inner in value.items())
        return {name: _walk(inner, f"{place}.{name}" if place else name, depth + 1) for name, inner in named}
    if kind in {list, tuple}:
        return [_walk(v, f"{place}[{i}]", depth + 1) for i, v in enumerate(value)]
    try:
        plain = _convert(value)
    except Exception as error:
        because = f" ({type(error).__name__}: {error})" if str(error) else ""
        raise VariableError(
            f"variable {place!r} is a {kind.__module__}.{kind.__qualname__}, which has no form in JSON{because}: "
            "pass text, a number, a list, a dict, a dataclass or a pydantic model",
            _variable(place),
        ) from error
    return _walk(plain, place, depth + 1)


def _key(key: Any, place: str) -> str:
    """A key's text, as orjson writes it where it can."""
    if type(key) is not str:
        try:
            [key] = orjson.loads(orjson.dumps({key: None}, option=_OPTIONS))
        except TypeError:
            key = _text(key, place)
    return well_formed(key)


def _text(value: Any, place: str) -> str:
    """What str() gives, which an integer of more than 4,300 digits refuses, and any object's own may."""
    try:
        return str(value)
    except Exception as error:
        why = f"variable {place!r} holds a {type(value).__qualname__} without a text ({type(error).__name__}: {error})"
        raise VariableError(why, _variable(place)) from error


def _variable(place: str) -> str:
    return place.split(".", 1)[0].split("[", 1)[0]

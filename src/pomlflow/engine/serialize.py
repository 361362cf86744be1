"""Encode variables as JSON for the worker. Values without a JSON form raise an error that names the variable.

orjson encodes nearly everything, at a gigabyte a second. But it writes NaN as null, and refuses integers that
JavaScript cannot represent. Both are rare, so a slower second encoding (`_walk`) runs only if the first one fails, or
if a null in its output may be a NaN. Both use `_convert` for types that orjson does not know, so that their
results agree.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import ipaddress
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

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_STRICT_INTEGER | orjson.OPT_PASSTHROUGH_DATACLASS
_SAFE_INTEGER = 2**53 - 1  # JavaScript's Number.MAX_SAFE_INTEGER
_CAUSES = OverflowError, UnicodeEncodeError  # the causes that orjson before 3.12 sets on its own errors
_MAX_DEPTH = 100
_SHOWN = 60  # characters of a too deep value's path in an error: its beginning shows where to look
# The key of encoded NaN and infinities. It has a private-use character, so that no key of a user equals it.
_NUMBER = "\ue000number"
_JAVASCRIPT = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_AS_TEXT = (Decimal, dt.timedelta, complex, UUID, ipaddress.IPv4Address, ipaddress.IPv6Address)

# Words that cannot be parameters of `new Function(...)`, which POML calls with the variables' names. The words that
# only strict mode reserves (let, static, package …) are allowed: POML's expressions run in sloppy mode.
_RESERVED = frozenset(
    "break case catch class const continue debugger default delete do else enum export extends false finally for "
    "function if import in instanceof new null return super switch this throw true try typeof var void while with "
    "__proto__".split()
)


def is_identifier(name: object) -> bool:
    """Return whether a POML expression can use a variable of this name: a plain identifier, not a reserved word.

    POML makes a JavaScript function whose parameters are the variables' names. A name that is not an identifier would
    run as code, so it must never reach Node.
    """
    return isinstance(name, str) and name.replace("$", "_").isidentifier() and name not in _RESERVED


def encode(variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Encode variables as a JSON object; return it, and whether Node must revive values that JSON cannot express.

    Variables whose names are not plain identifiers are left out, since no expression could use them.
    """
    return dumps({name: value for name, value in variables.items() if is_identifier(name)})


def dumps(values: dict[str, Any]) -> tuple[bytes, bool]:
    """Encode values as JSON like `encode`, but without checking their names."""
    try:
        text = orjson.dumps(values, default=_convert, option=_OPTIONS)
        needs_walk, cause = b"null" in text and _has_non_finite(values.values()), None
    except orjson.JSONEncodeError as error:
        needs_walk, cause = True, error.__cause__
    if needs_walk:
        text = orjson.dumps(_walk(values, "", 0))  # an error of a user's object is raised again, with its place
    if cause is not None and not isinstance(cause, _CAUSES):
        raise cause  # a signal handler raised it during the encoding
    # The text is searched because the variables of a replayed trace have been encoded before.
    return text, b'"__base64__":' in text or _NUMBER.encode() in text


def _convert(value: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 - a table, a line for each kind
    """Convert a value that is not of a JSON type by one level; it is called again for the values inside."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, type):
        raise TypeError
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, not the result of a subclass's __str__
    if isinstance(value, float | int):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"__base64__": base64.b64encode(value).decode()} if value else ""  # POML revives no empty base64
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
    if hasattr(value, "to_dict"):  # pandas' data frames, as the rows that POML's <table records> takes
        return value.to_dict("records")
    if hasattr(value, "unicode_string"):  # pydantic's URLs
        return str(value)
    if isinstance(value, Sequence | AbstractSet | ValuesView):
        return list(value)
    if type(value).__name__ == "NAType":  # pandas' missing value
        return None
    raise TypeError


def _from_array(value: Any) -> Any:
    """Convert scalars and arrays of numpy, series of pandas, and tensors of torch."""
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


def _walk(value: Any, path: str, depth: int) -> Any:  # noqa: PLR0911 - a table, a line for each kind
    """Convert a value and everything in it, with its place, so that an error can name what has no JSON form."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return well_formed(value)
    if kind is int:
        return value if -_SAFE_INTEGER <= value <= _SAFE_INTEGER else _text(value, path)
    if kind is float:
        return value if math.isfinite(value) else {_NUMBER: _JAVASCRIPT[str(value)]}
    if depth > _MAX_DEPTH:
        begin = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}…"
        why = f"variable {begin!r} is nested more than {_MAX_DEPTH} levels deep, or contains itself"
        raise VariableError(why, _variable(path))
    if kind is dict:
        named = ((_key(key, path), inner) for key, inner in value.items())
        return {name: _walk(inner, f"{path}.{name}" if path else name, depth + 1) for name, inner in named}
    if kind in {list, tuple}:
        return [_walk(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
    try:
        plain = _convert(value)
    except Exception as error:
        because = f" ({type(error).__name__}: {error})" if str(error) else ""
        raise VariableError(
            f"variable {path!r} is a {kind.__module__}.{kind.__qualname__}, which has no form in JSON{because}: "
            "pass text, a number, a list, a dict, a dataclass or a pydantic model",
            _variable(path),
        ) from error
    return _walk(plain, path, depth + 1)


def _key(key: Any, path: str) -> str:
    """Return a key as text: as orjson writes it, else by str()."""
    if type(key) is not str:
        try:
            [key] = orjson.loads(orjson.dumps({key: None}, option=_OPTIONS))
        except TypeError:
            key = _text(key, path)
    return well_formed(key)


def _text(value: Any, path: str) -> str:
    """Return str(value), which fails for an integer of more than 4,300 digits and may fail for any object."""
    try:
        return str(value)
    except Exception as error:
        kind, reason = type(value).__qualname__, f"{type(error).__name__}: {error}"
        why = f"variable {path!r} contains a {kind} whose str() fails ({reason})"
        raise VariableError(why, _variable(path)) from error


def _variable(path: str) -> str:
    return path.split(".", 1)[0].split("[", 1)[0]

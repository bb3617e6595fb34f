"""JSON from strangers: bounded, without surprises, decoded into typed dataclasses.

`loads` refuses what `json.loads` lets through (duplicate keys, NaN, endless nesting, lone
surrogates); `decode` and `encode` turn plain values into dataclasses and back by their annotations,
so that a new field of the manifest is one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

T = TypeVar("T")

MAX_INTEGER = 2**63 - 1
NONE_KEY = "full"
"""How a mapping key of None is written (an attention window of None is full attention)."""

# A whole string, or a bracket. Possessive, so that hostile input cannot make it backtrack.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class JsonProblem(Exception):
    """What is wrong and where; callers turn it into the error class of their file."""


def loads(data: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        JsonProblem: too large, too deep, not UTF-8, not JSON, a duplicate key, NaN or infinity,
            or a string that is not valid Unicode.
    """
    if len(data) > max_bytes:
        raise JsonProblem(f"is {len(data)} bytes long; the limit is {max_bytes}")
    _check_depth(data, max_depth)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise JsonProblem(f"is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise JsonProblem(
            f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:  # an integer of more digits than Python converts
        raise JsonProblem("holds a number with too many digits") from None
    _check_unicode(value)
    return value


def _check_depth(data: bytes, limit: int) -> None:
    """Count brackets outside strings before the parser can recurse into them."""
    depth = 0
    for match in _TOKENS.finditer(data):
        first = match[0][:1]
        if first in b"[{":
            depth += 1
            if depth > limit:
                raise JsonProblem(f"is nested deeper than {limit} levels")
        elif first in b"]}":
            depth -= 1


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JsonProblem(f"has the key {key[:80]!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise JsonProblem(f"holds {name}, which is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonProblem(f"holds the number {text[:40]}, which is too large")
    return value


def _check_unicode(value: Any) -> None:
    """Refuse lone surrogates: they parse, then fail wherever the text is written or printed."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise JsonProblem(f"holds text that is not valid Unicode: {value[:80]!a}") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_unicode(key)
            _check_unicode(item)
    elif isinstance(value, list):
        for item in value:
            _check_unicode(item)


def encode(value: Any) -> Any:
    """Plain JSON values of a dataclass, mapping or sequence; the inverse of `decode`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {NONE_KEY if key is None else str(key): encode(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: Any, where: str) -> T:
    """Build the dataclass `kind` from `value`, checking every type; `where` names it in errors.

    Raises:
        JsonProblem: a key is unknown or missing, or a value has another type.
    """
    # cast: `_decode_any` dispatches on annotations, which the type checker cannot follow.
    return typing.cast(T, _decode_any(kind, value, where))


def _decode_any(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments or not isinstance(value, str):
            choices = ", ".join(map(repr, arguments))
            raise JsonProblem(f"{where} is {_show(value)}; it must be one of {choices}")
        return value
    if origin is tuple:
        items = _expect(list, value, where, "a list")
        return tuple(
            _decode_any(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)
        )
    if origin is Mapping:
        return _decode_mapping(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if kind is bool:
        return _expect(bool, value, where, "true or false")
    if kind is int:
        return _decode_integer(value, where)
    if kind is float:
        return _decode_float(value, where)
    if kind is str:
        return _expect(str, value, where, "a string")
    raise TypeError(f"no decoder for the annotation {kind}")


def _decode_integer(value: Any, where: str) -> int:
    # bool is a subclass of int; nothing we store is negative.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise JsonProblem(f"{where} is {_show(value)}; it must be an integer from 0 to 2^63-1")
    return value


def _decode_float(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise JsonProblem(f"{where} is {_show(value)}; it must be a number")
    return float(value)


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    """`X | None`, or dataclasses that differ in the literal of their field `kind`."""
    if value is None and type(None) in arguments:
        return None
    inner = [argument for argument in arguments if argument is not type(None)]
    if len(inner) == 1:
        return _decode_any(inner[0], value, where)
    kinds = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in inner}
    given = _expect(dict, value, where, "an object")
    if "kind" not in given:
        raise JsonProblem(f"{where} lacks the key 'kind'")
    kind = _decode_any(Literal[tuple(kinds)], given["kind"], f"{where}.kind")
    return _decode_any(kinds[kind], value, where)


def _decode_mapping(arguments: tuple[Any, ...], value: Any, where: str) -> dict[Any, Any]:
    key_kind, value_kind = arguments
    decoded = {}
    for key, item in _expect(dict, value, where, "an object").items():
        decoded_key = _decode_key(key_kind, key, where)
        decoded[decoded_key] = _decode_any(value_kind, item, f"{where}[{key[:80]!r}]")
    return decoded


def _decode_key(kind: Any, key: str, where: str) -> Any:
    if kind is str or typing.get_origin(kind) is Literal:
        return _decode_any(kind, key, f"a key of {where}")
    if key == NONE_KEY and type(None) in typing.get_args(kind):
        return None
    # Only the plain decimal form, so that "1" and "01" cannot be two keys of one number.
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", key):
        raise JsonProblem(f"{where} has the key {key[:80]!r}; it must be a whole number")
    return int(key)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    given = _expect(dict, value, where, "an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in given:
        if key not in fields:
            near = get_close_matches(key[:80], fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise JsonProblem(f"{where} has the unknown key {key[:80]!r}{hint}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise JsonProblem(f"{where} lacks the key {name!r}")
    hints = typing.get_type_hints(kind)
    return kind(
        **{key: _decode_any(hints[key], item, f"{where}.{key}") for key, item in given.items()}
    )


def _expect(kind: type[T], value: Any, where: str, what: str) -> T:
    if not isinstance(value, kind):
        raise JsonProblem(f"{where} is {_show(value)}; it must be {what}")
    return value


def _show(value: Any) -> str:
    """A short form for messages; long or nested values by their type only."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

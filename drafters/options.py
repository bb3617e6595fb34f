"""Options of drafters: a frozen dataclass each, made from a mapping and checked."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol, TypeVar

from quickdraft.errors import OptionError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)

_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def checked(cls: type[T], name: str, options: Mapping[str, Any]) -> T:
    """The options of drafter `name` from values by name; what is left out has its default.

    cls: a frozen dataclass whose fields are bool, int, float or str. The range of a number, or the
    words a text may be, stand in its class variable LIMITS: name to (lowest, highest), or to a
    tuple of words. Text is read as the type of its field, so that options of a command line are
    checked here too.

    Raises:
        OptionError: a name is unknown (the message has the nearest), a value is missing that has
            no default, of another type or out of range.
    """
    kinds = {k: v for k, v in typing.get_type_hints(cls).items() if v in _WORDS}
    for option in options:
        if option not in kinds:
            raise OptionError(_unknown(name, option, list(kinds)))
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in options:
            raise OptionError(f"drafter {name} needs the option {field.name!r}; give it")
    limits: Mapping[str, tuple[Any, ...]] = getattr(cls, "LIMITS", {})
    values = {k: _value(f"{k} of drafter {name}", v, kinds[k]) for k, v in options.items()}
    for option, value in values.items():
        _check(f"{option} of drafter {name}", value, limits.get(option))
    return cls(**values)


def _unknown(name: str, option: str, known: list[str]) -> str:
    near = get_close_matches(str(option), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    there = ", ".join(known) or "none"
    return f"drafter {name} has no option {option!r}{hint} (there are: {there})"


def _value(what: str, value: Any, kind: type) -> Any:
    """`value` as a `kind`, without loss."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is str:
            if isinstance(value, str):
                return value
        elif isinstance(value, str):
            return kind(value)
        elif not isinstance(value, bool):
            number = kind(value)
            if number == value:
                return number
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{what} is {value!r}; it must be {_WORDS[kind]}")


def _check(what: str, value: Any, allowed: tuple[Any, ...] | None) -> None:
    if allowed is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if value not in allowed:
            raise OptionError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")
        return
    low, high = allowed
    if not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{what} is {value}; it must be between {low} and {high}")

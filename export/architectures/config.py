"""Reading a Hugging Face config: typed, with the model class's defaults, refusing by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quickdraft.errors import CheckpointError, UnsupportedModel

_MISSING = object()
_MAX_INTEGER = 1 << 31


class Config:
    """A config mapping with checked access. `null` counts as absent, as in transformers.

    Every method takes the key and the default that transformers' config class has; without a
    default the key is required.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise CheckpointError(f"{self.where} lacks {key!r}, which this architecture needs")
        return default

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {key!r} is {value!r}; it must be {wanted}")

    def refuse(self, key: str, value: Any, supported: str) -> UnsupportedModel:
        """The error for a value we do not implement; `supported` says what we do."""
        return UnsupportedModel(
            f"{self.where}: {key!r} is {value!r}, which is not supported; supported: {supported}"
        )

    def integer(self, key: str, default: Any = _MISSING, minimum: int = 1) -> int:
        """An integer of at least `minimum`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        if not minimum <= value < _MAX_INTEGER:
            raise self._wrong(key, value, f"between {minimum} and {_MAX_INTEGER - 1}")
        return value

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """A positive integer, or None where the key is absent."""
        return self.integer(key, default) if self._get(key, default) is not None else None

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number above zero (no config value we read may be zero or negative)."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not (math.isfinite(value) and value > 0):
            raise self._wrong(key, value, "a finite number above zero")
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A finite number above zero, or None where the key is absent."""
        return self.number(key, default) if self._get(key, default) is not None else None

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` finite numbers above zero."""
        items = self.items(key, length)
        reader = Config({f"{key}[{i}]": item for i, item in enumerate(items)}, self.where)
        return tuple(reader.number(name) for name in reader.values)

    def items(self, key: str, length: int) -> list[Any]:
        """A list of `length` entries of any kind."""
        value = self._get(key, _MISSING)
        if not isinstance(value, list) or len(value) != length:
            got = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
            raise self._wrong(key, got, f"a list of {length}")
        return value

    def only(self, key: str, allowed: Any, default: Any = None) -> None:
        """Refuse every value but `allowed` (and absence, where that means `default`)."""
        value = self._get(key, default)
        if value is not None and value != allowed:
            raise self.refuse(key, value, repr(allowed))

    def choice(self, key: str, table: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """What the value stands for in `table`."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in table:
            raise self.refuse(key, value, ", ".join(map(repr, table)))
        return table[value]

    def section(self, key: str) -> Config | None:
        """A nested object, or None where it is absent."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Config(value, f"{self.where}: {key}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

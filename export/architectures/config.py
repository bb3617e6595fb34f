"""Reading a Hugging Face config: typed access that refuses by key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quickdraft.errors import CheckpointError, UnsupportedModel

MAX_LAYERS = 1024
MAX_NUMBER = 1e30  # beyond it, float32 overflows


class Config:
    """A config with checked access.

    values: what the file says over the defaults of transformers' config class, so that an absent
    key has the meaning it has there, and `null` is None even where the default is not.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        """The error for a value that no model can have."""
        return CheckpointError(f"{self.where}: {key!r} is {value!r}; it must be {wanted}")

    def refuse(self, key: str, value: Any, supported: str) -> UnsupportedModel:
        """The error for a value we do not implement; `supported` says what we do."""
        return UnsupportedModel(
            f"{self.where}: {key!r} is {value!r}, which is not supported; supported: {supported}"
        )

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def _need(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise CheckpointError(f"{self.where} lacks {key!r}, which this architecture needs")
        return value

    def integer(self, key: str, most: int = (1 << 31) - 1) -> int:
        """An integer from 1 to `most`."""
        value = self._need(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, value, "an integer")
        if not 1 <= value <= most:
            raise self.wrong(key, value, f"between 1 and {most}")
        return value

    def layers(self, key: str) -> int:
        """A number of layers; bounded, as something is built for each before any weight is seen."""
        return self.integer(key, MAX_LAYERS)

    def optional_integer(self, key: str) -> int | None:
        """An integer above zero, or None."""
        return self.integer(key) if self.has(key) else None

    def number(self, key: str) -> float:
        """A finite number above zero (no number we read may be zero or negative)."""
        value = self._need(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, "a number")
        if not 1 / MAX_NUMBER <= value <= MAX_NUMBER:
            raise self.wrong(key, value, "a finite number above zero, and not near the limits")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number above zero, or None."""
        return self.number(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._need(key)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def items(self, key: str, length: int) -> list[Any]:
        """A list of `length` entries of any kind."""
        value = self._need(key)
        if not isinstance(value, list) or len(value) != length:
            got = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
            raise self.wrong(key, got, f"a list of {length}")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` finite numbers above zero."""
        named = {f"{key}[{i}]": item for i, item in enumerate(self.items(key, length))}
        return tuple(Config(named, self.where).number(name) for name in named)

    def integers(self, key: str, length: int) -> tuple[int, ...]:
        """A list of `length` integers above zero."""
        named = {f"{key}[{i}]": item for i, item in enumerate(self.items(key, length))}
        return tuple(Config(named, self.where).integer(name) for name in named)

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse every value but `allowed` and absence."""
        if self.has(key) and self.values[key] not in allowed:
            raise self.refuse(key, self.values[key], " or ".join(map(repr, allowed)))

    def choice(self, key: str, table: Mapping[str, Any]) -> Any:
        """What the value stands for in `table`."""
        value = self._need(key)
        if not isinstance(value, str) or value not in table:
            raise self.refuse(key, value, ", ".join(map(repr, table)))
        return table[value]

    def section(self, key: str, defaults: Mapping[str, Any] | None = None) -> Config | None:
        """A nested object over its own defaults, or None where it is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return Config({**(defaults or {}), **value}, f"{self.where}: {key}")

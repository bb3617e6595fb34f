"""Dimensions of graphs that have fixed ones, as a user or a device profile asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from quickdraft.errors import OptionError

MOST_ROWS = 1024
"""Rows of the widest graph that can be asked for."""


@dataclass(frozen=True)
class StaticShapes:
    """None leaves a dimension to the emitter.

    widths: rows of the steps that verify, rising from 1. prefill_chunk: rows of the step that
    reads prompts. cache_length: tokens that a conversation may have, at most those of the model's
    context. longest_cache: the same for models whose context is longer, if nothing else is asked.

    Raises:
        OptionError: a value that cannot be.
    """

    widths: tuple[int, ...] | None = None
    prefill_chunk: int | None = None
    cache_length: int | None = None
    longest_cache: int | None = None

    def __post_init__(self) -> None:
        widths, chunk = self.widths, self.prefill_chunk
        if widths is not None:
            rising = all(a < b for a, b in pairwise(widths))
            if not widths or widths[0] != 1 or not rising or widths[-1] > MOST_ROWS:
                raise OptionError(
                    f"widths is {','.join(map(str, widths))!r}; it must begin with 1 and rise to "
                    f"{MOST_ROWS} at most, as in 1,4,8,16"
                )
        if chunk is not None and not 2 <= chunk <= MOST_ROWS:
            raise OptionError(f"prefill_chunk is {chunk}; it must be between 2 and {MOST_ROWS}")
        for name in ("cache_length", "longest_cache"):
            length = getattr(self, name)
            if length is not None and length < 1:
                raise OptionError(f"{name} is {length}; it must be 1 or more")

    def rows(self, widths: tuple[int, ...], prefill_chunk: int) -> tuple[tuple[int, ...], int]:
        """Widths and rows of the prefill; the arguments are those of the emitter.

        Raises:
            OptionError: the prefill is not wider than all others.
        """
        widths = self.widths or widths
        chunk = self.prefill_chunk or prefill_chunk
        if chunk <= widths[-1]:
            raise OptionError(
                f"prefill_chunk is {chunk}, and a step of {widths[-1]} rows verifies; the prefill "
                "must be wider"
            )
        return widths, chunk

    def length(self, context: int, longest: int) -> int:
        """Tokens of a cache. context: of the model. longest: of the emitter.

        Raises:
            OptionError: more are asked for than the model's context has.
        """
        if self.cache_length is None:
            return min(context, self.longest_cache or longest)
        if self.cache_length > context:
            raise OptionError(
                f"cache_length is {self.cache_length}, and the context of this model has {context} "
                "tokens; ask for as many at most"
            )
        return self.cache_length

    @property
    def key(self) -> str:
        """For names of files: other shapes have another one, "" where nothing is asked."""
        named = (
            ("w", None if self.widths is None else ".".join(map(str, self.widths))),
            ("p", self.prefill_chunk),
            ("c", self.cache_length),
            ("m", self.longest_cache),
        )
        return "-".join(f"{letter}{value}" for letter, value in named if value is not None)


EMITTERS_OWN = StaticShapes()


def is_static(formats: Iterable[str]) -> bool:
    """Whether one of some formats has graphs of fixed dimensions."""
    return any(name == "coreml" or name.endswith("-static") for name in formats)

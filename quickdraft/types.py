"""Facts shared by all folders: frozen, checked on creation, no third-party imports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quickdraft.errors import BundleError

Guarantee = Literal["bit_identical", "same_distribution", "lossy"]
"""How an accelerated answer relates to the plain one.

bit_identical: the same tokens and the same logits, to the last bit. same_distribution: exact up
to the rounding of kernels whose result depends on the number of rows. lossy: another model or
rule was asked for by name.
"""

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) while something takes long; total 0 if unknown."""


WIDE_FAMILIES = ("t5",)
"""Trained in bfloat16: what their layers compute does not fit float16."""


@dataclass(frozen=True)
class SourceSpec:
    """What the encoder of an encoder-decoder model reads.

    length: of the longest source, in tokens or frames. width: of a frame, 0 where the source is
    tokens. stride: frames to one row of the memory, ceil(frames / stride) rows in all. fixed: every
    source must be `length` long.
    """

    length: int
    width: int = 0
    stride: int = 1
    fixed: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "stride"):
            if getattr(self, name) < 1:
                raise BundleError(
                    f"model.source.{name} is {getattr(self, name)}; it must be at least 1"
                )

    def rows(self, length: int) -> int:
        """Rows of the memory of a source of `length` tokens or frames."""
        return -(-length // self.stride)


@dataclass(frozen=True)
class ModelSpec:
    """Facts of a model that do not depend on any backend.

    Per-layer tuples have `num_layers` entries. A window of None means full attention; a window
    w lets a row at position p see positions p-w+1 .. p. source: of an encoder-decoder model, whose
    other facts are those of its decoder; each of its layers has a memory of rows shaped as those
    of its cache. None for all other models.
    """

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    num_heads: tuple[int, ...]
    num_kv_heads: tuple[int, ...]
    head_dim: int
    windows: tuple[int | None, ...]
    num_parameters: int = 0
    source: SourceSpec | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "vocab_size", "context_length", "head_dim"):
            if getattr(self, name) < 1:
                raise BundleError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_heads", "num_kv_heads", "windows"):
            if len(getattr(self, name)) != self.num_layers:
                raise BundleError(
                    f"model.{name} has {len(getattr(self, name))} entries for "
                    f"{self.num_layers} layers"
                )
        for layer, (heads, kv_heads) in enumerate(
            zip(self.num_heads, self.num_kv_heads, strict=True)
        ):
            if heads < 1 or kv_heads < 1 or heads % kv_heads:
                raise BundleError(
                    f"layer {layer} has {heads} heads over {kv_heads} KV heads; "
                    "the first must be a multiple of the second"
                )

    @property
    def distinct_windows(self) -> tuple[int | None, ...]:
        """The different attention windows, full attention first, then by size."""
        return tuple(sorted(set(self.windows), key=lambda w: (w is not None, w or 0)))

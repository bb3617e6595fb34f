"""Random tensors of whatever name and shape a family asks for."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from quickdraft.export.architectures.base import find_any
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.weights import Weight, dense_weight


class RandomWeights(WeightMap):
    """Values large enough that every part of a model shows in the logits."""

    def __init__(self) -> None:
        super().__init__({})

    def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The same values for the same name."""
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1:
            values = 0.3 * values + (0 if name.endswith("bias") else 1)
        elif "embed" not in name:
            values *= 1.3 / np.sqrt(shape[-1])
        return dense_weight(name, values.astype(np.float32))


def write_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """model.safetensors with every tensor that a config's family asks for."""
    family, weights = find_any(config), _Kept()
    family.gather(family.read(config), weights)
    arrays = {name: weight.dense() for name, weight in weights.kept.items()}
    save_file(arrays, folder / "model.safetensors")


class _Kept(RandomWeights):
    """Random tensors that remember which were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Weight] = {}

    def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
        """As RandomWeights."""
        return self.kept.setdefault(name, super().expect(name, shape))

"""Maps that need no fit: the target's own projections, on the stream that the auxiliary has.

With all layers kept they predict the target's cache to the last bits; with few, this is what
leaving layers out does to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.decoder import DecoderSpec, Linear, Norm
from quickdraft.export.layer_maps import Sources
from quickdraft.export.trained import Target


def own_maps(target: Target, sources: Sources) -> dict[str, NDArray[Any]]:
    """Tensors of a trained file (see export.prediction) for a pruned auxiliary and features
    `hidden`. The weights of the norm before each projection go into its matrix."""
    tensors: dict[str, NDArray[Any]] = {}
    for index, (layer, (source,)) in enumerate(zip(target.weights.layers, sources, strict=True)):
        for name, linear in (("key", layer.key), ("value", layer.value)):
            weight, bias = _folded(target.spec, linear, layer.attention_norm)
            tensors[f"map.{index}.{source}.{name}"] = weight
            tensors[f"map.{index}.{name}_bias"] = bias
    return tensors


def _folded(
    spec: DecoderSpec, linear: Linear, norm: Norm | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The projection of what has been normed without weights."""
    weight = linear.weight.dense()
    bias = np.zeros(len(weight), np.float32) if linear.bias is None else linear.bias.dense()
    if norm is not None and norm.bias is not None:
        bias = bias + weight @ norm.bias.dense()
    if norm is not None and norm.weight is not None:
        weight = weight * (norm.weight.dense() + np.float32(spec.norm_offset))
    return np.ascontiguousarray(weight), bias


def copied_maps(target: DecoderSpec, auxiliary: DecoderSpec, sources: Sources) -> dict[str, Any]:
    """Tensors of a trained file for features `kv`: keys and values as the auxiliary has them, cut
    or filled up with zeros where the target's are of another width. To train from."""
    tensors: dict[str, Any] = {}
    for index, (source,) in enumerate(sources):
        wide = auxiliary.layers[source].num_kv_heads * auxiliary.head_dim
        rows = target.layers[index].num_kv_heads * target.head_dim
        for name in ("key", "value"):
            tensors[f"map.{index}.{source}.{name}"] = np.eye(rows, wide, dtype=np.float32)
            tensors[f"map.{index}.{name}_bias"] = np.zeros(rows, np.float32)
    return tensors

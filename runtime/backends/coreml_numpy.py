"""What the MIL ops of our Core ML packages compute, in NumPy.

Each takes the arguments of an op by name, as coremltools names them. Sums run in float32; who
calls rounds the result to the declared type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft import numpy_ops

Array = NDArray[Any]
Arguments = Mapping[str, Any]


def _wide(x: Array) -> Array:
    """float16 as float32, in which sums are taken."""
    return x.astype(np.float32, copy=False) if x.dtype == np.float16 else x


def _conv(a: Arguments) -> Array:
    """Of one axis, x [1, in, n]."""
    weight = _wide(a["weight"])
    half = weight.shape[2] // 2
    plain = int(a.get("groups", 1)) == 1 and np.all(np.asarray(a.get("dilations", 1)) == 1)
    if not plain or a["pad_type"] != "custom" or np.asarray(a["pad"]).tolist() != [half, half]:
        raise NotImplementedError("our packages pad by half of an odd width")
    bias = _wide(a["bias"]) if "bias" in a else None
    rows = _wide(a["x"])[0].T
    return numpy_ops.conv1d(rows, weight, bias, int(np.asarray(a["strides"])[0])).T[None]


def _list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _linear(a: Arguments) -> Array:
    y = _wide(a["x"]) @ _wide(a["weight"]).T
    return y + _wide(a["bias"]) if "bias" in a else y


def _matmul(a: Arguments) -> Array:
    x, y = _wide(a["x"]), _wide(a["y"])
    x = np.swapaxes(x, -1, -2) if a.get("transpose_x", False) else x
    y = np.swapaxes(y, -1, -2) if a.get("transpose_y", False) else y
    product: Array = x @ y
    return product


def _softmax(a: Arguments) -> Array:
    x, axis = _wide(a["x"]), int(a["axis"])
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    result: Array = weights / weights.sum(axis=axis, keepdims=True)
    return result


def _layer_norm(a: Arguments) -> Array:
    x, axes = _wide(a["x"]), tuple(a["axes"].tolist())
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    y: Array = centred / np.sqrt(variance + np.float32(a["epsilon"]))
    y = y * _wide(a["gamma"]) if "gamma" in a else y
    return y + _wide(a["beta"]) if "beta" in a else y


def _gelu(a: Arguments) -> Array:
    kind = {"EXACT": "gelu", "TANH_APPROXIMATION": "gelu_tanh"}[a["mode"]]
    return numpy_ops.activate(_wide(a["x"]), kind)


def _silu(a: Arguments) -> Array:
    return numpy_ops.activate(_wide(a["x"]), "silu")


def _reduce_sum(a: Arguments) -> Array:
    total: Array = _wide(a["x"]).sum(
        axis=tuple(a["axes"].tolist()), keepdims=bool(a.get("keep_dims", False))
    )
    return total


def _reshape(a: Arguments) -> Array:
    x: Array = a["x"]
    # A 0 keeps the size of its axis.
    shape = [x.shape[i] if size == 0 else size for i, size in enumerate(a["shape"].tolist())]
    return x.reshape(shape)


def _expand_dims(a: Arguments) -> Array:
    return np.expand_dims(a["x"], tuple(a["axes"].tolist()))


def _transpose(a: Arguments) -> Array:
    return np.transpose(a["x"], a["perm"].tolist())


def _concat(a: Arguments) -> Array:
    if a.get("interleave", False):
        raise NotImplementedError("our packages do not interleave")
    joined: Array = np.concatenate(_list(a["values"]), axis=int(a["axis"]))
    return joined


def _split(a: Arguments) -> list[Array]:
    edges = np.cumsum(a["split_sizes"])[:-1]
    parts: list[Array] = np.split(a["x"], edges, axis=int(a["axis"]))
    return parts


def _gather(a: Arguments) -> Array:
    taken: Array = np.take(a["x"], a["indices"], axis=int(a["axis"]))
    return taken


def _ranges(a: Arguments, shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of a value from `begin` to `end`."""
    ones = [1] * len(shape)
    none = [False] * len(shape)
    begin, end = np.asarray(a["begin"]).tolist(), np.asarray(a["end"]).tolist()
    stride = np.asarray(a.get("stride", ones)).tolist()
    masks = [np.asarray(a.get(name, none)).tolist() for name in ("begin_mask", "end_mask")]
    if any(np.asarray(a.get("squeeze_mask", none)).tolist()):
        raise NotImplementedError("our packages do not squeeze")
    for axis, size in enumerate(shape):
        inside = 0 <= begin[axis] <= end[axis] <= size
        if not (inside or masks[0][axis] or masks[1][axis]):
            raise IndexError(f"{begin[axis]} to {end[axis]} of axis {axis} with {size}")
    return tuple(
        slice(None if no_begin else b, None if no_end else e, s)
        for b, e, s, no_begin, no_end in zip(begin, end, stride, *masks, strict=True)
    )


def _slice_by_index(a: Arguments) -> Array:
    x: Array = a["x"]
    # A copy: states are written in place.
    return x[_ranges(a, x.shape)].copy()


def _slice_update(a: Arguments) -> Array:
    x: Array = a["x"] if a.get("in_place", False) else np.array(a["x"])
    place = _ranges(a, x.shape)
    if x[place].shape != a["update"].shape:  # NumPy would spread one row over several
        raise IndexError(f"an update of {a['update'].shape} for {x[place].shape}")
    x[place] = a["update"]
    return x


def _cast(a: Arguments) -> Array:
    kinds = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}
    x: Array = a["x"]
    return x.astype(kinds[a["dtype"]])


def _blockwise(a: Arguments) -> Array:
    """scale * (data - offset), each scale for one block of data."""
    data, scale = a["data"], a["scale"]
    for axis, (size, blocks) in enumerate(zip(data.shape, scale.shape, strict=True)):
        scale = np.repeat(scale, size // blocks, axis=axis)
        if "offset" in a:
            a = {**a, "offset": np.repeat(a["offset"], size // blocks, axis=axis)}
    values = data.astype(np.float32)
    if "offset" in a:
        values -= a["offset"]
    result: Array = values * _wide(scale)
    return result


def _two(function: Callable[[Array, Array], Array]) -> Callable[[Arguments], Array]:
    return lambda a: function(_wide(a["x"]), _wide(a["y"]))


def _unreachable(a: Arguments) -> Array:
    raise AssertionError(f"who walks the program does this itself: {sorted(a)}")


OPS: Mapping[str, Callable[[Arguments], Any]] = {
    "add": _two(np.add),
    "cast": _cast,
    "concat": _concat,
    "const": _unreachable,
    "constexpr_blockwise_shift_scale": _blockwise,
    "conv": _conv,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gelu": _gelu,
    "identity": lambda a: a["x"],
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "maximum": _two(np.maximum),
    "minimum": _two(np.minimum),
    "mul": _two(np.multiply),
    "read_state": _unreachable,
    "reduce_sum": _reduce_sum,
    "relu": lambda a: numpy_ops.activate(a["x"], "relu"),
    "reshape": _reshape,
    "silu": _silu,
    "slice_by_index": _slice_by_index,
    "slice_update": _slice_update,
    "softmax": _softmax,
    "split": _split,
    "sub": _two(np.subtract),
    "tanh": lambda a: np.tanh(_wide(a["x"])),
    "transpose": _transpose,
    "write_state": _unreachable,
}
"""Every op that an exported program may have."""

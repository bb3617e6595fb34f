"""The meaning of every op: one NumPy function per op of `quickdraft.export.ops`, in float32.

These functions are the oracle of all emitters and kernels, so they are written to be read. Shapes
use n for the rows of a step, m for the rows whose logits are wanted. Weights have outputs first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_erf = np.frompyfunc(math.erf, 1, 1)


def embed(ids: Ints, table: Floats) -> Floats:
    """Rows of `table` [vocabulary, width] for `ids` [n]: [n, width]."""
    return table[ids]


def take_rows(x: Floats, rows: Ints) -> Floats:
    """Rows of x: [n, width] and int64 [m] to [m, width]."""
    return x[rows]


def linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """x @ weight.T + bias: [n, in], weight [out, in] to [n, out]."""
    product: Floats = x @ weight.T
    if bias is not None:
        product = product + bias
    return product


def rms_norm(x: Floats, weight: Floats | None, eps: float, heads: int = 1) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over each of `heads` parts; weight [width / heads]."""
    parts = x.reshape(len(x), heads, -1)
    normed = parts / np.sqrt((parts * parts).mean(axis=-1, keepdims=True) + np.float32(eps))
    if weight is not None:
        normed = normed * weight
    result: Floats = normed.reshape(x.shape)
    return result


def layer_norm(
    x: Floats, weight: Floats | None, bias: Floats | None, eps: float, heads: int = 1
) -> Floats:
    """(x - mean) / sqrt(variance + eps) * weight + bias over each of `heads` parts.

    weight and bias: [width / heads], or [width] where each head has its own.
    """
    parts = x.reshape(len(x), heads, -1)
    centred = parts - parts.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(variance + np.float32(eps))
    if weight is not None:
        normed = normed * weight.reshape(-1, parts.shape[-1])
    if bias is not None:
        normed = normed + bias.reshape(-1, parts.shape[-1])
    result: Floats = normed.reshape(x.shape)
    return result


def rope(
    x: Floats, positions: Ints, frequencies: Floats, attention_factor: float, heads: int
) -> Floats:
    """Rotate each of the `heads` parts of x [n, heads * head_dim] by its row's position.

    frequencies: float32 [pairs]; value i of a head turns with value i + pairs, values from
    2 * pairs on stay. attention_factor multiplies sine and cosine.
    """
    pairs = len(frequencies)
    angles = positions.astype(np.float32)[:, None, None] * frequencies
    cosine = np.cos(angles) * np.float32(attention_factor)
    sine = np.sin(angles) * np.float32(attention_factor)
    parts = x.reshape(len(x), heads, -1)
    first, second, rest = np.split(parts, [pairs, 2 * pairs], axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
    result: Floats = np.concatenate(turned, axis=-1).reshape(x.shape)
    return result


def attend(
    q: Floats,
    k: Floats,
    v: Floats,
    cache: tuple[Floats, Floats],
    slots: Ints,
    bias: Floats,
    scale: float,
    softcap: float | None = None,
) -> Floats:
    """Write k and v [n, kv_heads * head_dim] into the cache at `slots`, then attend.

    q: [n, heads * head_dim]; query head h reads KV head h // (heads / kv_heads). cache: keys and
    values [all slots, kv_heads, head_dim], written in place. slots: int64 [n]. bias: [n, seen
    slots], added to the scores of the first `seen` slots. softcap: cap * tanh(scores / cap),
    before the bias. A bias may also be [heads, n, seen], with a `relative_bias` in it. Returns
    [n, heads * head_dim].
    """
    stage(k, v, cache, slots)
    seen = bias.shape[-1]
    return _attention(q, cache[0][:seen], cache[1][:seen], bias, scale, softcap)


def _attention(
    q: Floats,
    keys: Floats,
    values: Floats,
    bias: Floats | None,
    scale: float,
    softcap: float | None = None,
) -> Floats:
    """Attention over keys and values [seen, kv_heads, head_dim]; the rest as in `attend`."""
    _, kv_heads, head_dim = keys.shape
    # [kv_heads, group, n, head_dim] against [kv_heads, 1, head_dim, seen].
    queries = q.reshape(len(q), kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    scores = queries @ keys.transpose(1, 2, 0)[:, None] * np.float32(scale)
    if softcap is not None:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    if bias is not None:
        scores = scores + (bias if bias.ndim == 2 else bias.reshape(scores.shape))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = weights @ values.transpose(1, 0, 2)[:, None]
    result: Floats = mixed.transpose(2, 0, 1, 3).reshape(q.shape)
    return result


def relative_buckets(
    distances: Ints, buckets: int, max_distance: int, *, bidirectional: bool
) -> Ints:
    """The row of a table of relative biases by distance, position of the key less that of the
    query, any shape.

    Half of the buckets (of each direction) hold one distance each; the others grow by a constant
    factor up to `max_distance` (Raffel et al. 2020). In float32, as transformers rounds.
    """
    first = np.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        first = np.where(distances > 0, buckets, 0)
        away = np.abs(distances)
    else:
        away = np.maximum(-distances, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + ratio.astype(np.int64), buckets - 1)
    result: Ints = first + np.where(away < exact, away, far)
    return result


def relative_bias(
    distances: Ints, table: Floats, max_distance: int, *, bidirectional: bool
) -> Floats:
    """Biases of scores: distances [n, seen] and table [buckets, heads] to [heads, n, seen]."""
    rows = relative_buckets(distances, len(table), max_distance, bidirectional=bidirectional)
    result: Floats = table[rows].transpose(2, 0, 1)
    return result


def encode_attend(
    q: Floats,
    k: Floats,
    v: Floats,
    kv_heads: int,
    scale: float,
    softcap: float | None = None,
    relative: Floats | None = None,
) -> Floats:
    """Attention among all rows: q [n, heads * head_dim], k and v [n, kv_heads * head_dim].

    relative: float32 [heads, n, n], see `relative_bias`. Returns [n, heads * head_dim].
    """
    keys, values = (x.reshape(len(x), kv_heads, -1) for x in (k, v))
    return _attention(q, keys, values, relative, scale, softcap)


def cross_attend(
    q: Floats, memory: tuple[Floats, Floats], scale: float, softcap: float | None = None
) -> Floats:
    """Attend to a whole memory: keys and values [source rows, kv_heads, head_dim].

    q and result: [n, heads * head_dim].
    """
    return _attention(q, *memory, None, scale, softcap)


def conv1d(x: Floats, weight: Floats, bias: Floats | None, stride: int) -> Floats:
    """Convolve over the rows: x [n, in], weight [out, in, width], width odd, to
    [ceil(n / stride), out]; row i is centred on row i * stride, with zeros around x.
    """
    outputs, _, width = weight.shape
    padded = np.pad(x, ((width // 2, width // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)[::stride]
    return linear(windows.reshape(len(windows), -1), weight.reshape(outputs, -1), bias)


def stage(k: Floats, v: Floats, cache: tuple[Floats, Floats], slots: Ints) -> None:
    """Write k and v [n, kv_heads * head_dim] into the cache at `slots`, as attend does."""
    keys, values = cache
    keys[slots] = k.reshape(-1, *keys.shape[1:])
    values[slots] = v.reshape(-1, *values.shape[1:])


def stack(parts: Sequence[Floats]) -> Floats:
    """Rows of the parts [n_i, width], one part after another: [sum of n_i, width]."""
    return np.concatenate(parts)


def activate(x: Floats, kind: str) -> Floats:
    """An activation, value by value: silu, gelu (exact), gelu_tanh, relu."""
    return _ACTIVATIONS[kind](x)


def _silu(x: Floats) -> Floats:
    # The tail of exp overflows to infinity, and x / infinity is the right 0.
    with np.errstate(over="ignore"):
        result: Floats = np.divide(x, np.float32(1) + np.exp(-x))
    return result


def _gelu(x: Floats) -> Floats:
    erf = np.asarray(_erf(x / np.float32(math.sqrt(2))), np.float32)
    result: Floats = np.multiply(x * np.float32(0.5), erf + np.float32(1))
    return result


def _gelu_tanh(x: Floats) -> Floats:
    inner = (x + x * x * x * np.float32(0.044715)) * np.float32(math.sqrt(2 / math.pi))
    result: Floats = np.multiply(x * np.float32(0.5), np.tanh(inner) + np.float32(1))
    return result


def _relu(x: Floats) -> Floats:
    return np.maximum(x, np.float32(0))


_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}


def add(a: Floats, b: Floats) -> Floats:
    """Sum of equal shapes."""
    result: Floats = a + b
    return result


def multiply(a: Floats, b: Floats) -> Floats:
    """Product of equal shapes."""
    result: Floats = a * b
    return result


def scale(x: Floats, factor: float) -> Floats:
    """Product with a constant."""
    result: Floats = x * np.float32(factor)
    return result


def softcap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap)."""
    result: Floats = np.float32(cap) * np.tanh(x / np.float32(cap))
    return result


def gated_mlp(
    x: Floats,
    gate: Floats,
    up: Floats,
    down: Floats,
    kind: str,
    biases: tuple[Floats | None, Floats | None, Floats | None] = (None, None, None),
) -> Floats:
    """down(activate(gate(x)) * up(x)); biases of gate, up and down."""
    inner = multiply(activate(linear(x, gate, biases[0]), kind), linear(x, up, biases[1]))
    return linear(inner, down, biases[2])

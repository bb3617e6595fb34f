"""The meaning of the hot path's attention: `TreeAttention`, `KvWrite`, `EncodeAttention` and
`CrossAttention`, on the same bytes of one cache.

What is stored is equal to the last bit; sums are taken in float64, so results agree with the
kernels to float32 rounding. n is the rows of a step, d the depths of its tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

SLOTS = 16
"""Slots whose keys lie side by side."""
KV_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int8))
"""By the number in `past[1]`."""
BAND = 16
"""Columns of each half of a head whose keys share a scale in a cache of int8."""
_LARGEST_CODE = np.float32(127)


@dataclass(frozen=True)
class Attention:
    """The attributes of the ops that attend. window, softcap: 0 for none. reach: relative positions
    further than that count as so far.

    The cache holds the layers one after the other; kv_heads_before counts the KV heads of those
    before this one, kv_heads_total those of all (0: this is the only one).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    q_offset: int = 0
    k_offset: int = 0
    v_offset: int = 0
    kv_heads_before: int = 0
    kv_heads_total: int = 0
    reach: int = 0


@dataclass(frozen=True)
class KvWrite:
    """The attributes of the op, as those of Attention."""

    kv_heads: int
    head_dim: int
    k_offset: int = 0
    v_offset: int = 0
    kv_heads_before: int = 0
    kv_heads_total: int = 0


@dataclass(frozen=True)
class Step:
    """The rows of a step. past: int64 [3], committed length, type of the cache, capacity in slots.

    positions: int64 [n]. ancestors: int32 [n, d], the rows on the way to each row by depth, itself
    last, then -1; [n, 0] for a chain. Row 0 may not be the first of its tree: then its number is
    that of rows staged before. rope: float32 [n, 2, pairs], cosines and sines, or None.
    """

    positions: Ints
    ancestors: NDArray[np.int32]
    past: Ints
    rope: Floats | None = None

    @property
    def staged(self) -> int:
        """Rows of the tree that the cache holds already."""
        if not self.ancestors.size:
            return 0
        return int(self.ancestors[0, int(self.positions[0]) - int(self.past[0])])

    @property
    def slots(self) -> Ints:
        """`past` as of the step's own rows, which lie after those staged."""
        slots: Ints = self.past + np.array([self.staged, 0, 0])
        return slots

    def path(self, row: int) -> Ints:
        """The slots of positions 0 .. positions[row], int64 [positions[row] + 1]."""
        length, position = int(self.past[0]), int(self.positions[row])
        if self.ancestors.shape[1] == 0:
            return np.arange(position + 1)
        rows = self.ancestors[row, : position - length + 1]
        return np.concatenate([np.arange(length), length + rows.astype(np.int64)])


@dataclass(frozen=True)
class LayerCache:
    """Views of one layer: keys [blocks, 16, kv_heads, head_dim], values [capacity, kv_heads,
    head_dim], and the float32 scales of int8: [blocks, 16, kv_heads, bands] and [capacity,
    kv_heads]."""

    keys: NDArray[Any]
    values: NDArray[Any]
    key_scales: Floats | None
    value_scales: Floats | None

    def write(self, slot: int, key: Floats, value: Floats) -> None:
        """Store key and value [kv_heads, head_dim] in the type of the cache."""
        block, lane = divmod(slot, SLOTS)
        if self.key_scales is None or self.value_scales is None:
            with np.errstate(over="ignore"):  # float16 holds infinity for what it cannot hold
                self.keys[block, lane] = key.astype(self.keys.dtype)
                self.values[slot] = value.astype(self.values.dtype)
            return
        for band, columns in enumerate(bands(key.shape[-1])):
            codes, self.key_scales[block, lane, :, band] = _int8(key[:, columns])
            self.keys[block, lane][:, columns] = codes
        self.values[slot], self.value_scales[slot] = _int8(value)

    def read(self, slots: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Keys and values [len(slots), kv_heads, head_dim], exact."""
        blocks, lanes = np.divmod(slots, SLOTS)
        keys = self.keys[blocks, lanes].astype(np.float64)
        values = self.values[slots].astype(np.float64)
        if self.key_scales is None or self.value_scales is None:
            return keys, values
        for band, columns in enumerate(bands(keys.shape[-1])):
            keys[..., columns] *= self.key_scales[blocks, lanes][..., band, None]
        return keys, values * self.value_scales[slots][..., None]


def bands(head_dim: int) -> list[Ints]:
    """The columns of each band of a key: those of 16 places in the first half of a head and in the
    second, which rotate against each other. The last band may be smaller."""
    half = (head_dim + 1) // 2
    band = np.arange(head_dim) % half // BAND
    return [np.flatnonzero(band == number) for number in range(-(-half // BAND))]


def kv_head_bytes(kind: int, head_dim: int) -> int:
    """Bytes of one slot of one KV head pair in a cache of type `kind`."""
    dtype = KV_TYPES[kind]
    scales = 4 * (len(bands(head_dim)) + 1) if dtype == np.int8 else 0
    return 2 * head_dim * dtype.itemsize + scales


def layer_cache(cache: Bytes, how: Attention | KvWrite, past: Ints) -> LayerCache:
    """This layer of the cache, uint8 [bytes of all layers]; writing to it changes the cache."""
    _, kind, capacity = (int(value) for value in past)
    dtype, heads, dim = KV_TYPES[kind], how.kv_heads, how.head_dim
    start = capacity * how.kv_heads_before * kv_head_bytes(kind, dim)

    def take(form: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        nonlocal start
        end = start + int(np.prod(form)) * dtype.itemsize
        taken = cache[start:end].view(dtype).reshape(form)
        start = end
        return taken

    scaled, single = dtype == np.int8, np.dtype(np.float32)
    blocks, key_scales, value_scales = capacity // SLOTS, None, None
    keys = take((blocks, heads, dim, SLOTS), dtype).transpose(0, 3, 1, 2)
    if scaled:
        key_scales = take((blocks, heads, len(bands(dim)), SLOTS), single).transpose(0, 3, 1, 2)
    values = take((capacity, heads, dim), dtype)
    if scaled:
        value_scales = take((capacity, heads), single)
    return LayerCache(keys, values, key_scales, value_scales)


def tree_attention(
    qkv: tuple[Floats, Floats, Floats],
    step: Step,
    cache: Bytes,
    how: Attention,
    sinks: Floats | None = None,
    relative: Floats | None = None,
) -> Floats:
    """The op TreeAttention: store keys and values of the step in `cache`, then attend.

    qkv: float32 [n, columns] each, possibly one array three times. sinks: float32 [heads], a logit
    per head that takes part in the softmax and adds no value. relative: float32 [heads, 2 * reach
    + 1], what relative positions add to scaled scores. Returns [n, heads * head_dim].
    """
    q = _columns(qkv[0], how.q_offset, how.heads, how.head_dim)
    if step.rope is not None:
        q = _rotate(q, step.rope)
    kv_write(qkv[1:], step.slots, cache, how, step.rope)
    layer = layer_cache(cache, how, step.past)
    y = np.empty((len(q), how.heads, how.head_dim), np.float32)
    for row in range(len(q)):
        first = max(0, int(step.positions[row]) + 1 - how.window) if how.window else 0
        keys, values = layer.read(step.path(row)[first:])
        position = int(step.positions[row])
        bias = _relative(relative, how.reach, np.arange(first, position + 1) - position)
        y[row] = _attend(q[row], keys, values, how, sinks, bias)
    return y.reshape(len(q), -1)


def encode_attention(
    qkv: tuple[Floats, Floats, Floats],
    how: Attention,
    rope: Floats | None = None,
    relative: Floats | None = None,
) -> Floats:
    """The op EncodeAttention: each row, at the position of its number, sees all rows.

    qkv: float32 [n, columns] each. rope, relative: as in Step and tree_attention. Returns [n,
    heads * head_dim].
    """
    q = _columns(qkv[0], how.q_offset, how.heads, how.head_dim)
    k = _columns(qkv[1], how.k_offset, how.kv_heads, how.head_dim)
    v = _columns(qkv[2], how.v_offset, how.kv_heads, how.head_dim)
    if rope is not None:
        q, k = _rotate(q, rope), _rotate(k, rope)
    y = np.empty(q.shape, np.float32)
    for row in range(len(q)):
        bias = _relative(relative, how.reach, np.arange(len(q)) - row)
        y[row] = _attend(q[row], k.astype(np.float64), v.astype(np.float64), how, None, bias)
    return y.reshape(len(q), -1)


def cross_attention(q: Floats, source: Ints, memory: Bytes, how: Attention) -> Floats:
    """The op CrossAttention: each row sees all rows of a source.

    q: float32 [n, columns]. source: int64 [3], as `past`: rows, type and capacity of `memory`,
    which holds the keys and values of all layers as a cache does. Returns [n, heads * head_dim].
    """
    queries = _columns(q, how.q_offset, how.heads, how.head_dim)
    keys, values = layer_cache(memory, how, source).read(np.arange(int(source[0])))
    y = np.empty(queries.shape, np.float32)
    for row, query in enumerate(queries):
        y[row] = _attend(query, keys, values, how, None, None)
    return y.reshape(len(q), -1)


def kv_write(
    kv: tuple[Floats, Floats],
    past: Ints,
    cache: Bytes,
    how: Attention | KvWrite,
    rope: Floats | None = None,
) -> None:
    """The op KvWrite: store keys and values of a step in `cache`, the keys rotated.

    kv: float32 [n, columns] each, possibly one array twice. past, rope: as in Step.
    """
    k = _columns(kv[0], how.k_offset, how.kv_heads, how.head_dim)
    v = _columns(kv[1], how.v_offset, how.kv_heads, how.head_dim)
    if rope is not None:
        k = _rotate(k, rope)
    layer = layer_cache(cache, how, past)
    for row in range(len(k)):
        layer.write(int(past[0]) + row, k[row], v[row])


def _columns(x: Floats, offset: int, heads: int, head_dim: int) -> Floats:
    return x[:, offset : offset + heads * head_dim].reshape(len(x), heads, head_dim)


def _rotate(x: Floats, table: Floats) -> Floats:
    """Values i and pairs + i of each head [n, heads, head_dim] turn by the angle of pair i."""
    cosine, sine = table[:, :1], table[:, 1:]
    pairs = table.shape[2]
    first, second, rest = np.split(x, [pairs, 2 * pairs], axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
    return np.concatenate(turned, axis=-1)


def _relative(relative: Floats | None, reach: int, offsets: Ints) -> Floats | None:
    """What is added to the scores [heads, positions] of keys so far from the query."""
    return None if relative is None else relative[:, np.clip(offsets, -reach, reach) + reach]


def _int8(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Codes of each row [heads, columns] and scales [heads]; not finite: zeros and NaN."""
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    known = np.where(finite, x, np.float32(0))
    largest = np.abs(known).max(axis=-1, keepdims=True) / _LARGEST_CODE
    scales = np.where(finite, largest, np.nan).astype(np.float32)
    codes = np.rint(known / np.where(scales > 0, scales, np.float32(1)))
    return np.clip(codes, -_LARGEST_CODE, _LARGEST_CODE).astype(np.int8), scales[..., 0]


def _attend(
    q: Floats,
    keys: NDArray[np.float64],
    values: NDArray[np.float64],
    how: Attention,
    sinks: Floats | None,
    bias: Floats | None,
) -> NDArray[np.float64]:
    """One row [heads, head_dim] over what it sees, keys [positions, kv_heads, head_dim]."""
    groups = q.reshape(how.kv_heads, -1, how.head_dim)
    scores = np.einsum("hgd,phd->hgp", groups, keys).reshape(how.heads, -1) * how.scale
    if how.softcap:
        scores = how.softcap * np.tanh(scores / how.softcap)
    if bias is not None:
        scores = scores + bias
    logits = scores if sinks is None else np.concatenate([scores, sinks[:, None]], axis=1)
    weights = np.exp(scores - logits.max(axis=1, keepdims=True))
    total = np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    shares = (weights / total).reshape(how.kv_heads, -1, len(keys))
    mixed: NDArray[np.float64] = np.einsum("hgp,phd->hgd", shares, values)
    return mixed.reshape(how.heads, how.head_dim)

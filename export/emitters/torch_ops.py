"""The op protocol in torch, differentiable: what `quickdraft.export.emitters.torch` runs.

Shapes use b for sequences, s for the rows of each in one call, p for the rows that came before, m
for the rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from quickdraft.export.emitters.composed import ComposedOps
from quickdraft.export.ops import Activation, Attention, RelativeBias, Rope
from quickdraft.export.weights import Weight
from quickdraft.numpy_ops import relative_buckets

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


@dataclass(frozen=True)
class LayerKeys:
    """Keys and values of one layer on their way into a cache, each [b, s, kv_heads * head_dim].

    projected: keys as the projection gives them. unrotated: after the key norm. key: after the
    rope too, as the cache has them. Where a layer has no such step, both are the same tensor.
    """

    projected: Tensor
    unrotated: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class TorchMemory:
    """What an encoder makes of sources, differentiable like all else.

    layers: keys and values [b, r, kv_heads * head_dim] by layer of the target. filled: bool [b, r],
    True for rows of the source; None where they all are.
    """

    layers: Mapping[int, tuple[Tensor, Tensor]]
    filled: Tensor | None = None

    @classmethod
    def of(cls, staged: Mapping[int, LayerKeys], filled: Tensor | None = None) -> TorchMemory:
        """From what an encoder staged, see `TorchOutput.staged`."""
        return cls({layer: (each.key, each.value) for layer, each in staged.items()}, filled)

    def detach(self) -> TorchMemory:
        """The same values, through which no gradient goes."""
        layers = {layer: (k.detach(), v.detach()) for layer, (k, v) in self.layers.items()}
        return TorchMemory(layers, self.filled)


@dataclass(frozen=True)
class Past:
    """Rows that every row of a call may look at: a cache, differentiable like all else.

    positions: int64 [1 or b, p]. layers: keys and values [b, p, kv_heads * head_dim] by layer.
    memory: of the sources that these rows attended to, in the target of an encoder.
    """

    positions: Tensor
    layers: Mapping[int, tuple[Tensor, Tensor]]
    memory: TorchMemory | None = None

    def __len__(self) -> int:
        return int(self.positions.shape[-1])

    def join(self, later: Past) -> Past:
        """The rows of this one and then those of `later`, which must have the same layers."""
        return Past(
            _side_by_side(self.positions, later.positions),
            {
                layer: (torch.cat([key, more[0]], -2), torch.cat([value, more[1]], -2))
                for (layer, (key, value)), more in zip(
                    self.layers.items(), map(later.layers.__getitem__, self.layers), strict=True
                )
            },
            self.memory,
        )

    def detach(self) -> Past:
        """The same values, through which no gradient goes."""
        layers = {layer: (k.detach(), v.detach()) for layer, (k, v) in self.layers.items()}
        return Past(self.positions, layers, self.memory and self.memory.detach())


@dataclass(frozen=True)
class Step:
    """The inputs of a call in one form. tokens: [b, s] or None. positions: [1 or b, s]. mask and
    rows: as `TorchModel.forward` gets them. plain: whether positions are those of the rows."""

    tokens: Tensor | None
    positions: Tensor
    mask: Tensor | None = None
    features: Tensor | None = None
    rows: Tensor | None = None
    past: Past | None = None
    plain: bool = True
    memory: TorchMemory | None = None


class TorchOps(ComposedOps[Tensor]):
    """An Ops that computes at once, on values [b, s, width]; what it was told to offer gathers
    in `offered`, `staged`, `layers`, `keys` and `result`. Products run in the type of the stream,
    norms and rotations in float32."""

    def __init__(
        self,
        weight: Callable[[Weight], Tensor],
        dtype: torch.dtype,
        step: Step,
        hidden_states: Collection[int] = (),
        keys: bool = False,
    ) -> None:
        self.offered: dict[int, Tensor] = {}
        self.staged: dict[int, LayerKeys] = {}
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.keys: dict[int, LayerKeys] = {}
        self.result: Tensor | None = None
        self._weight, self._dtype, self._step = weight, dtype, step
        self._wanted, self._keep = hidden_states, keys
        self._visible: dict[int | None, Tensor | None] = {}
        self._angles: dict[Rope, tuple[Tensor, Tensor, Tensor]] = {}
        self._relative: dict[RelativeBias, Tensor] = {}
        # Where normed and rotated values come from, for as long as these live.
        self._unnormed, self._unrotated = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._all_rows = torch.arange(step.positions.shape[-1], device=step.positions.device)

    def tokens(self) -> Tensor:
        """[b, s]."""
        if self._step.tokens is None:
            raise ValueError("this model reads tokens, and was called without")
        return self._step.tokens

    def positions(self) -> Tensor:
        """[1 or b, s]."""
        return self._step.positions

    def output_rows(self) -> Tensor:
        """As `TorchModel.forward` was given them."""
        return self._all_rows if self._step.rows is None else self._step.rows

    def features(self) -> Tensor:
        """[b, s, width]."""
        if self._step.features is None:
            raise ValueError("this model reads features, and was called without")
        return self._step.features.to(self._dtype)

    def embed(self, ids: Tensor, table: Weight) -> Tensor:
        """[b, s] to [b, s, width]."""
        return functional.embedding(ids, self._weight(table)).to(self._dtype)

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """[b, n, width] to [b, m, width], or to [wanted rows, width] where rows are a mask. Without
        wanted rows all there are, which after `stack` are more than the rows of the call."""
        if rows is self._all_rows:
            return x
        if rows.dtype == torch.bool:
            return x[rows]
        if rows.dim() == 1:
            return x[:, rows]
        return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None = None) -> Tensor:
        """In the type of x."""
        shift = None if bias is None else self._weight(bias).to(x.dtype)
        return functional.linear(x, self._weight(weight).to(x.dtype), shift)

    def rms_norm(self, x: Tensor, weight: Weight | None, eps: float, heads: int = 1) -> Tensor:
        """In float32."""
        parts = x.float().unflatten(-1, (heads, -1))
        scale = None if weight is None else self._weight(weight).float()
        normed = functional.rms_norm(parts, parts.shape[-1:], scale, eps)
        return self._normed(normed, x)

    def layer_norm(
        self, x: Tensor, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> Tensor:
        """In float32."""
        parts = x.float().unflatten(-1, (heads, -1))
        width = parts.shape[-1]
        normed = functional.layer_norm(parts, (width,), eps=eps)
        if weight is not None:
            normed = normed * self._weight(weight).float().reshape(-1, width)
        if bias is not None:
            normed = normed + self._weight(bias).float().reshape(-1, width)
        return self._normed(normed, x)

    def _normed(self, parts: Tensor, x: Tensor) -> Tensor:
        result = parts.flatten(-2).to(x.dtype)
        self._unnormed[result] = x
        return result

    def rope(self, x: Tensor, positions: Tensor, rope: Rope, heads: int) -> Tensor:
        """In float32; the angles of all layers that turn alike are computed once."""
        known, cosine, sine = self._angles.get(rope, (None, None, None))
        if known is not positions:
            table = torch.tensor(rope.frequencies, dtype=torch.float32, device=positions.device)
            angles = positions.float()[..., None, None] * table
            cosine = angles.cos() * rope.attention_factor
            sine = angles.sin() * rope.attention_factor
            self._angles[rope] = (positions, cosine, sine)
        pairs = len(rope.frequencies)
        parts = x.float().unflatten(-1, (heads, -1))
        first, second, rest = parts.split([pairs, pairs, parts.shape[-1] - 2 * pairs], -1)
        turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
        result = torch.cat(turned, -1).flatten(-2).to(x.dtype)
        self._unrotated[result] = x
        return result

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """All rows of a sequence at once, with the past where there is one."""
        layer, past = attention.layer, self._step.past
        self.layers[layer] = (k, v)
        if self._keep:
            self.keys[layer] = self._history(k, v)
        if past is not None:
            key, value = past.layers[layer]
            k = torch.cat([key.to(k.dtype), k], -2)
            v = torch.cat([value.to(v.dtype), v], -2)
        if attention.window not in self._visible:
            self._visible[attention.window] = _visible(self._step, attention.window)
        mask = self._visible[attention.window]
        return self._mix(q, k, v, attention, mask, causal=mask is None)

    def encode_attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """All rows of a source, or those that the mask of the call lets each see."""
        seen = self._step.mask
        if seen is not None:  # a row that sees nothing would be no number
            seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
            seen = seen[:, None] if seen.dim() == 3 else seen
        return self._mix(q, k, v, attention, seen)

    def cross_attend(self, q: Tensor, attention: Attention) -> Tensor:
        """The rows of the memory that its sources fill."""
        memory = self._step.memory
        if memory is None:
            raise ValueError("this model attends to a memory, and was called without")
        k, v = (each.to(q.dtype) for each in memory.layers[attention.layer])
        filled = None if memory.filled is None else memory.filled[:, None, None]
        return self._mix(q, k, v, attention, filled)

    def _mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        a: Attention,
        mask: Tensor | None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Attention of rows to others. mask: bool, True where a row may look; None is everywhere,
        or at those before it."""
        queries, group = _heads(q, a.num_heads), a.num_heads // a.num_kv_heads
        # Said out loud, since not every kernel of torch knows grouped heads.
        keys, values = (_heads(each, a.num_kv_heads).repeat_interleave(group, 1) for each in (k, v))
        if a.softcap is None and a.relative is None:
            mixed = functional.scaled_dot_product_attention(
                queries, keys, values, mask, is_causal=causal, scale=a.scale
            )
        else:
            if causal:
                mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril()
            bias = None if a.relative is None else self._by_distance(a.relative)
            mixed = _spelled_out(queries, keys, values, a, mask, bias)
        return mixed.transpose(1, 2).flatten(-2)

    def _by_distance(self, relative: RelativeBias) -> Tensor:
        """Biases by distance, [1 or b, heads, s, p + s]; shared by all layers."""
        if relative not in self._relative:
            step, reach = self._step, relative.max_distance
            past = step.positions[:, :0] if step.past is None else step.past.positions
            known = _side_by_side(past, step.positions)
            near = (known[:, None] - step.positions[:, :, None]).clamp(-reach, reach) + reach
            every = np.arange(-reach, reach + 1)
            both = relative.bidirectional
            rows = relative_buckets(every, relative.buckets, reach, bidirectional=both)
            table = self._weight(relative.table)
            buckets = torch.tensor(rows, device=near.device)[near]
            self._relative[relative] = functional.embedding(buckets, table).permute(0, 3, 1, 2)
        return self._relative[relative]

    def conv1d(self, x: Tensor, weight: Weight, bias: Weight | None, stride: int) -> Tensor:
        """[b, n, in] to [b, ceil(n / stride), out]."""
        shift = None if bias is None else self._weight(bias).to(x.dtype)
        matrix = self._weight(weight).to(x.dtype)
        half = weight.shape[2] // 2
        return functional.conv1d(x.mT, matrix, shift, stride, half).mT

    def stage(self, k: Tensor, v: Tensor, attention: Attention) -> None:
        """Kept, by layer of the target."""
        self.staged[attention.layer] = self._history(k, v)

    def _history(self, k: Tensor, v: Tensor) -> LayerKeys:
        unrotated = self._unrotated.get(k, k)
        return LayerKeys(self._unnormed.get(unrotated, unrotated), unrotated, k, v)

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """[b, n_i, width] to [b, sum of n_i, width]."""
        return torch.cat(list(parts), -2)

    def activate(self, x: Tensor, kind: Activation) -> Tensor:
        """In the type of x."""
        return _ACTIVATIONS[kind](x)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """In their type."""
        return a + b

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """In their type."""
        return a * b

    def scale(self, x: Tensor, factor: float) -> Tensor:
        """In the type of x."""
        return x * factor

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """In the type of x."""
        return cap * torch.tanh(x / cap)

    def hidden_state(self, x: Tensor, layer: int) -> None:
        """Kept if it was asked for."""
        if layer in self._wanted:
            self.offered[layer] = x

    def logits(self, x: Tensor) -> None:
        """Kept."""
        self.result = x


def _heads(x: Tensor, heads: int) -> Tensor:
    """[b, n, heads * head_dim] to [b, heads, n, head_dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _side_by_side(a: Tensor, b: Tensor) -> Tensor:
    """Positions of two groups of rows, [1 or b, n] each."""
    count = max(len(a), len(b))
    return torch.cat([a.expand(count, -1), b.expand(count, -1)], -1)


def _visible(step: Step, window: int | None) -> Tensor | None:
    """Which rows see which: bool [s, p + s] or [b, 1, s, p + s]; None for plainly causal."""
    count, before = step.positions.shape[-1], 0 if step.past is None else len(step.past)
    near = window is None or (step.plain and window >= count)
    if step.mask is None and step.past is None and near:
        return None
    device = step.positions.device
    row = torch.arange(count, device=device)[:, None] + before
    column = torch.arange(before + count, device=device)
    seen = column <= row
    if step.mask is not None:
        mask = step.mask
        if mask.shape[-1] == count:
            mask = functional.pad(mask, (before, 0), value=True)
        seen = mask | (column == row)
    if window is not None:
        past = step.positions[:, :0] if step.past is None else step.past.positions
        known = _side_by_side(past, step.positions)
        seen = seen & (step.positions[:, :, None] - known[:, None, :] < window)
    return seen[:, None] if seen.dim() == 3 else seen


def _spelled_out(
    q: Tensor, k: Tensor, v: Tensor, a: Attention, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention whose scores are capped, or have something added; heads as in `_heads`."""
    scores = (q @ k.transpose(-1, -2)).float() * a.scale
    if a.softcap is not None:
        scores = a.softcap * torch.tanh(scores / a.softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v

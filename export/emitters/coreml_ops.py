"""The op protocol as MIL, the language of Core ML's ML programs: one function, one number of rows.

Every shape is fixed. Keys and values live in states of a fixed number of slots, which a step
writes with a slice update and then attends over under a mask (docs/decisions/016-core-ml-states.md
says why like this). Values are [rows, width], float16 unless the weights are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.composed import ComposedOps
from quickdraft.export.emitters.coreml_weights import Constants, Var
from quickdraft.export.ops import Activation, Attention, Rope
from quickdraft.export.weights import Weight
from quickdraft.manifest import FixedStateLayout, StaticStep

_GELU = {"gelu": "EXACT", "gelu_tanh": "TANH_APPROXIMATION"}


class CoremlOps(ComposedOps[Var]):
    """Emits one step of a part into the function that is being built; `outputs` ends it."""

    def __init__(
        self,
        inputs: Mapping[str, Var],
        constants: Constants,
        part: Part,
        layout: FixedStateLayout,
        step: StaticStep,
    ) -> None:
        self._inputs = inputs
        self._constants = constants
        self._part = part
        self._spec = part.spec
        self._layout = layout
        self._rows = step.rows
        self._dtype = constants.dtype
        self._wanted = set(part.hidden_states)
        self._memo: dict[tuple[Any, ...], Var] = {}
        self._results: dict[str, Var] = {}

    def tokens(self) -> Var:
        """Token ids, int32 [rows]."""
        return self._inputs["tokens"]

    def positions(self) -> Var:
        """Positions, int32 [rows]."""
        return self._inputs["positions"]

    def output_rows(self) -> Var:
        """Rows whose logits are wanted, int32 [output rows]."""
        return self._inputs["output_rows"]

    def features(self) -> Var:
        """Vectors that come with the tokens, [rows, width]."""
        return self._inputs["features"]

    def hidden_state(self, x: Var, layer: int) -> None:
        """Emit the residual stream if this layer was asked for."""
        if layer in self._wanted:
            self._result(f"hidden_states_{layer}", x)

    def logits(self, x: Var) -> None:
        """Name the result."""
        self._result("logits", x)

    def _result(self, name: str, x: Var) -> None:
        # A value may have several names, or be an input: each output is one of its own.
        self._results[name] = mb.identity(x=x, name=name)

    def outputs(self) -> dict[str, Var]:
        """Everything that the step puts out, by name."""
        return self._results

    # Rows and matrices

    def embed(self, ids: Var, table: Weight) -> Var:
        """Rows of a table; vectors of positions are few and stay floats."""
        if ids is self._inputs["positions"]:
            return self._gather(self._constants.table(table), ids)
        matrix, offset = self._constants.matrix(table)
        rows = self._gather(matrix, ids)
        if offset is None:
            return rows
        groups = offset.shape[1]
        parts = mb.reshape(x=rows, shape=[self._rows, groups, -1])
        moved = mb.expand_dims(x=self._gather(offset, ids), axes=[2])
        return mb.reshape(x=mb.add(x=parts, y=moved), shape=[self._rows, -1])

    def take_rows(self, x: Var, rows: Var) -> Var:
        """[rows, width] to [output rows, width]."""
        return self._gather(x, rows)

    def _gather(self, x: Var, rows: Var) -> Var:
        return mb.gather(x=x, indices=rows, axis=0, validate_indices=False)

    def stack(self, parts: Sequence[Var]) -> Var:
        """Rows of several values, one value after another."""
        return mb.concat(values=list(parts), axis=0)

    def linear(self, x: Var, weight: Weight, bias: Weight | None = None) -> Var:
        """Matrix product, plus what the codes leave out, plus bias."""
        matrix, offset = self._constants.matrix(weight)
        vector = None if bias is None else self._constants.vector(bias)
        extra = {} if vector is None else {"bias": vector}
        y = mb.linear(x=x, weight=matrix, **extra)
        if offset is None:
            return y
        # A group's offset times the sum of the group's inputs, once for all products of one x.
        key = ("sums", x.name, offset.shape[1])
        if key not in self._memo:
            parts = mb.reshape(x=x, shape=[x.shape[0], offset.shape[1], -1])
            self._memo[key] = mb.reduce_sum(x=parts, axes=[2])
        return mb.add(x=y, y=mb.linear(x=self._memo[key], weight=offset))

    # Norms

    def rms_norm(self, x: Var, weight: Weight | None, eps: float, heads: int = 1) -> Var:
        """The layer norm of x beside -x: the mean of both is 0, and so their variance is the mean
        square of x. Core ML's layer norm does not overflow in float16; squares do."""
        parts = self._split_heads(x, heads)
        both = mb.concat(values=[parts, mb.mul(x=parts, y=self._dtype(-1))], axis=-1)
        normed = mb.layer_norm(x=both, axes=[-1], epsilon=self._dtype(eps))
        width = parts.shape[-1]
        rank = len(parts.shape)
        normed = mb.slice_by_index(
            x=normed,
            begin=[0] * rank,
            end=[*parts.shape[:-1], width],
        )
        if weight is not None:
            normed = mb.mul(x=normed, y=self._constants.vector(weight))
        return self._join_heads(normed)

    def layer_norm(
        self, x: Var, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> Var:
        """Layer norm without weights, then the weights, which may differ between heads."""
        parts = self._split_heads(x, heads)
        normed = mb.layer_norm(x=parts, axes=[-1], epsilon=self._dtype(eps))
        per_head = weight is not None and weight.shape[-1] != parts.shape[-1]
        if per_head:
            normed = self._join_heads(normed)
        if weight is not None:
            normed = mb.mul(x=normed, y=self._constants.vector(weight))
        if bias is not None:
            normed = mb.add(x=normed, y=self._constants.vector(bias))
        return normed if per_head else self._join_heads(normed)

    def _split_heads(self, x: Var, heads: int) -> Var:
        return x if heads == 1 else mb.reshape(x=x, shape=[x.shape[0], heads, -1])

    def _join_heads(self, x: Var) -> Var:
        return x if len(x.shape) == 2 else mb.reshape(x=x, shape=[x.shape[0], -1])

    # Attention

    def rope(self, x: Var, positions: Var, rope: Rope, heads: int) -> Var:
        """Rotate pairs of halves by sines and cosines read from a table of all positions."""
        cosine, sine = (self._angles(rope, kind, positions) for kind in ("cos", "sin"))
        pairs, parts = len(rope.frequencies), mb.reshape(x=x, shape=[self._rows, heads, -1])
        rest = parts.shape[-1] - 2 * pairs
        sizes = [pairs, pairs, rest] if rest else [pairs, pairs]
        first, second, *others = mb.split(x=parts, split_sizes=sizes, axis=-1)
        turned = mb.sub(x=mb.mul(x=first, y=cosine), y=mb.mul(x=second, y=sine))
        other = mb.add(x=mb.mul(x=second, y=cosine), y=mb.mul(x=first, y=sine))
        joined = mb.concat(values=[turned, other, *others], axis=-1)
        return mb.reshape(x=joined, shape=[self._rows, -1])

    def _angles(self, rope: Rope, kind: str, positions: Var) -> Var:
        """Cosines or sines of the step's positions, [rows, 1, pairs]."""
        key = (kind, rope)
        if key not in self._memo:

            def table() -> Any:
                places = np.arange(self._layout.length, dtype=np.float32)[:, None]
                angles = places * np.asarray(rope.frequencies, np.float32)
                values = np.cos(angles) if kind == "cos" else np.sin(angles)
                return values * np.float32(rope.attention_factor)

            name = f"rope.{kind}.{rope.attention_factor}.{hash(rope.frequencies):x}"
            rows = self._gather(self._constants.array(name, table), positions)
            self._memo[key] = mb.expand_dims(x=rows, axes=[1])
        return self._memo[key]

    def attend(self, q: Var, k: Var, v: Var, attention: Attention) -> Var:
        """Write k and v into the states, then attend over all slots under the mask."""
        keys = self._write(self._layout.keys, k, attention)
        values = self._write(self._layout.values, v, attention)
        return self._mix(q, keys, values, attention, self._score_bias(attention))

    def _score_bias(self, a: Attention) -> Var:
        """What is added to scores [kv_heads, group, rows, slots], or less, to be repeated."""
        if a.relative is not None:
            raise UnsupportedModel("relative positions are for encoder-decoder models")
        return self._inputs[mask_name(a.window)]

    def _mix(self, q: Var, keys: Var, values: Var, a: Attention, bias: Var | None) -> Var:
        """Attend over keys and values [kv_heads, slots, head_dim]."""
        rows, slots, group = self._rows, keys.shape[1], a.num_heads // a.num_kv_heads
        query = mb.mul(x=q, y=self._dtype(a.scale))
        query = mb.reshape(x=query, shape=[rows, a.num_kv_heads, group, a.head_dim])
        query = mb.transpose(x=query, perm=[1, 2, 0, 3])
        query = mb.reshape(x=query, shape=[a.num_kv_heads, group * rows, a.head_dim])
        scores = mb.matmul(x=query, y=keys, transpose_y=True)
        if a.softcap is not None:
            scores = self.softcap(scores, a.softcap)
        scores = mb.reshape(x=scores, shape=[a.num_kv_heads, group, rows, slots])
        biased = scores if bias is None else mb.add(x=scores, y=bias)
        weights = mb.softmax(x=biased, axis=-1)
        weights = mb.reshape(x=weights, shape=[a.num_kv_heads, group * rows, slots])
        mixed = mb.matmul(x=weights, y=values)
        mixed = mb.reshape(x=mixed, shape=[a.num_kv_heads, group, rows, a.head_dim])
        mixed = mb.transpose(x=mixed, perm=[2, 0, 1, 3])
        return mb.reshape(x=mixed, shape=[rows, a.num_heads * a.head_dim])

    def stage(self, k: Var, v: Var, attention: Attention) -> None:
        """A predictor would write the states of another model, which Core ML cannot."""
        del k, v, attention
        raise UnsupportedModel("Core ML has no predictors; leave --trained out")

    def _write(self, states: Sequence[str], rows: Var, a: Attention) -> Var:
        """Write this step's rows into the layer's heads of the states; all slots of the layer,
        [kv_heads, slots, head_dim]."""
        shaped = mb.reshape(x=rows, shape=[self._rows, a.num_kv_heads, a.head_dim])
        left = mb.transpose(x=shaped, perm=[1, 0, 2])
        seen = []
        for state in states:
            part = left
            if self._dtype is np.float32:  # states are float16: the next one takes the rest
                part = mb.cast(x=left, dtype="fp16")
                left = mb.sub(x=left, y=mb.cast(x=part, dtype="fp32"))
            layer = self._update(self._inputs[state], part, a)
            seen.append(mb.cast(x=layer, dtype="fp32") if self._dtype is np.float32 else layer)
        return seen[0] if len(seen) == 1 else mb.add(x=seen[0], y=seen[1])

    def _update(self, state: Var, rows: Var, a: Attention) -> Var:
        first = sum(self._spec.num_kv_heads[: a.layer])
        begin, end = self._place(first, a)
        held = mb.read_state(input=state)
        held = mb.slice_update(x=held, update=rows, begin=begin, end=end)
        held = mb.coreml_update_state(state=state, value=held)
        return mb.slice_by_index(
            x=held,
            begin=[first, 0, 0],
            end=[first + a.num_kv_heads, self._layout.slots, a.head_dim],
        )

    def _place(self, first: int, a: Attention) -> tuple[Var, Var]:
        """Where the rows of a layer go: begin and end over heads, slots and width."""
        key = ("place", first)
        if key not in self._memo:
            slot = self._inputs["first_slot"]
            self._memo[key] = place(slot, self._rows, (first, first + a.num_kv_heads), a.head_dim)
        found: tuple[Var, Var] = self._memo[key]
        return found

    # Value by value

    def activate(self, x: Var, kind: Activation) -> Var:
        """One op each."""
        if kind == "silu":
            return mb.silu(x=x)
        if kind == "relu":
            return mb.relu(x=x)
        return mb.gelu(x=x, mode=_GELU[kind])

    def add(self, a: Var, b: Var) -> Var:
        """Sum of equal shapes."""
        return mb.add(x=a, y=b)

    def multiply(self, a: Var, b: Var) -> Var:
        """Product of equal shapes."""
        return mb.mul(x=a, y=b)

    def scale(self, x: Var, factor: float) -> Var:
        """Product with a constant."""
        return mb.mul(x=x, y=self._dtype(factor))

    def softcap(self, x: Var, cap: float) -> Var:
        """cap * tanh(x / cap)."""
        return self.scale(mb.tanh(x=self.scale(x, 1.0 / cap)), cap)


def mask_name(window: int | None) -> str:
    """The input of the mask of an attention window."""
    return "mask" if window is None else f"mask_window_{window}"


def place(slot: Var, rows: int, heads: tuple[int, int], width: int) -> tuple[Var, Var]:
    """Begin and end of `rows` slots from `slot` (int32 [1]) on, over some heads of a state."""
    last = mb.add(x=slot, y=np.array([rows], np.int32))
    begin = [np.array([heads[0]], np.int32), slot, np.array([0], np.int32)]
    end = [np.array([heads[1]], np.int32), last, np.array([width], np.int32)]
    return mb.concat(values=begin, axis=0), mb.concat(values=end, axis=0)

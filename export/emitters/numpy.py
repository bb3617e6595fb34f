"""The reference emitter: the calls an architecture makes, recorded as a program with weights.

`reference/program.json` is a list of instructions in single-assignment form, each an op of
`quickdraft.numpy_ops` with its inputs, weights and attributes; `reference/weights.safetensors`
holds the weights, blocks as blocks. The reference backend interprets it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quickdraft.export.emitters.base import EmitRequest, Part, entries
from quickdraft.export.emitters.composed import ComposedOps
from quickdraft.export.emitters.weight_file import WeightFile
from quickdraft.export.ops import Activation, Attention, Rope
from quickdraft.export.quantize import WeightFormat, store
from quickdraft.export.weights import Blocked, Dense, Weight, dense_weight
from quickdraft.manifest import SlotsLayout, StepNames, Variant

PROGRAM_VERSION = 1
SLOT_ALIGNMENT = 64
LAYOUT = SlotsLayout(
    kind="slots",
    alignment=SLOT_ALIGNMENT,
    past_key="key.{layer}",
    past_value="value.{layer}",
    present_key="key.{layer}",
    present_value="value.{layer}",
)


@dataclass(frozen=True)
class Recorded:
    """A value of the program, by name."""

    name: str


@dataclass
class Recorder(ComposedOps[Recorded]):
    """An Ops that writes down what it is asked."""

    hidden_states: Sequence[int] = ()
    instructions: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    matrices: set[str] = field(default_factory=set)
    ropes: dict[tuple[float, ...], str] = field(default_factory=dict)
    windows: set[int | None] = field(default_factory=set)
    offered: dict[int, str] = field(default_factory=dict)
    result: str = ""

    def tokens(self) -> Recorded:
        """An input of the program."""
        return Recorded("tokens")

    def positions(self) -> Recorded:
        """An input of the program."""
        return Recorded("positions")

    def output_rows(self) -> Recorded:
        """An input of the program."""
        return Recorded("output_rows")

    def embed(self, ids: Recorded, table: Weight) -> Recorded:
        """Recorded; the table is stored in the weight format."""
        self.matrices.add(table.name)
        return self._record("embed", [ids], {"table": table})

    def take_rows(self, x: Recorded, rows: Recorded) -> Recorded:
        """Recorded."""
        return self._record("take_rows", [x, rows])

    def linear(self, x: Recorded, weight: Weight, bias: Weight | None = None) -> Recorded:
        """Recorded; the matrix is stored in the weight format."""
        self.matrices.add(weight.name)
        return self._record("linear", [x], {"weight": weight, "bias": bias})

    def rms_norm(self, x: Recorded, weight: Weight | None, eps: float, heads: int = 1) -> Recorded:
        """Recorded."""
        return self._record("rms_norm", [x], {"weight": weight}, {"eps": eps, "heads": heads})

    def layer_norm(
        self, x: Recorded, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> Recorded:
        """Recorded."""
        weights = {"weight": weight, "bias": bias}
        return self._record("layer_norm", [x], weights, {"eps": eps, "heads": heads})

    def rope(self, x: Recorded, positions: Recorded, rope: Rope, heads: int) -> Recorded:
        """Recorded; frequencies go with the weights."""
        name = self.ropes.setdefault(rope.frequencies, f"rope.{len(self.ropes)}")
        table = dense_weight(name, np.asarray(rope.frequencies, np.float32))
        return self._record(
            "rope",
            [x, positions],
            {"frequencies": table},
            {"attention_factor": rope.attention_factor, "heads": heads},
        )

    def attend(self, q: Recorded, k: Recorded, v: Recorded, attention: Attention) -> Recorded:
        """Recorded; cache, slots and bias are the interpreter's to fill in."""
        self.windows.add(attention.window)
        return self._record(
            "attend",
            [q, k, v],
            attributes={
                "layer": attention.layer,
                "window": attention.window,
                "scale": attention.scale,
                "softcap": attention.softcap,
            },
        )

    def activate(self, x: Recorded, kind: Activation) -> Recorded:
        """Recorded."""
        return self._record("activate", [x], attributes={"kind": kind})

    def add(self, a: Recorded, b: Recorded) -> Recorded:
        """Recorded."""
        return self._record("add", [a, b])

    def multiply(self, a: Recorded, b: Recorded) -> Recorded:
        """Recorded."""
        return self._record("multiply", [a, b])

    def scale(self, x: Recorded, factor: float) -> Recorded:
        """Recorded."""
        return self._record("scale", [x], attributes={"factor": factor})

    def softcap(self, x: Recorded, cap: float) -> Recorded:
        """Recorded."""
        return self._record("softcap", [x], attributes={"cap": cap})

    def hidden_state(self, x: Recorded, layer: int) -> None:
        """Kept if it was asked for."""
        if layer in self.hidden_states:
            self.offered[layer] = x.name

    def logits(self, x: Recorded) -> None:
        """Name the result."""
        self.result = x.name

    def _record(
        self,
        op: str,
        inputs: Sequence[Recorded],
        weights: Mapping[str, Weight | None] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Recorded:
        value = Recorded(f"v{len(self.instructions)}")
        names: dict[str, str | None] = {}
        for place, weight in (weights or {}).items():
            names[place] = None if weight is None else weight.name
            if weight is not None:
                self.weights.setdefault(weight.name, weight)
        self.instructions.append(
            {
                "op": op,
                "inputs": [each.name for each in inputs],
                "weights": names,
                "attributes": dict(attributes or {}),
                "output": value.name,
            }
        )
        return value


def emit_reference(request: EmitRequest) -> list[Variant]:
    """Write a folder for every part, with a `program.json` and a `weights.safetensors`."""
    return [_emit(part, request) for part in request.parts]


def _emit(part: Part, request: EmitRequest) -> Variant:
    inner = "reference" if part.role == "target" else f"reference-{part.name}"
    folder = request.folder / inner
    folder.mkdir(parents=True, exist_ok=True)
    fmt = part.fmt or request.fmt
    recorder = Recorder(part.hidden_states)
    part.build(recorder)
    blocks: dict[str, dict[str, int]] = {}
    with WeightFile(folder / "weights.safetensors") as file:
        for name, weight in recorder.weights.items():
            data = _stored(weight, fmt if name in recorder.matrices else None)
            if isinstance(data, Dense):
                file.add(name, data.values)
            else:
                blocks[name] = {"bits": data.bits, "group": data.group, "zero": data.zero}
                _add_blocks(file, name, data)
    program = {
        "version": PROGRAM_VERSION,
        "instructions": recorder.instructions,
        "blocks": blocks,
        "hidden_states": {str(layer): name for layer, name in recorder.offered.items()},
        "logits": recorder.result,
    }
    text = json.dumps(program, indent=1, allow_nan=False)
    (folder / "program.json").write_text(text, encoding="utf-8")
    return _variant(fmt.name, recorder, inner, entries(part, request.folder, LAYOUT))


def _stored(weight: Weight, fmt: WeightFormat | None) -> Dense | Blocked:
    """Matrices in the weight format; everything else as float32."""
    data = Dense(weight.dense()) if fmt is None else store(weight, fmt)
    if isinstance(data, Dense) and data.values.dtype != np.float16:
        return Dense(np.asarray(data.values, np.float32))
    return data


def _add_blocks(file: WeightFile, name: str, data: Blocked) -> None:
    """Codes of at most 4 bits go two to a byte, the first one in the low half."""
    codes = data.codes
    if data.bits <= 4:
        codes = codes[:, ::2] | np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    file.add(f"{name}.codes", codes)
    file.add(f"{name}.scale", data.scale)
    if data.minimum is not None:
        file.add(f"{name}.minimum", data.minimum)


def _variant(
    weight_format: str, recorder: Recorder, folder: str, more: Mapping[str, Any]
) -> Variant:
    return Variant(
        target_format="reference",
        flavour="portable",
        weight_format=weight_format,
        model=f"{folder}/program.json",
        files=(f"{folder}/program.json", f"{folder}/weights.safetensors"),
        step=StepNames(
            tokens="tokens",
            positions="positions",
            slots="slots",
            output_rows="output_rows",
            logits=recorder.result,
            biases={
                window: "bias" if window is None else f"bias.{window}"
                for window in sorted(recorder.windows, key=lambda w: w or 0)
            },
            hidden_states=recorder.offered,
        ),
        cache=LAYOUT,
        # Matrix products round differently for different numbers of rows.
        guarantee="same_distribution",
        **more,
    )

"""The reference emitter: the calls an architecture makes, recorded as a program with weights.

`reference/NAME.json` of a part is a list of instructions in single-assignment form, each an op of
`quickdraft.numpy_ops` with its inputs, weights and attributes; `reference/weights.safetensors`
holds the weights of all parts, blocks as blocks. The reference backend interprets it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.emitters.base import EmitRequest, Part, check_staged, entries
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
MEMORY = SlotsLayout(
    kind="slots",
    alignment=1,
    past_key="memory.key.{layer}",
    past_value="memory.value.{layer}",
    present_key="memory.key.{layer}",
    present_value="memory.value.{layer}",
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
    staged: set[int] = field(default_factory=set)
    result: str | None = None

    def tokens(self) -> Recorded:
        """An input of the program."""
        return Recorded("tokens")

    def positions(self) -> Recorded:
        """An input of the program."""
        return Recorded("positions")

    def output_rows(self) -> Recorded:
        """An input of the program."""
        return Recorded("output_rows")

    def features(self) -> Recorded:
        """An input of the program."""
        return Recorded("features")

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
        weights, attributes = _scores(attention)
        attributes |= {"layer": attention.layer, "window": attention.window}
        return self._record("attend", [q, k, v], weights, attributes)

    def encode_attend(
        self, q: Recorded, k: Recorded, v: Recorded, attention: Attention
    ) -> Recorded:
        """Recorded."""
        weights, attributes = _scores(attention)
        attributes |= {"kv_heads": attention.num_kv_heads}
        return self._record("encode_attend", [q, k, v], weights, attributes)

    def cross_attend(self, q: Recorded, attention: Attention) -> Recorded:
        """Recorded; the memory is the interpreter's to fill in."""
        attributes = {"scale": attention.scale, "softcap": attention.softcap}
        return self._record("cross_attend", [q], attributes=attributes | {"layer": attention.layer})

    def stage(self, k: Recorded, v: Recorded, attention: Attention) -> None:
        """Recorded; the target's cache and its slots are the interpreter's to fill in."""
        self.staged.add(attention.layer)
        self._record("stage", [k, v], attributes={"layer": attention.layer})

    def conv1d(self, x: Recorded, weight: Weight, bias: Weight | None, stride: int) -> Recorded:
        """Recorded; stored in floats, as it is small."""
        return self._record("conv1d", [x], {"weight": weight, "bias": bias}, {"stride": stride})

    def stack(self, parts: Sequence[Recorded]) -> Recorded:
        """Recorded."""
        return self._record("stack", parts)

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


def _scores(attention: Attention) -> tuple[dict[str, Weight | None], dict[str, Any]]:
    """Weights and attributes of how scores are made."""
    attributes: dict[str, Any] = {"scale": attention.scale, "softcap": attention.softcap}
    relative = attention.relative
    if relative is None:
        return {}, attributes
    attributes["max_distance"] = relative.max_distance
    attributes["bidirectional"] = relative.bidirectional
    return {"relative": relative.table}, attributes


def emit_reference(request: EmitRequest) -> list[Variant]:
    """Write `reference/NAME.json` for every part, and `weights.safetensors`, the weights of all.

    Raises:
        BackendError: a predictor leaves out a layer of its target (a fault of its builder).
    """
    folder = request.folder / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    with WeightFile(folder / "weights.safetensors") as file:
        store = _WeightStore(file)
        return [_emit(part, request, store) for part in request.parts]


def _emit(part: Part, request: EmitRequest, store: _WeightStore) -> Variant:
    fmt = part.fmt or request.fmt
    recorder = Recorder(part.hidden_states)
    part.build(recorder)
    if part.target is not None:
        check_staged(part, recorder.staged)
    names: dict[str | None, str | None] = {None: None}
    for name, weight in recorder.weights.items():
        data = _stored(weight, fmt if name in recorder.matrices else None)
        names[name] = store.add(name, data, part.name)
    for line in recorder.instructions:
        line["weights"] = {place: names[name] for place, name in line["weights"].items()}
    program = {
        "version": PROGRAM_VERSION,
        "instructions": recorder.instructions,
        "blocks": {name: store.blocks[name] for name in names.values() if name in store.blocks},
        "hidden_states": {str(layer): name for layer, name in recorder.offered.items()},
        "logits": recorder.result,
    }
    text = json.dumps(program, indent=1, allow_nan=False)
    (request.folder / "reference" / f"{part.name}.json").write_text(text, encoding="utf-8")
    return _variant(fmt.name, recorder, part, entries(part, request.folder, LAYOUT))


def _stored(weight: Weight, fmt: WeightFormat | None) -> Dense | Blocked:
    """Matrices in the weight format; everything else as float32."""
    data = Dense(weight.dense()) if fmt is None else store(weight, fmt)
    if isinstance(data, Dense) and data.values.dtype != np.float16:
        return Dense(np.asarray(data.values, np.float32))
    return data


class _WeightStore:
    """Weights of several parts in one file; equal ones are stored once.

    blocks: what tells how to read those that are stored in blocks, by their names in the file.
    """

    def __init__(self, file: WeightFile) -> None:
        self.blocks: dict[str | None, dict[str, int]] = {}
        self._file = file
        self._names: dict[bytes, str] = {}
        self._taken: set[str] = set()

    def add(self, name: str, data: Dense | Blocked, part: str) -> str:
        """Store a weight of a part; returns its name in the file."""
        arrays, blocks = _arrays(data)
        digest = hashlib.sha256(repr(blocks).encode())
        for suffix, array in arrays.items():
            digest.update(f"{suffix} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        if digest.digest() not in self._names:
            stored = name
            while stored in self._taken:  # another part has other values under this name
                stored = f"{part}/{stored}"
            for suffix, array in arrays.items():
                self._file.add(stored + suffix, array)
            if blocks is not None:
                self.blocks[stored] = blocks
            self._names[digest.digest()] = stored
            self._taken.add(stored)
        return self._names[digest.digest()]


def _arrays(data: Dense | Blocked) -> tuple[dict[str, NDArray[Any]], dict[str, int] | None]:
    """What is stored of a weight, by what follows its name, and how to read its blocks. Codes of at
    most 4 bits go two to a byte, the first one in the low half."""
    if isinstance(data, Dense):
        return {"": data.values}, None
    codes = data.codes
    if data.bits <= 4:
        codes = codes[:, ::2] | np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    arrays: dict[str, NDArray[Any]] = {".codes": codes, ".scale": data.scale}
    if data.minimum is not None:
        arrays[".minimum"] = data.minimum
    return arrays, {"bits": data.bits, "group": data.group, "zero": data.zero}


def _variant(
    weight_format: str, recorder: Recorder, part: Part, more: Mapping[str, Any]
) -> Variant:
    predicts, encodes = part.role == "predictor", part.role == "encoder"
    reads_tokens = not (encodes and part.features)
    return Variant(
        target_format="reference",
        flavour="portable",
        weight_format=weight_format,
        model=f"reference/{part.name}.json",
        files=(f"reference/{part.name}.json", "reference/weights.safetensors"),
        step=StepNames(
            tokens="tokens" if reads_tokens else "",
            positions="positions",
            slots=None if encodes else "slots",
            output_rows=None if predicts or encodes else "output_rows",
            logits=recorder.result,
            biases={
                window: "bias" if window is None else f"bias.{window}"
                for window in sorted(recorder.windows, key=lambda w: w or 0)
            },
            hidden_states=recorder.offered,
            features="features" if part.features else None,
            target_rows="target_rows" if predicts else None,
        ),
        cache=LAYOUT,
        # Matrix products round differently for different numbers of rows.
        guarantee="same_distribution",
        memory=MEMORY if encodes or part.spec.source is not None else None,
        **more,
    )

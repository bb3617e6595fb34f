"""Recorded programs: read with their weights, and interpreted with `quickdraft.numpy_ops`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quickdraft import numpy_ops
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.kvcache.memory import Layer, Memory
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import CancelToken

PROGRAM_VERSION = 1

# The ops a program may name; a bundle must not reach anything else.
_OPS: Mapping[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        numpy_ops.embed,
        numpy_ops.take_rows,
        numpy_ops.linear,
        numpy_ops.rms_norm,
        numpy_ops.layer_norm,
        numpy_ops.rope,
        numpy_ops.attend,
        numpy_ops.encode_attend,
        numpy_ops.cross_attend,
        numpy_ops.conv1d,
        numpy_ops.stage,
        numpy_ops.stack,
        numpy_ops.activate,
        numpy_ops.add,
        numpy_ops.multiply,
        numpy_ops.scale,
        numpy_ops.softcap,
    )
}


@dataclass(frozen=True)
class Caches:
    """What a run reads and writes: slots of a part's own cache, and of a predictor's target.

    bias: float32 [n, slots seen] by window. distances: int64 [n, slots seen], position of the slot
    less that of the row; what no row may see has any. target, target_slots: None for other parts.
    memory: of a source, None in models without.
    """

    own: ContiguousCache
    slots: NDArray[np.int64]
    bias: Mapping[int | None, NDArray[np.float32]]
    distances: NDArray[np.int64]
    target: ContiguousCache | None = None
    target_slots: NDArray[np.int64] | None = None
    memory: Memory | None = None


@dataclass(frozen=True)
class _Instruction:
    """output = op(*inputs, **constants), constants being weights and attributes."""

    op: str
    inputs: tuple[str, ...]
    constants: Mapping[str, Any]
    output: str


@dataclass(frozen=True)
class Program:
    """What a part computes. logits: name of its result, None for a predictor. hidden_states: names
    by number of layers passed."""

    lines: tuple[_Instruction, ...]
    logits: str | None
    hidden_states: Mapping[int, str]

    @classmethod
    def read(cls, folder: Path, variant: Variant) -> Program:
        """The program of a variant, its weights decoded.

        Raises:
            BundleError: the files are damaged or not a program this version knows.
        """
        path = folder / variant.model
        try:
            program = json.loads(path.read_bytes())
            lines = program["instructions"]
            named = {name for line in lines for name in line["weights"].values()} - {None}
            stored = path.with_name("weights.safetensors")
            weights = _read_weights(stored, named, program["blocks"])
            found = cls(
                tuple(_link(program, weights, has_features=variant.features > 0)),
                program["logits"],
                {int(k): str(v) for k, v in program["hidden_states"].items()},
            )
            if (found.logits is None) != (variant.step.logits is None):
                raise ValueError("manifest and program disagree about logits")
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise BundleError(
                f"{path} is no sound program of the reference backend "
                f"({type(error).__name__}: {error}); export the model again"
            ) from error

    def run(
        self, inputs: Mapping[str, NDArray[Any]], caches: Caches, cancel: CancelToken | None
    ) -> dict[str, NDArray[Any]]:
        """All values by name, the inputs among them.

        Raises:
            Cancelled: on request, within an op. BackendError: the logits are not numbers.
        """
        values = dict(inputs)
        for line in self.lines:
            if cancel is not None:
                cancel.check()
            given, constants = self._arguments(line, values, caches)
            values[line.output] = _OPS[line.op](*given, **constants)
        if self.logits is not None and not np.isfinite(values[self.logits]).all():
            raise BackendError("the model computed logits that are not numbers")
        return values

    def encode(
        self, inputs: Mapping[str, NDArray[Any]], cancel: CancelToken | None
    ) -> dict[int, Layer]:
        """Run an encoder: keys and values [rows, kv_heads * head_dim] by layer of the target.

        Raises:
            Cancelled: on request, within an op. BackendError: the memory is not numbers.
        """
        values, memory = dict(inputs), {}
        for line in self.lines:
            if cancel is not None:
                cancel.check()
            if line.op == "stage":
                key, value = (values[name] for name in line.inputs)
                memory[line.constants["layer"]] = key, value
                continue
            given, constants = self._arguments(line, values, None)
            values[line.output] = _OPS[line.op](*given, **constants)
        if not all(np.isfinite(part).all() for layer in memory.values() for part in layer):
            raise BackendError("the encoder computed a memory that is not numbers")
        return memory

    def _arguments(
        self, line: _Instruction, values: Mapping[str, NDArray[Any]], caches: Caches | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """What the op of a line is called with. caches: None in an encoder."""
        given: list[Any] = [values[name] for name in line.inputs]
        constants = dict(line.constants)
        if line.op == "stack":
            given = [given]
        elif line.op == "encode_attend":
            rows = np.arange(len(given[0]))
            _place_relative(constants, rows - rows[:, None])
        elif line.op in ("attend", "stage", "cross_attend"):
            if caches is None:
                raise BackendError("an encoder has no cache")
            given += _stored(line.op, constants, caches)
        return given, constants


def _stored(op: str, constants: dict[str, Any], caches: Caches) -> list[Any]:
    """What an op is given of caches and memory; takes what says which from the constants."""
    layer = constants.pop("layer")
    if op == "attend":
        bias = caches.bias[constants.pop("window")]
        _place_relative(constants, caches.distances)
        relative = constants.pop("relative", None)
        bias = bias if relative is None else bias + relative
        return [caches.own.layer(layer), caches.slots, bias]
    if op == "cross_attend":
        if caches.memory is None:
            raise BackendError("this cache is over no source; make it with new_cache(memory)")
        return [caches.memory.layer(layer)]
    if caches.target is None:
        raise BackendError("only a predictor writes into another cache")
    return [caches.target.layer(layer), caches.target_slots]


def _place_relative(constants: dict[str, Any], distances: NDArray[np.int64]) -> None:
    """Put the biases of these distances in the place of their table, if there is one."""
    table = constants.get("relative")
    if table is not None:
        most, both = constants.pop("max_distance"), constants.pop("bidirectional")
        constants["relative"] = numpy_ops.relative_bias(distances, table, most, bidirectional=both)


def _link(
    program: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]], *, has_features: bool
) -> Iterable[_Instruction]:
    """Put weights in their places; check that every value exists before it is used."""
    if program["version"] != PROGRAM_VERSION:
        raise ValueError(f"program version {program['version']}, this reads {PROGRAM_VERSION}")
    known = {"tokens", "positions", "output_rows", *(["features"] if has_features else [])}
    lines = []
    for entry in program["instructions"]:
        if entry["op"] not in _OPS:
            raise ValueError(f"unknown op {entry['op']!r}")
        if not known.issuperset(entry["inputs"]):
            raise ValueError(f"{entry['output']} uses values before they are computed")
        if entry["op"] != "stage":  # it writes, and gives nothing
            known.add(entry["output"])
        constants = {
            place: None if name is None else weights[name]
            for place, name in entry["weights"].items()
        }
        constants.update(entry["attributes"])
        lines.append(_Instruction(entry["op"], tuple(entry["inputs"]), constants, entry["output"]))
    outputs = {program["logits"], *program["hidden_states"].values()} - {None}
    if not known.issuperset(outputs):
        raise ValueError("an output is never computed")
    return lines


def _read_weights(
    path: Path, names: Collection[str], blocks: Mapping[str, Any]
) -> dict[str, NDArray[np.float32]]:
    """Weights as float32, blocks decoded: code minus zero, times scale, plus minimum."""
    weights = {}
    with safe_open(path, framework="numpy") as file:
        stored = set(file.keys())
        for name in names:
            if name not in blocks:
                weights[name] = file.get_tensor(name).astype(np.float32, copy=False)
                continue
            minimum = None
            if f"{name}.minimum" in stored:
                minimum = file.get_tensor(f"{name}.minimum")
            codes, scale = file.get_tensor(f"{name}.codes"), file.get_tensor(f"{name}.scale")
            weights[name] = _decode(blocks[name], codes, scale, minimum)
    return weights


def _decode(
    block: Mapping[str, int],
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    if block["bits"] <= 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    grouped = codes.reshape(*scale.shape, block["group"]).astype(np.float32)
    values = (grouped - np.float32(block["zero"])) * scale[..., None]
    if minimum is not None:
        values += minimum[..., None]
    return values.reshape(codes.shape)

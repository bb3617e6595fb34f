"""The reference backend: interprets a recorded program with `quickdraft.numpy_ops`.

Slow and plain. It is the oracle of the other backends and the null device of the tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quickdraft import numpy_ops
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache, align_slots
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import (
    CancelToken,
    StepOutput,
    Trees,
    refuse_kv_types,
)
from quickdraft.runtime.backends.step_inputs import attention_bias, check_step, positions
from quickdraft.types import ModelSpec

PROGRAM_VERSION = 1

# The ops a program may name; a bundle must not reach anything else.
_OPS: Mapping[str, Callable[..., NDArray[Any]]] = {
    op.__name__: op
    for op in (
        numpy_ops.embed,
        numpy_ops.take_rows,
        numpy_ops.linear,
        numpy_ops.rms_norm,
        numpy_ops.layer_norm,
        numpy_ops.rope,
        numpy_ops.attend,
        numpy_ops.activate,
        numpy_ops.add,
        numpy_ops.multiply,
        numpy_ops.scale,
        numpy_ops.softcap,
    )
}


@dataclass(frozen=True)
class _Instruction:
    """output = op(*inputs, **constants), constants being weights and attributes."""

    op: str
    inputs: tuple[str, ...]
    constants: Mapping[str, Any]
    output: str


class ReferenceBackend:
    """A Backend that computes in NumPy, float32, whatever the weight format."""

    name = "reference"
    top = 0
    isa = None
    kv_type = "f32"
    trees: Trees = "rounded"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Load the program and decode its weights. vocab_size: of the tokens that a part with a
        token map reads.

        Raises:
            OptionError: threads were asked for; NumPy's are set by its own environment variables.
                Or kv_cache is not f32.
            BundleError: the files are damaged or not a program this version knows.
        """
        refuse_kv_types(self.name, kv_cache)
        if threads is not None:
            raise OptionError(
                f"the reference backend cannot be told to use {threads} threads; leave the "
                "option out, or set OPENBLAS_NUM_THREADS before starting"
            )
        self.spec = spec
        self._vocab_size = vocab_size
        self.flavour = variant.flavour
        self.guarantee = variant.guarantee
        path = folder / variant.model
        try:
            program = json.loads(path.read_bytes())
            weights = _read_weights(path.with_name("weights.safetensors"), program["blocks"])
            self._program: list[_Instruction] | None = _link(program, weights)
            self._logits: str = program["logits"]
            self._hidden = {int(k): str(v) for k, v in program["hidden_states"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise BundleError(
                f"{path.parent} holds no sound program of the reference backend "
                f"({type(error).__name__}: {error}); export the model again"
            ) from error

    def new_cache(self) -> ContiguousCache:
        """An empty cache that fits this backend."""
        return ContiguousCache(self.spec)

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        """See Backend.step; logits are always full."""
        if self._program is None:
            raise BackendError("the model was closed")
        if cancel is not None:
            cancel.check()
        wanted = np.arange(len(tree), dtype=np.int64) if rows is None else rows
        length = cache.length
        check_step(tree, length, self.spec, self._vocab_size)
        cache.stage(len(tree))
        try:
            values = self._run(self._program, tree, cache, wanted, cancel)
        except BaseException:
            cache.truncate(length)
            raise
        hidden = {layer: values[name] for layer, name in self._hidden.items()}
        return StepOutput(values[self._logits], hidden)

    def close(self) -> None:
        """Release the weights."""
        self._program = None

    def _run(
        self,
        program: list[_Instruction],
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64],
        cancel: CancelToken | None,
    ) -> dict[str, NDArray[Any]]:
        length, n = cache.length, len(tree)
        values: dict[str, NDArray[Any]] = {
            "tokens": tree.tokens,
            "positions": positions(tree, length),
            "output_rows": rows,
        }
        slots = np.arange(length, length + n, dtype=np.int64)
        seen = align_slots(length + n)
        biases = {
            window: attention_bias(tree, length, seen, window)
            for window in self.spec.distinct_windows
        }
        for line in program:
            if cancel is not None:
                cancel.check()
            inputs: list[Any] = [values[name] for name in line.inputs]
            constants = dict(line.constants)
            if line.op == "attend":
                bias = biases[constants.pop("window")]
                inputs += [cache.layer(constants.pop("layer")), slots, bias]
            values[line.output] = _OPS[line.op](*inputs, **constants)
        if not np.isfinite(values[self._logits]).all():
            raise BackendError("the model computed logits that are not numbers")
        return values


def _link(
    program: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]]
) -> list[_Instruction]:
    """Put weights in their places; check that every value exists before it is used."""
    if program["version"] != PROGRAM_VERSION:
        raise ValueError(f"program version {program['version']}, this reads {PROGRAM_VERSION}")
    known = {"tokens", "positions", "output_rows"}
    lines = []
    for entry in program["instructions"]:
        if entry["op"] not in _OPS:
            raise ValueError(f"unknown op {entry['op']!r}")
        if not known.issuperset(entry["inputs"]):
            raise ValueError(f"{entry['output']} uses values before they are computed")
        known.add(entry["output"])
        constants = {
            place: None if name is None else weights[name]
            for place, name in entry["weights"].items()
        }
        constants.update(entry["attributes"])
        lines.append(_Instruction(entry["op"], tuple(entry["inputs"]), constants, entry["output"]))
    if not known.issuperset([program["logits"], *program["hidden_states"].values()]):
        raise ValueError("an output is never computed")
    return lines


def _read_weights(path: Path, blocks: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """All weights as float32, blocks decoded: code minus zero, times scale, plus minimum."""
    with safe_open(path, framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {}
    for name, block in blocks.items():
        codes, scale = stored.pop(f"{name}.codes"), stored.pop(f"{name}.scale")
        if block["bits"] <= 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
        grouped = codes.reshape(*scale.shape, block["group"]).astype(np.float32)
        values = (grouped - np.float32(block["zero"])) * scale[..., None]
        minimum = stored.pop(f"{name}.minimum", None)
        if minimum is not None:
            values += minimum[..., None]
        weights[name] = values.reshape(codes.shape)
    for name, values in stored.items():
        weights[name] = values.astype(np.float32, copy=False)
    return weights

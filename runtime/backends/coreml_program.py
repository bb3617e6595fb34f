"""A written Core ML package, walked op by op in NumPy: what stands in for Core ML elsewhere.

Reads what Core ML reads, the model file and the weight file of an .mlpackage, and nothing of the
exporter. Values have the types that the program declares: float16 results are rounded once per op,
sums inside an op run in float32. It is an oracle for tests, slow, and says nothing about which
unit of a device would run an op.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BundleError, MissingExtra
from quickdraft.runtime.backends.coreml_numpy import OPS

Array = NDArray[Any]

_TYPES: Mapping[str, Any] = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "UINT16": np.uint16,
    "BOOL": np.bool_,
}
_NIBBLES = {"INT4": True, "UINT4": False}
"""Types of half a byte: whether they have a sign."""
_BLOB = np.dtype([("mark", "<u4"), ("type", "<u4"), ("size", "<u8"), ("offset", "<u8")])
_MARK = 0xDEADBEEF
"""Each value of the weight file has a header that begins with this."""


class Program:
    """The functions of one package. Constants are decoded once, on first use."""

    def __init__(self, package: Path) -> None:
        """Read the .mlpackage at `package`; weights are mapped, not read.

        Raises:
            MissingExtra: coremltools, whose schema is used, is not installed.
            BundleError: the package is damaged, or its program has ops that are unknown here.
        """
        # It warns of what macOS alone has; nothing here needs that.
        logging.getLogger("coremltools").setLevel(logging.ERROR)
        try:
            from coremltools.proto import Model_pb2
            from google.protobuf.message import DecodeError
        except ImportError as error:
            raise MissingExtra("coremltools", "coreml") from error
        self._package = package / "Data" / "com.apple.CoreML"
        model = Model_pb2.Model()
        try:
            model.ParseFromString((self._package / "model.mlmodel").read_bytes())
            weights = self._package / "weights" / "weight.bin"
            self._weights: Array = np.memmap(weights, np.uint8, mode="r")
        except (OSError, DecodeError, ValueError) as error:
            raise BundleError(
                f"{package} cannot be read as a Core ML package: {error}; export the model again"
            ) from error
        self.description = model.description
        self._functions = model.mlProgram.functions
        self._constants: dict[tuple[str, str], Array] = {}
        self._blobs: dict[tuple[int, str], Array] = {}
        self._updates: dict[str, frozenset[str]] = {}
        unknown = {op for name in self.functions for op in self.histogram(name)} - set(OPS)
        if unknown:
            raise BundleError(f"{package} has the op {min(unknown)!r}, which is unknown here")

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of functions, sorted."""
        return tuple(sorted(self._functions))

    def histogram(self, function: str) -> Mapping[str, int]:
        """How often each op occurs in a function, constants aside."""
        found = Counter(operation.type for operation in self._operations(function))
        return {name: count for name, count in sorted(found.items()) if name != "const"}

    def inputs(self, function: str) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape of the inputs of a function, states aside."""
        return {name: _tensor(kind) for name, kind in self._declared(function, "tensorType")}

    def states(self, function: str) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape of its states."""
        return {
            name: _tensor(kind.stateType.wrappedType)
            for name, kind in self._declared(function, "stateType")
        }

    def run(
        self, function: str, inputs: Mapping[str, Array], states: dict[str, Array]
    ) -> dict[str, Array]:
        """Run a function; returns its outputs and leaves new values in `states`.

        Raises:
            BundleError: an input or state is missing or has another type or shape.
        """
        values: dict[str, Any] = {}
        for given, declared in ((inputs, self.inputs), (states, self.states)):
            for name, (dtype, shape) in declared(function).items():
                found = given.get(name)
                if found is None or (found.dtype, found.shape) != (np.dtype(dtype), shape):
                    said = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                    raise BundleError(
                        f"{function} takes {name!r} as {np.dtype(dtype)} {list(shape)}, and was "
                        f"given {said}"
                    )
                values[name] = found
        with np.errstate(over="ignore"):  # float16 overflows to infinity, as on a device
            for operation in self._operations(function):
                self._step(function, operation, values, states)
        block = self._block(function)
        return {name: values[name] for name in block.outputs}

    def _step(
        self,
        function: str,
        operation: Any,
        values: dict[str, Any],
        states: dict[str, Array],
    ) -> None:
        arguments = operation.inputs
        if operation.type == "read_state":
            state = arguments["input"].arguments[0].name
            values[operation.outputs[0].name] = states[state]
            return
        if operation.type == "write_state":
            state = arguments["input"].arguments[0].name
            states[state] = values[arguments["data"].arguments[0].name]
            return
        if _is_constant(operation):
            output = operation.outputs[0].name
            key = (function, output)
            if key not in self._constants:
                self._constants[key] = self._constant(operation)
            values[output] = self._constants[key]
            return
        found = {name: self._argument(each, values) for name, each in arguments.items()}
        if operation.type == "slice_update" and operation.outputs[0].name in self._in_place(
            function
        ):
            found["in_place"] = True
        results = OPS[operation.type](found)
        outputs = results if isinstance(results, list) else [results]
        for output, result in zip(operation.outputs, outputs, strict=True):
            dtype, shape = _tensor(output.type)
            if shape != result.shape:
                raise BundleError(
                    f"{function}: {operation.type} {output.name!r} is {list(result.shape)}, and "
                    f"the program says {list(shape)}"
                )
            values[output.name] = result.astype(dtype, copy=False)

    def _in_place(self, function: str) -> frozenset[str]:
        """Updates of what was read from a state, used by nothing else, and written back at once:
        they may write the state itself, as Core ML does."""
        if function not in self._updates:
            used = Counter(
                each.name
                for operation in self._operations(function)
                for argument in operation.inputs.values()
                for each in argument.arguments
            )
            read: dict[str, str] = {}
            found = []
            before = None
            for operation in self._operations(function):
                if operation.type == "read_state":
                    state = operation.inputs["input"].arguments[0].name
                    read[operation.outputs[0].name] = state
                elif operation.type == "write_state" and before is not None:
                    source = before.inputs["x"].arguments[0].name
                    written = operation.inputs["data"].arguments[0].name
                    same = read.get(source) == operation.inputs["input"].arguments[0].name
                    if same and used[source] == 1 and written == before.outputs[0].name:
                        found.append(written)
                before = operation if operation.type == "slice_update" else None
            self._updates[function] = frozenset(found)
        return self._updates[function]

    def _argument(self, argument: Any, values: Mapping[str, Any]) -> Any:
        """One value, or a list where the op takes several."""
        found = [
            values[each.name] if each.WhichOneof("binding") == "name" else self._value(each.value)
            for each in argument.arguments
        ]
        return found[0] if len(found) == 1 else found

    def _constant(self, operation: Any) -> Any:
        if operation.type == "const":
            return self._value(operation.attributes["val"])
        found = {
            name: self._value(each.arguments[0].value) for name, each in operation.inputs.items()
        }
        # The same weights stand in every function, and decoding them is slow.
        data = operation.inputs["data"].arguments[0].value
        key = (int(data.blobFileValue.offset), str(_tensor(operation.outputs[0].type)))
        if key not in self._blobs:
            expanded: Array = OPS[operation.type](found)
            rounded = expanded.astype(_tensor(operation.outputs[0].type)[0], copy=False)
            # Ops compute in float32; widening weights once is what makes a real model bearable.
            self._blobs[key] = rounded.astype(np.float32, copy=False)
        return self._blobs[key]

    def _value(self, value: Any) -> Any:
        """A constant of the model file, or of the weight file."""
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value)
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind == "strings":
            return tensor.strings.values[0]
        dtype, shape = _tensor(value.type)
        if kind == "bytes":
            return np.frombuffer(tensor.bytes.values, dtype).reshape(shape)
        return np.array(getattr(tensor, kind).values, dtype).reshape(shape)

    def _blob(self, value: Any) -> Array:
        start = int(value.blobFileValue.offset)
        name = _type_name(value.type)
        shape = tuple(int(each.constant.size) for each in value.type.tensorType.dimensions)
        count = math.prod(shape)
        size = -(-count // 2) if name in _NIBBLES else count * np.dtype(_TYPES[name]).itemsize
        header = self._weights[start : start + _BLOB.itemsize]
        if len(header) < _BLOB.itemsize or header.view(_BLOB)["mark"][0] != _MARK:
            raise BundleError(
                f"the weight file of {self._package.parents[1]} has no value at {start}; "
                "export the model again"
            )
        offset = int(header.view(_BLOB)["offset"][0])
        stored = self._weights[offset : offset + size]
        if int(header.view(_BLOB)["size"][0]) != size or len(stored) != size:
            raise BundleError(
                f"the weight file of {self._package.parents[1]} is cut short; export the model "
                "again"
            )
        if name not in _NIBBLES:
            return np.asarray(stored.view(_TYPES[name]).reshape(shape))
        return _nibbles(stored, signed=_NIBBLES[name])[:count].reshape(shape)

    def _block(self, function: str) -> Any:
        found = self._functions[function]
        return found.block_specializations[found.opset]

    def _operations(self, function: str) -> Iterator[Any]:
        return iter(self._block(function).operations)

    def _declared(self, function: str, kind: str) -> Iterator[tuple[str, Any]]:
        for each in self._functions[function].inputs:
            if each.type.WhichOneof("type") == kind:
                yield each.name, each.type


def _is_constant(operation: Any) -> bool:
    kind: str = operation.type
    return kind == "const" or kind.startswith("constexpr_")


def _type_name(kind: Any) -> str:
    number = kind.tensorType.dataType
    name: str = (
        kind.tensorType.DESCRIPTOR.fields_by_name["dataType"]
        .enum_type.values_by_number[number]
        .name
    )
    return name


def _tensor(kind: Any) -> tuple[Any, tuple[int, ...]]:
    """Type and shape of a value."""
    name = _type_name(kind)
    shape = tuple(int(each.constant.size) for each in kind.tensorType.dimensions)
    return _TYPES.get(name, np.int8 if name == "INT4" else np.uint8), shape


def _nibbles(stored: NDArray[np.uint8], *, signed: bool) -> Array:
    """Two values of each byte, the low half first."""
    values = np.empty(2 * len(stored), np.uint8)
    values[::2], values[1::2] = stored & 15, stored >> 4
    if not signed:
        return values
    return ((values ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)

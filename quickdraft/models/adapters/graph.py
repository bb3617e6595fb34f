"""What the inputs and outputs of another exporter's ONNX graph say about its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from quickdraft.errors import AdapterError
from quickdraft.manifest import AppendedLayout, StepNames
from quickdraft.models.adapters.folder import ExportFolder
from quickdraft.onnx_io import OnnxFile, TensorType

_FLOATS = ("float32", "float16")
_INT8_PRODUCTS = {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul"}


@dataclass(frozen=True)
class Names:
    """Names of inputs and outputs; those of the cache hold `%d`. head_dim: the width of a head
    where the graph has only a name for it."""

    tokens: str = "input_ids"
    mask: str = "attention_mask"
    positions: str = "position_ids"
    branch: str = "use_cache_branch"
    logits: str = "logits"
    past_key: str = "past_key_values.%d.key"
    past_value: str = "past_key_values.%d.value"
    present_key: str = "present.%d.key"
    present_value: str = "present.%d.value"
    head_dim: int = 0

    def layout(self, *, in_place: bool = False) -> AppendedLayout:
        """The same as a manifest has them."""
        past_key, past_value, present_key, present_value = (
            name.replace("%d", "{layer}") for name in self.cache
        )
        return AppendedLayout(
            "appended", past_key, past_value, present_key, present_value, in_place
        )

    @property
    def cache(self) -> tuple[str, str, str, str]:
        """The names with `%d`, inputs first."""
        return self.past_key, self.past_value, self.present_key, self.present_value


@dataclass(frozen=True)
class Past:
    """The shape of a cache: tensors [1, heads, rows, head_dim]."""

    layers: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Facts:
    """past: None where every step computes everything again."""

    step: StepNames
    vocab_size: int
    past: Past | None


def graph_facts(folder: ExportFolder, file: str, graph: OnnxFile, names: Names) -> Facts:
    """What a decoder's graph says of itself.

    Raises:
        AdapterError: an input is unknown, a shape is not a decoder's, or an output is missing.
    """
    where = folder.path / file
    past = _past(str(where), graph, names)
    known = {names.tokens, names.mask, names.positions, names.branch}
    if past is not None:
        known |= {name % layer for name in names.cache[:2] for layer in range(past.layers)}
    unknown = sorted(set(graph.inputs) - known)
    if unknown:
        folder.refuse(f"its graph {file} has the input {unknown[0]!r}")
    for name in (names.tokens, names.mask):
        if name not in graph.inputs:
            raise AdapterError(f"{where} has no input {name!r}; its inputs: {_list(graph.inputs)}")
    logits = graph.outputs.get(names.logits)
    if logits is None:
        raise AdapterError(
            f"{where} has no output {names.logits!r}; its outputs: {_list(graph.outputs)}"
        )
    if len(logits.shape) != 3 or not isinstance(logits.shape[2], int):
        raise AdapterError(f"{where}: the logits have the shape {list(logits.shape)}, not 3 "
                           "dimensions of which the last is a vocabulary")  # fmt: skip
    if logits.shape[1] == 1:
        folder.refuse(f"its graph {file} gives logits of the last row only", "export it again "
                      "with logits of all rows, or its checkpoint with quickdraft")  # fmt: skip
    if logits.element not in _FLOATS:
        folder.refuse(f"its logits are {logits.element}")
    return Facts(
        StepNames(
            tokens=names.tokens,
            positions=names.positions if names.positions in graph.inputs else None,
            logits=names.logits,
            mask=names.mask,
            branch=names.branch if names.branch in graph.inputs else None,
        ),
        logits.shape[2],
        past,
    )


def _past(where: str, graph: OnnxFile, names: Names) -> Past | None:
    """The cache, which is the same in every layer."""
    layers = 0
    while names.past_key % layers in graph.inputs:
        layers += 1
    if layers == 0:
        return None
    found = set()
    for layer in range(layers):
        for name, tensors in zip(
            names.cache, (graph.inputs, graph.inputs, graph.outputs, graph.outputs), strict=True
        ):
            if name % layer not in tensors:
                raise AdapterError(f"{where} has no {name % layer!r}, and a {names.past_key % 0!r}")
        for name in names.cache[:2]:
            found.add(_heads(where, name % layer, graph.inputs[name % layer], names.head_dim))
    if len(found) != 1:
        raise AdapterError(f"{where}: layers have caches of different shapes")
    return Past(layers, *found.pop())


def _heads(where: str, name: str, tensor: TensorType, head_dim: int) -> tuple[int, int]:
    """KV heads and their width, `head_dim` if the graph only names it."""
    shape = tensor.shape
    if len(shape) == 4 and isinstance(shape[3], str) and head_dim:
        shape = (*shape[:3], head_dim)
    sound = len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int)
    if not sound or tensor.element not in _FLOATS:
        raise AdapterError(
            f"{where}: {name!r} is {tensor.element} {list(shape)}; an adapter opens caches of "
            "[batch, KV heads, rows, width of a head], float32 or float16"
        )
    return int(shape[1]), int(shape[3])


def data_files(folder: ExportFolder, file: str, graph: OnnxFile) -> tuple[str, ...]:
    """Files with weights of a graph, from the folder.

    Raises:
        AdapterError: one is missing.
    """
    beside = PurePosixPath(file).parent
    return tuple(
        folder.require(str(beside / name), f"which {file} has its weights in")
        for name in graph.data
    )


def weight_format(graph: OnnxFile) -> str:
    """How most weights are stored, by the ops that read them."""
    if "MatMulNBits" in graph.ops:
        return "int4"
    return "int8" if graph.ops & _INT8_PRODUCTS else "fp32"


def _list(names: object) -> str:
    shown = list(names)[:8]  # type: ignore[call-overload]
    return ", ".join(shown) or "none"

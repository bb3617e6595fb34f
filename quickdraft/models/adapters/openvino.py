"""Exports of optimum-intel for OpenVINO GenAI: `openvino_model.xml`, stateful."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from quickdraft.bundle import Bundle
from quickdraft.errors import AdapterError
from quickdraft.manifest import StatesLayout, StepNames, Variant
from quickdraft.models.adapters.folder import ExportFolder
from quickdraft.models.adapters.graph import Past
from quickdraft.models.adapters.optimum import spec_of
from quickdraft.types import Progress

TOOL = "openvino"
MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
TOKENIZER = "openvino_tokenizer.xml"

_INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx"}
_WEIGHTS = {"i4": "int4", "u4": "int4", "i8": "int8", "u8": "int8", "f16": "fp16"}
_STATE = re.compile(r"\?,(\d+),\?,(\d+)")
"""Shape of a state: batch, KV heads, rows, width of a head."""


@dataclass(frozen=True)
class Graph:
    """What the text of a model says. inputs, outputs: names; states: shapes as they are written;
    elements: types of constants; vocab_size: 0 if it is no number."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    states: tuple[str, ...]
    elements: frozenset[str]
    vocab_size: int


def adapt_openvino(path: Path, progress: Progress | None = None) -> Bundle:
    """The bundle that such a folder stands for.

    Raises:
        AdapterError: something is missing or malformed, or the model is no stateful decoder.
    """
    folder = ExportFolder(path, TOOL)
    folder.require(WEIGHTS, f"the weights of {MODEL}")
    config = folder.json(folder.require("config.json", "which says what model it is"))
    graph = read_graph(path / MODEL)
    unknown = sorted(graph.inputs - _INPUTS)
    if unknown:
        folder.refuse(f"its graph has the input {unknown[0]!r}")
    for name, there in (("input_ids", graph.inputs), ("attention_mask", graph.inputs),
                        ("logits", graph.outputs)):  # fmt: skip
        if name not in there:
            raise AdapterError(f"{path / MODEL} has no {name!r}; it is not a decoder of text")
    if not graph.states:
        folder.refuse(
            "it is not stateful", "export it again without --disable-stateful, or with quickdraft"
        )
    past = _past(folder, graph)
    step = StepNames(
        tokens="input_ids",
        positions="position_ids" if "position_ids" in graph.inputs else None,
        logits="logits",
        mask="attention_mask",
        beams="beam_idx" if "beam_idx" in graph.inputs else None,
    )
    weights = [name for kind, name in _WEIGHTS.items() if kind in graph.elements]
    variant = Variant(
        target_format="openvino",
        flavour="adapted",
        weight_format=weights[0] if weights else "fp32",
        model=MODEL,
        files=(MODEL, WEIGHTS),
        step=step,
        cache=StatesLayout("states"),
        guarantee="same_distribution",
        details={"probed": True},
    )
    generation = folder.json("generation_config.json")
    hint = f", only {TOKENIZER}" if (path / TOKENIZER).is_file() else ""
    tokenizer = folder.tokenizer(config, generation, hint)
    spec = spec_of(config, str(path / "config.json"), graph.vocab_size, past)
    return folder.bundle(spec, variant, tokenizer, generation, progress)


def _past(folder: ExportFolder, graph: Graph) -> Past:
    """The shape of the states, which come in pairs and are all alike."""
    shapes = set(graph.states)
    match = _STATE.fullmatch(shapes.pop()) if len(shapes) == 1 else None
    if match is None or len(graph.states) % 2:
        folder.refuse(f"it has states of the shapes {', '.join(sorted(set(graph.states))[:4])}")
    assert match is not None  # refused above  # noqa: S101
    return Past(len(graph.states) // 2, int(match[1]), int(match[2]))


def read_graph(path: Path) -> Graph:
    """Inputs, outputs and states of a model, from its text.

    Raises:
        AdapterError: it cannot be read, or is not a model of OpenVINO.
    """
    inputs: set[str] = set()
    outputs: set[str] = set()
    elements: set[str] = set()
    states: list[str] = []
    vocabulary = ""
    try:
        # Expat refuses entities that multiply, and nothing outside the file is ever read.
        for _, layer in ElementTree.iterparse(path):  # noqa: S314
            if layer.tag != "layer":
                continue
            kind, data = layer.get("type"), layer.find("data")
            facts = {} if data is None else data.attrib
            if kind == "Parameter":
                inputs |= {name for port in layer.iter("port") for name in _names(port)}
            elif kind == "ReadValue":
                states.append(facts.get("variable_shape", ""))
            elif kind == "Result":
                outputs |= set(layer.get("output_names", "").split(","))
                vocabulary = [d.text or "" for d in layer.iter("dim")][-1:][0]
            elif kind == "Const":
                elements.add(facts.get("element_type", ""))
            layer.clear()
    except ElementTree.ParseError as error:
        raise AdapterError(f"{path} is not a model of OpenVINO: {error}") from None
    except (OSError, IndexError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    size = int(vocabulary) if vocabulary.isdigit() else 0
    if size < 1:
        raise AdapterError(f"{path}: the size of the vocabulary is {vocabulary[:20]!r}, no number")
    return Graph(frozenset(inputs), frozenset(outputs), tuple(states), frozenset(elements), size)


def _names(port: ElementTree.Element) -> list[str]:
    """The names of a port: any of several would do, and the known ones are found among them."""
    names = port.get("names", "").split(",")
    return [name for name in names if name in _INPUTS][:1] or names[:1]

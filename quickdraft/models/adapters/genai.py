"""Folders of onnxruntime-genai: `genai_config.json` beside a graph that its builder made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quickdraft.bundle import Bundle
from quickdraft.errors import AdapterError
from quickdraft.manifest import Variant
from quickdraft.models.adapters.folder import ExportFolder, whole
from quickdraft.models.adapters.graph import Names, data_files, graph_facts, weight_format
from quickdraft.onnx_io import read_onnx
from quickdraft.types import ModelSpec, Progress

CONFIG = "genai_config.json"
TOOL = "onnxruntime-genai"

_SHARES = "GroupQueryAttention"
"""The op whose kernels write the step's rows into the memory of the past."""
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "min_p")


def adapt_genai(path: Path, progress: Progress | None = None) -> Bundle:
    """The bundle that such a folder stands for.

    Raises:
        AdapterError: something is missing or malformed, or the model is no decoder.
    """
    folder = ExportFolder(path, TOOL)
    config, where = folder.json(CONFIG), f"{path / CONFIG}"
    model = _object(config, "model", where)
    decoder = _decoder(folder, model, where)
    search = config.get("search", {})
    graph_file = folder.require(decoder.get("filename"), f"which {CONFIG} names")
    graph = read_onnx(path / graph_file)
    names = _names(decoder, where)
    facts = graph_facts(folder, graph_file, graph, names)
    if facts.past is None:
        folder.refuse("its graph has no past")
    assert facts.past is not None  # refused above  # noqa: S101
    heads = whole(decoder, where, "num_attention_heads")
    layers = facts.past.layers
    spec = ModelSpec(
        family=str(model.get("type", "unknown")),
        num_layers=layers,
        hidden_size=whole(decoder, where, "hidden_size"),
        vocab_size=facts.vocab_size,
        context_length=whole(model, where, "context_length"),
        num_heads=(heads,) * layers,
        num_kv_heads=(facts.past.heads,) * layers,
        head_dim=facts.past.head_dim,
        windows=(None,) * layers,
    )
    shared = isinstance(search, Mapping) and search.get("past_present_share_buffer") is True
    variant = Variant(
        target_format="onnx",
        flavour="adapted",
        weight_format=weight_format(graph),
        model=graph_file,
        files=(graph_file, *data_files(folder, graph_file, graph)),
        step=facts.step,
        cache=names.layout(in_place=shared and _SHARES in graph.ops),
        guarantee="same_distribution",
        # This op is causal over any past, whatever the graph was made for.
        details={"probed": _SHARES in graph.ops},
    )
    ids = {name: model.get(name) for name in ("bos_token_id", "eos_token_id")}
    tokenizer = folder.tokenizer({}, ids)
    generation = {k: v for k, v in dict(search).items() if k in _SAMPLING} if search else {}
    return folder.bundle(spec, variant, tokenizer, generation, progress)


def _object(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = config.get(key)
    if not isinstance(value, Mapping):
        raise AdapterError(f"{where} lacks the object {key!r}")
    return value


def _decoder(folder: ExportFolder, model: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The part of the config about the decoder; what is more than a decoder is refused."""
    for part in ("encoder", "vision", "speech", "embedding"):
        if part in model:
            folder.refuse(f"{CONFIG} describes a model with the part {part!r}")
    decoder = _object(model, "decoder", where)
    if "pipeline" in decoder:
        folder.refuse(f"{CONFIG} describes a pipeline of several graphs")
    window = decoder.get("sliding_window")
    if isinstance(window, Mapping) and (
        window.get("slide_key_value_cache", True) or window.get("slide_inputs", True)
    ):
        folder.refuse("it slides a window over its inputs or cache")
    return decoder


def _names(decoder: Mapping[str, Any], where: str) -> Names:
    """The names that the config gives to inputs and outputs, else the builder's own."""
    given = {**_mapping(decoder, "inputs", where), **_mapping(decoder, "outputs", where)}

    def name(key: str, usual: str) -> str:
        value = given.get(key, usual)
        if not isinstance(value, str):
            raise AdapterError(f"{where}: the name {key!r} is {value!r}, no text")
        return value

    return Names(
        tokens=name("input_ids", "input_ids"),
        mask=name("attention_mask", "attention_mask"),
        positions=name("position_ids", "position_ids"),
        logits=name("logits", "logits"),
        past_key=name("past_key_names", "past_key_values.%d.key"),
        past_value=name("past_value_names", "past_key_values.%d.value"),
        present_key=name("present_key_names", "present.%d.key"),
        present_value=name("present_value_names", "present.%d.value"),
        head_dim=whole(decoder, where, "head_size"),
    )


def _mapping(decoder: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    return _object(decoder, key, where) if key in decoder else {}

"""Exports of optimum to ONNX: with past, merged, in two graphs, and without a cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quickdraft.bundle import Bundle
from quickdraft.errors import AdapterError
from quickdraft.manifest import CacheLayout, RecomputedLayout, Variant
from quickdraft.models.adapters import OPTIMUM_MODELS
from quickdraft.models.adapters.folder import ExportFolder, whole
from quickdraft.models.adapters.graph import Names, Past, data_files, graph_facts, weight_format
from quickdraft.onnx_io import read_onnx
from quickdraft.types import ModelSpec, Progress

TOOL = "optimum"
WITH_PAST, FIRST = "decoder_with_past_model.onnx", "decoder_model.onnx"


def adapt_optimum(path: Path, progress: Progress | None = None) -> Bundle:
    """The bundle that such a folder stands for.

    Raises:
        AdapterError: something is missing or malformed, or the model is no decoder.
    """
    folder = ExportFolder(path, TOOL)
    config = folder.json(folder.require("config.json", "which says what model it is"))
    if config.get("is_encoder_decoder") is True:
        folder.refuse("it is an encoder-decoder model")
    file = _model_file(path)
    graph = read_onnx(path / file)
    names = Names()
    facts = graph_facts(folder, file, graph, names)
    files, details = [file, *data_files(folder, file, graph)], {}
    if file.endswith(WITH_PAST):
        first = folder.require(file.replace(WITH_PAST, FIRST), f"which goes before {WITH_PAST}")
        beginning = read_onnx(path / first)
        graph_facts(folder, first, beginning, names)
        files += [
            name for name in (first, *data_files(folder, first, beginning)) if name not in files
        ]
        details["first_model"] = first
    layout: CacheLayout = RecomputedLayout("recomputed")
    if facts.past is not None:
        layout = names.layout()
    variant = Variant(
        target_format="onnx",
        flavour="adapted",
        weight_format=weight_format(graph),
        model=file,
        files=tuple(files),
        step=facts.step,
        cache=layout,
        guarantee="same_distribution",
        details=details,
    )
    generation = folder.json("generation_config.json")
    tokenizer = folder.tokenizer(config, generation)
    spec = spec_of(config, str(path / "config.json"), facts.vocab_size, facts.past)
    return folder.bundle(spec, variant, tokenizer, generation, progress)


def _model_file(path: Path) -> str:
    """The graph to use: merged before separate ones, and with a past before one without."""
    for part in ("", "onnx/"):
        present = [part + name for name in OPTIMUM_MODELS if (path / part / name).is_file()]
        if present:
            return present[0]
    raise AdapterError(f"{path} has none of {', '.join(OPTIMUM_MODELS)}")


def spec_of(config: Mapping[str, Any], where: str, vocab_size: int, past: Past | None) -> ModelSpec:
    """Facts of a model from its graph and, where that is silent, its config.json.

    Raises:
        AdapterError: the config lacks one, or contradicts the graph.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    layers = whole(config, where, "num_hidden_layers", "n_layer", "num_layers")
    heads = whole(config, where, "num_attention_heads", "n_head")
    hidden = whole(config, where, "hidden_size", "n_embd", "d_model")
    if past is None:
        # Nothing is cached, so these say how much a row would take, and bind nothing.
        past = Past(layers, heads, max(1, hidden // heads))
    if past.layers != layers:
        raise AdapterError(f"{where} says {layers} layers, and the graph has {past.layers}")
    if heads % past.heads:
        raise AdapterError(f"{where} says {heads} heads, and the graph has {past.heads} KV heads")
    context = whole(config, where, "max_position_embeddings", "n_positions", "max_seq_len")
    return ModelSpec(
        family=str(config.get("model_type", "unknown")),
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=vocab_size,
        context_length=context,
        num_heads=(heads,) * layers,
        num_kv_heads=(past.heads,) * layers,
        head_dim=past.head_dim,
        windows=(None,) * layers,
    )

"""The emitter for OpenVINO GenAI: a stateful graph under its names, and the configs beside it."""

from __future__ import annotations

import json
from typing import Any

from quickdraft.errors import MissingExtra, UnsupportedModel
from quickdraft.export.emitters.base import EmitRequest, refuse_sources
from quickdraft.manifest import StatesLayout, Variant
from quickdraft.types import ModelSpec

try:
    import openvino as ov

    from quickdraft.export.emitters.openvino_genai_ops import OpenVinoGenAiOps
    from quickdraft.export.emitters.openvino_weights import WeightStore
except ImportError:  # reported when something is exported, with the extra to install
    ov = None

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
CONFIG, GENERATION = "config.json", "generation_config.json"


def emit_openvino_genai(request: EmitRequest) -> list[Variant]:
    """Write the graph, `config.json` and `generation_config.json` at the top of the bundle.

    Raises:
        MissingExtra: OpenVINO is not installed.
        UnsupportedModel: there is more than a decoder, hidden states are asked for, scores are
            capped, or layers differ in their heads.
    """
    if ov is None:
        raise MissingExtra("openvino", "openvino")
    refuse_sources(request, "openvino-genai")
    part = request.parts[0]
    _check(request)
    ops = OpenVinoGenAiOps(part, WeightStore(part.fmt or request.fmt))
    part.build(ops)
    model, step = ops.finish()
    ov.serialize(model, str(request.folder / MODEL), str(request.folder / WEIGHTS))
    tokenizer = request.tokenizer
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        ids = {"eos_token_id": list(tokenizer.eos_token_ids)}
        if tokenizer.bos_token_id is not None:
            ids["bos_token_id"] = tokenizer.bos_token_id
    for name, content in ((CONFIG, config_of(part.spec)), (GENERATION, ids)):
        text = json.dumps(content, indent=1)
        (request.folder / name).write_text(text + "\n", encoding="utf-8")
    variant = Variant(
        target_format="openvino",
        flavour="adapted",
        weight_format=(part.fmt or request.fmt).name,
        model=MODEL,
        files=(MODEL, WEIGHTS, CONFIG, GENERATION),
        step=step,
        cache=StatesLayout("states"),
        guarantee="same_distribution",
        details={"probed": True},
    )
    return [variant]


def _check(request: EmitRequest) -> None:
    part, problem = request.parts[0], None
    if len(request.parts) > 1:
        problem = f"the part {request.parts[1].name!r} beside the model"
    elif part.hidden_states:
        problem = "hidden states"
    elif len(set(part.spec.num_kv_heads)) > 1 or len(set(part.spec.num_heads)) > 1:
        problem = "layers of different numbers of heads"
    if problem is not None:
        raise UnsupportedModel(
            f"the format 'openvino-genai' cannot hold {problem}; leave it out, or use another "
            "format"
        )


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """What `config.json` says of a model."""
    return {
        "model_type": spec.family,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads[0],
        "num_key_value_heads": spec.num_kv_heads[0],
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
    }

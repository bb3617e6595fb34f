"""The emitter for onnxruntime-genai: its names of inputs, its config, its op for attention.

The bundle is a folder that onnxruntime-genai opens as well. Inputs, outputs and the config are
those that its model builder writes (onnxruntime-genai 0.18, `models/builders/base.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quickdraft.errors import UnsupportedModel
from quickdraft.export.checkpoints.base import TokenizerFiles
from quickdraft.export.emitters.base import EmitRequest, Part, refuse_sources
from quickdraft.export.emitters.onnx import check_graph
from quickdraft.export.emitters.onnx_graph import CONTRIB, DataFile, GraphBuilder
from quickdraft.export.emitters.onnx_ops import OnnxOps, Value
from quickdraft.export.emitters.onnx_weights import WeightStore
from quickdraft.export.ops import Attention
from quickdraft.manifest import AppendedLayout, StepNames, Variant
from quickdraft.types import ModelSpec

MODEL, DATA = "model.onnx", "model.onnx.data"
CONFIG, TOKENIZER_CONFIG = "genai_config.json", "tokenizer_config.json"
LAYOUT = AppendedLayout(
    "appended",
    past_key="past_key_values.{layer}.key",
    past_value="past_key_values.{layer}.value",
    present_key="present.{layer}.key",
    present_value="present.{layer}.value",
    in_place=True,
)
_TYPE = "decoder"
"""The type of model that onnxruntime-genai runs by its config alone, whatever the family."""


def emit_genai(request: EmitRequest) -> list[Variant]:
    """Write `model.onnx`, its data, `genai_config.json` and `tokenizer_config.json`, all at the top
    of the bundle, where onnxruntime-genai looks for them.

    Raises:
        UnsupportedModel: there is more than a decoder, hidden states are asked for, or layers
            differ in their KV heads. BackendError: the graph is invalid (a fault of ours).
    """
    refuse_sources(request, "genai")
    part = request.parts[0]
    _check(request)
    data = DataFile(request.folder / DATA)
    try:
        graph = GraphBuilder(data)
        ops = GenAiOps(graph, WeightStore(graph, request.fmt), part)
        part.build(ops)
    finally:
        data.close()
    step = ops.finish(request.folder / MODEL)
    check_graph(request.folder / MODEL)
    for name, content in (
        (CONFIG, config_of(part.spec, request.tokenizer)),
        (TOKENIZER_CONFIG, _tokenizer_config(request.tokenizer)),
    ):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (request.folder / name).write_text(text + "\n", encoding="utf-8")
    variant = Variant(
        target_format="onnx",
        flavour="adapted",
        weight_format=request.fmt.name,
        model=MODEL,
        files=(MODEL, DATA, CONFIG, TOKENIZER_CONFIG),
        step=step,
        cache=LAYOUT,
        guarantee="same_distribution",
        details={"probed": True},
    )
    return [variant]


def _check(request: EmitRequest) -> None:
    part = request.parts[0]
    problem = None
    if len(request.parts) > 1:
        problem = f"the part {request.parts[1].name!r} beside the model"
    elif part.hidden_states:
        problem = "hidden states"
    elif len(set(part.spec.num_kv_heads)) > 1 or len(set(part.spec.num_heads)) > 1:
        problem = "layers of different numbers of heads"
    if problem is not None:
        raise UnsupportedModel(
            f"the format 'genai' cannot hold {problem}; leave it out, or use another format"
        )


class GenAiOps(OnnxOps):
    """One step as onnxruntime-genai feeds it: rows of all tokens, keys and values head by head."""

    def __init__(self, graph: GraphBuilder, store: WeightStore, part: Part) -> None:
        self._open(graph, store, part)
        self._ids = graph.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        mask = graph.input(
            "attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"]
        )
        filled = graph.one("ReduceSum", [mask, graph.constant([1])], {"keepdims": 0})
        last = graph.one("Sub", [filled, graph.constant([1])])
        self._last = graph.one("Cast", [last], {"to": ir.DataType.INT32})
        total = graph.one("Shape", [mask], {"start": 1, "end": 2})
        total = graph.one("Squeeze", [total, graph.constant([0])])
        self._total = graph.one("Cast", [total], {"to": ir.DataType.INT32})
        end = graph.one("Squeeze", [filled, graph.constant([0])])
        count = graph.one("Shape", [self._ids], {"start": 1, "end": 2})
        count = graph.one("Squeeze", [count, graph.constant([0])])
        start = graph.one("Sub", [end, count])
        one = graph.one("Squeeze", [graph.constant([1]), graph.constant([0])])
        self._positions = graph.one("Range", [start, end, one])
        self._position_row = graph.one("Unsqueeze", [self._positions, graph.constant([0])])

    def tokens(self) -> Value:
        """Token ids, [1, n]."""
        return self._ids

    def output_rows(self) -> Value:
        """All rows; `take_rows` knows this value."""
        return self._ids

    def take_rows(self, x: Value, rows: Value) -> Value:
        """All of them where all are wanted."""
        return x if rows is self._ids else super().take_rows(x, rows)

    def logits(self, x: Value) -> None:
        """Name the result."""
        shape: list[int | str] = ["batch_size", "sequence_length", self._spec.vocab_size]
        self._graph.output(self._value(x), "logits", ir.DataType.FLOAT, shape)

    def attend(self, q: Value, k: Value, v: Value, attention: Attention) -> Value:
        """GroupQueryAttention, which appends keys and values to those of the past.

        Raises:
            UnsupportedModel: scores have a bias by distance, which this op does not add.
        """
        a = attention
        if a.relative is not None:
            raise UnsupportedModel("the format 'genai' has no attention with relative positions")
        heads, width = a.num_kv_heads, a.head_dim
        before: list[int | str] = ["batch_size", heads, "past_sequence_length", width]
        after: list[int | str] = ["batch_size", heads, "total_sequence_length", width]
        past = [
            self._graph.input(name.format(layer=a.layer), ir.DataType.FLOAT, before)
            for name in (LAYOUT.past_key, LAYOUT.past_value)
        ]
        attributes: dict[str, Any] = {
            "num_heads": a.num_heads,
            "kv_num_heads": a.num_kv_heads,
            "scale": float(a.scale),
            "softcap": float(a.softcap or 0.0),
            "local_window_size": -1 if a.window is None else a.window,
            "do_rotary": 0,
        }
        inputs = [self._value(q), self._value(k), self._value(v), *past, self._last, self._total]
        mixed, *caches = self._graph.node(
            "GroupQueryAttention", inputs, attributes, domain=CONTRIB, outputs=3
        )
        for cache, name in zip(caches, (LAYOUT.present_key, LAYOUT.present_value), strict=True):
            self._graph.output(cache, name.format(layer=a.layer), ir.DataType.FLOAT, after)
        return mixed

    def finish(self, path: Path) -> StepNames:
        """Write the graph and say how its tensors are called."""
        self._graph.save(path, self._spec.family)
        return StepNames(tokens="input_ids", positions=None, logits="logits", mask="attention_mask")


def config_of(spec: ModelSpec, tokenizer: TokenizerFiles | None) -> Mapping[str, Any]:
    """What `genai_config.json` says of a model. tokenizer: None where nothing is known of it."""
    eos = list(tokenizer.eos_token_ids) if tokenizer is not None else []
    bos = tokenizer.bos_token_id if tokenizer is not None else None
    first = eos[0] if eos else 0

    def names(layout: str) -> str:
        return layout.replace("{layer}", "%d")

    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL,
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": names(LAYOUT.past_key),
            "past_value_names": names(LAYOUT.past_value),
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": names(LAYOUT.present_key),
            "present_value_names": names(LAYOUT.present_value),
        },
        "num_attention_heads": spec.num_heads[0],
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads[0],
    }
    model = {
        "type": _TYPE,
        "bos_token_id": first if bos is None else bos,
        "eos_token_id": eos,
        "pad_token_id": first,
        "context_length": spec.context_length,
        "vocab_size": spec.vocab_size,
        "decoder": decoder,
    }
    search = {
        "do_sample": False,
        "max_length": spec.context_length,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}


def _tokenizer_config(tokenizer: TokenizerFiles | None) -> Mapping[str, Any]:
    """What onnxruntime-genai must know of a tokenizer besides `tokenizer.json`."""
    special = dict(tokenizer.special_tokens) if tokenizer is not None else {}
    adds = tokenizer is not None and tokenizer.add_bos
    return {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": adds, **special}

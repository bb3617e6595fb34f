"""The hotpath graph: what is fused, what is stored, and that it computes the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny.checkpoint import tiny_checkpoint
from tiny.family_configs import CONFIGS
from tiny.hotpath_graph import attributes, load, run_chain
from tiny.native import needs_native
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.drafters.tree import Tree
from quickdraft.errors import UnsupportedModel
from quickdraft.export.architectures.base import find_family
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import EmitRequest
from quickdraft.export.emitters.hotpath import emit_hotpath
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.ops import Ops
from quickdraft.export.quantize import FORMATS, quantize
from quickdraft.export.weights import Weight, dense_weight
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.reference import ReferenceBackend
from quickdraft.types import ModelSpec

ROWS = np.array([0, 3, 11])
TOKENS = np.random.default_rng(0).integers(4, 300, 12)


def request(
    name: str, folder: Path, form: str = "fp32", hidden_states: tuple[int, ...] = (), **more: Any
) -> EmitRequest:
    """A tiny model of CONFIGS with random weights."""
    model_type, config = CONFIGS[name]
    family = find_family({"model_type": model_type})
    spec = family.read({**config, "model_type": model_type, **more})
    return target_request(
        lambda ops: family.build(ops, spec, RandomWeights()),
        spec.model_spec(),
        folder,
        FORMATS[form],
        hidden_states,
    )


def emit(asked: EmitRequest) -> tuple[onnx.GraphProto, Variant]:
    (variant,) = emit_hotpath(asked)
    return load(asked.folder / variant.model), variant


def nodes(graph: onnx.GraphProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op_type]


def reference_logits(asked: EmitRequest) -> Any:
    (variant,) = emit_reference(asked)
    backend = ReferenceBackend(asked.folder, asked.parts[0].spec, variant)
    return backend.step(Tree.chain(TOKENS), backend.new_cache(), rows=ROWS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_computes_what_the_reference_does(name: str, tmp_path: Path) -> None:
    asked = request(name, tmp_path, hidden_states=(0, 2))
    graph, variant = emit(asked)
    values, reference = run_chain(graph, TOKENS, ROWS), reference_logits(asked)
    assert reference.logits.std() > 0.05
    assert np.abs(values["logits"] - reference.logits).max() < 1e-4
    for layer, output in variant.step.hidden_states.items():
        assert np.abs(values[output] - reference.hidden_states[layer]).max() < 1e-4
    assert sorted(variant.step.hidden_states) == [0, 2]
    top = np.sort(reference.logits, axis=1)[:, ::-1][:, : variant.step.top]
    assert np.abs(values["top_values"] - top).max() < 1e-4


@needs_native
@pytest.mark.parametrize("name", CONFIGS)
def test_the_kernels_compute_it_too(name: str, tmp_path: Path) -> None:
    asked = request(name, tmp_path)
    backend = HotpathBackend(tmp_path, asked.parts[0].spec, emit_hotpath(asked)[0], 1, "f32")
    output = backend.step(Tree.chain(TOKENS), backend.new_cache(), rows=ROWS)
    reference = reference_logits(asked).logits
    assert np.abs(output.logits - reference).max() < 1e-4
    assert output.top is not None
    best = np.take_along_axis(reference, output.top.ids, axis=1)
    assert np.abs(best - output.top.values).max() < 1e-4


@pytest.mark.parametrize("form", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "openelm"])
def test_weights_in_every_format(name: str, form: str, tmp_path: Path) -> None:
    """The reference rounds tables of positions too, and no activations."""
    asked = request(name, tmp_path, form)
    values, reference = run_chain(emit(asked)[0], TOKENS, ROWS), reference_logits(asked)
    limit = {"fp16": 0.002, "int8": 0.12, "int4": 0.25}[form] * reference.logits.std()
    assert np.abs(values["logits"] - reference.logits).max() < limit


# Nodes of a layer: products, norms.
PER_LAYER = {
    "llama": (4, 0),
    "llama-biases-tied-llama3": (4, 0),
    "qwen2": (4, 0),
    "qwen3": (4, 2),
    "gemma2": (4, 2),
    "gemma3": (4, 4),
    "olmo2": (4, 4),
    "phi3-window": (4, 0),
    "gpt2": (4, 0),
    "opt": (4, 0),
    "gpt_neox": (4, 0),
    "gpt_neox-serial": (4, 0),
    "stablelm-parallel-normed": (4, 2),
    "openelm": (4, 2),
}


@pytest.mark.parametrize("name", PER_LAYER)
def test_nothing_is_left_between_the_kernels(name: str, tmp_path: Path) -> None:
    graph, _ = emit(request(name, tmp_path))
    asked = request(name, tmp_path)
    layers, (products, norms) = asked.parts[0].spec.num_layers, PER_LAYER[name]
    count = Counter(node.op_type for node in graph.node)
    assert count.pop("QLinear") == products * layers
    assert count.pop("Norm", 0) == norms * layers
    assert count.pop("TreeAttention") == layers
    assert count.pop("HeadTopK") == 1
    learned = name in ("gpt2", "opt")
    assert count.pop("Embed") == (2 if learned else 1)
    assert count.pop("Add", 0) == int(learned)
    assert count.pop("RopeTable", 0) == {"gemma3": 2, "gpt2": 0, "opt": 0}.get(name, 1)
    # The residual stream and what attention gave, at the rows that the head reads.
    assert count == {"Gather": 2, "Size": 1, "Range": 1}


@pytest.mark.parametrize("name", PER_LAYER)
def test_the_last_products_are_of_the_rows_asked_for(name: str, tmp_path: Path) -> None:
    graph, _ = emit(request(name, tmp_path))
    tokens, rows = np.arange(3, 10), np.array([6, 2])
    values = run_chain(graph, tokens, rows)
    last = max(i for i, node in enumerate(graph.node) if node.op_type == "TreeAttention")
    after = [node for node in graph.node[last + 1 :] if node.op_type == "QLinear"]
    assert after
    assert all(len(values[node.output[0]]) == len(rows) for node in after)
    full = run_chain(graph, tokens, np.arange(len(tokens)))
    np.testing.assert_allclose(values["logits"], full["logits"][rows], rtol=1e-5, atol=1e-5)


def test_norms_sums_and_activations_are_taken_in(tmp_path: Path) -> None:
    graph, _ = emit(request("llama", tmp_path))
    joined, output, gated, down = nodes(graph, "QLinear")[:4]
    assert attributes(joined)["norm"] == attributes(gated)["norm"] == "rms"
    assert joined.input[4] == "model.layers.0.input_layernorm.weight"
    assert attributes(joined)["n"] == 64
    assert (attributes(gated)["gated"], attributes(gated)["activation"]) == (1, "silu")
    assert output.input[3] == nodes(graph, "Embed")[0].output[0]
    assert down.input[3] == output.output[0]
    attention = nodes(graph, "TreeAttention")[0]
    assert set(attention.input[:3]) == {joined.output[0]}
    found = attributes(attention)
    assert [found[f"{name}_offset"] for name in "qkv"] == [0, 32, 48]
    head = nodes(graph, "HeadTopK")[0]
    assert (head.input[5], attributes(head)["norm"]) == ("model.norm.weight", "rms")


def test_norms_after_a_product_take_in_the_sum(tmp_path: Path) -> None:
    graph, _ = emit(request("gemma2", tmp_path))
    embedding, first = nodes(graph, "Embed")[0], nodes(graph, "Norm")[0]
    assert first.input[3] == embedding.output[0]
    assert attributes(embedding)["scale"] == pytest.approx(32**0.5)
    assert attributes(nodes(graph, "HeadTopK")[0])["softcap"] == 30.0


def test_a_parallel_block_adds_twice(tmp_path: Path) -> None:
    graph, _ = emit(request("gpt_neox", tmp_path))
    _, output, _, down = nodes(graph, "QLinear")[:4]
    assert output.input[3] == nodes(graph, "Embed")[0].output[0]
    assert down.input[3] == output.output[0]


def test_head_norms_read_columns_of_the_joined_product(tmp_path: Path) -> None:
    graph, _ = emit(request("stablelm-parallel-normed", tmp_path))
    joined, norms = nodes(graph, "QLinear")[0], nodes(graph, "Norm")[:2]
    assert [norm.input[0] for norm in norms] == [joined.output[0]] * 2
    found = [attributes(norm) for norm in norms]
    assert [(a["offset"], a["heads"], a["width"], a["per_head"]) for a in found] == [
        (0, 4, 16, 1),
        (64, 2, 16, 1),
    ]


@pytest.mark.parametrize("form", ["int8", "int4", "fp32"])
def test_a_layer_of_grouped_heads_is_four_products(form: str, tmp_path: Path) -> None:
    asked = request("llama", tmp_path, form, num_key_value_heads=1, num_attention_heads=4)
    graph, _ = emit(asked)
    assert len(nodes(graph, "QLinear")) == 4 * asked.parts[0].spec.num_layers


def test_a_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    graph, _ = emit(request("mistral-full", tmp_path, "int8"))
    assert nodes(graph, "Embed")[0].input[1] == nodes(graph, "HeadTopK")[0].input[3]


def test_weights_lie_where_vectors_can_be_loaded(tmp_path: Path) -> None:
    asked = request("llama", tmp_path, "int4")
    emit(asked)
    model = onnx.load(str(tmp_path / "onnx-hotpath/model.onnx"), load_external_data=False)
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    assert len(entries) > 20
    assert all(int(entry["offset"]) % 64 == 0 for entry in entries)
    assert {entry["location"] for entry in entries} == {"model.data"}


def test_the_graph_is_in_order_and_its_names_are_unique(tmp_path: Path) -> None:
    graph, variant = emit(request("gemma3", tmp_path, hidden_states=(1, 4)))
    known = [i.name for i in graph.input] + [i.name for i in graph.initializer]
    for node in graph.node:
        assert all(name in known for name in node.input if name)
        known += node.output
    assert len(set(known)) == len(known)
    step = variant.step
    promised = {step.tokens, step.positions, step.output_rows, step.ancestors, step.past}
    assert {i.name for i in graph.input} == promised | {step.full_logits, "cache"}
    outputs = {step.top_values, step.top_ids, step.log_sum, step.logits, "present_cache"}
    assert {o.name for o in graph.output} == outputs | set(step.hidden_states.values())


def test_the_cache_passes_through_every_layer(tmp_path: Path) -> None:
    graph, _ = emit(request("openelm", tmp_path))
    layers = nodes(graph, "TreeAttention")
    caches = ["cache", *(node.output[1] for node in layers)]
    assert caches[-1] == "present_cache"
    assert [node.input[6] for node in layers] == caches[:-1]
    found = [attributes(node) for node in layers]
    assert [(a["kv_heads_before"], a["kv_heads_total"]) for a in found] == [(0, 5), (1, 5), (3, 5)]


@pytest.mark.parametrize(("asked_for", "top"), [(1, 1), (64, 64), (1000, 320)])
def test_the_number_of_largest_logits(asked_for: int, top: int, tmp_path: Path) -> None:
    asked = request("llama", tmp_path)
    graph, variant = emit(replace(asked, parts=(replace(asked.parts[0], top=asked_for),)))
    assert variant.step.top == attributes(nodes(graph, "HeadTopK")[0])["top"] == top


def test_gate_and_up_of_different_blocks_are_multiplied_outside(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama")
    weights = dict(checkpoint.weights)
    for name, weight in weights.items():
        if name.endswith("up_proj.weight"):
            weights[name] = _as_blocks(weight, 8, "Q8_0")
        elif weight.shape[-1] % 32 == 0 and len(weight.shape) == 2:
            weights[name] = _as_blocks(weight, 4, "Q4_0")
    asked = _of_checkpoint(checkpoint.config, weights, tmp_path)
    graph, _ = emit(asked)
    assert len(nodes(graph, "Mul")) == asked.parts[0].spec.num_layers
    values, reference = run_chain(graph, TOKENS, ROWS), reference_logits(asked)
    assert np.abs(values["logits"] - reference.logits).max() < 0.25 * reference.logits.std()


def _as_blocks(weight: Weight, bits: int, stored_as: str) -> Weight:
    data = quantize(weight.dense(), bits)
    return Weight(weight.name, weight.shape, stored_as, lambda: data)


def _of_checkpoint(config: Any, weights: dict[str, Weight], folder: Path) -> EmitRequest:
    family = find_family(config)
    spec = family.read(config)
    return target_request(
        lambda ops: family.build(ops, spec, WeightMap(weights)),
        spec.model_spec(),
        folder,
        FORMATS["gguf"],
    )


SPEC = ModelSpec(
    family="llama",
    num_layers=1,
    hidden_size=16,
    vocab_size=32,
    context_length=64,
    num_heads=(2,),
    num_kv_heads=(2,),
    head_dim=8,
    windows=(None,),
    num_parameters=0,
)
TABLE = dense_weight("table", np.ones((32, 16), np.float32))
SQUARE = dense_weight("square", np.ones((16, 16), np.float32))


def _activates_nothing(ops: Ops[Any]) -> None:
    ops.activate(ops.embed(ops.tokens(), TABLE), "silu")


def _rows_late(ops: Ops[Any]) -> None:
    ops.logits(ops.linear(ops.embed(ops.tokens(), TABLE), TABLE))


def _no_head(ops: Ops[Any]) -> None:
    ops.logits(ops.embed(ops.tokens(), TABLE))


def _capped_inside(ops: Ops[Any]) -> None:
    x = ops.softcap(ops.linear(ops.embed(ops.tokens(), TABLE), SQUARE), 3.0)
    ops.logits(ops.linear(ops.take_rows(ops.linear(x, SQUARE), ops.output_rows()), TABLE))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (_activates_nothing, "needs silu to follow a matrix product"),
        (_rows_late, "needs logits of the rows asked for only"),
        (_no_head, "needs logits that are a matrix product"),
        (_capped_inside, "has no op for a Capped value"),
    ],
)
def test_what_no_kernel_does_is_refused(build: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"{says}.*; export this model with --format onnx"):
        emit_hotpath(target_request(build, SPEC, tmp_path, FORMATS["fp32"]))


def test_a_value_that_several_ops_read_is_written_once(tmp_path: Path) -> None:
    def build(ops: Ops[Any]) -> None:
        x = ops.embed(ops.tokens(), TABLE)
        once = ops.linear(x, SQUARE)
        total = ops.add(once, ops.linear(once, SQUARE))
        ops.logits(ops.linear(ops.take_rows(ops.add(total, x), ops.output_rows()), TABLE))

    (variant,) = emit_hotpath(target_request(build, SPEC, tmp_path, FORMATS["fp32"]))
    graph = load(tmp_path / variant.model)
    assert Counter(node.op_type for node in graph.node)["QLinear"] == 2
    values = run_chain(graph, np.array([1]), np.array([0]))
    assert values["logits"][0, 0] == 16 * (1 + 16 + 256)

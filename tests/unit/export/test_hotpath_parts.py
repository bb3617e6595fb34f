"""Parts beside the target in the hotpath flavour: what their graphs hold, and that they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny.hotpath_graph import attributes, load, run_chain
from tiny.hotpath_parts import with_predictor
from tiny.native import needs_native

from quickdraft import numpy_ops
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, UnsupportedModel
from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.emitters.hotpath import emit_hotpath
from quickdraft.export.ops import Attention, Rope
from quickdraft.export.quantize import FORMATS
from quickdraft.export.weights import Weight, dense_weight
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.hotpath import (
    THREADS_KEY,
    HotpathBackend,
    default_threads,
)
from quickdraft.types import ModelSpec

HIDDEN, VOCABULARY, ROWS = 32, 48, 5
RANDOM = np.random.default_rng(2)
TOKENS = RANDOM.integers(0, VOCABULARY, ROWS)
FEATURES = RANDOM.standard_normal((ROWS, 2 * HIDDEN)).astype(np.float32)


def weight(name: str, *shape: int) -> Weight:
    values = np.random.default_rng(len(name)).standard_normal(shape) / shape[-1] ** 0.5
    return dense_weight(name, values.astype(np.float32))


TABLE, HEAD = weight("table", VOCABULARY, HIDDEN), weight("the.head", VOCABULARY, HIDDEN)
FROM_TOKEN, FROM_STATE = weight("from.token", HIDDEN, HIDDEN), weight("from.states", HIDDEN, 64)
SCALE = weight("a.scale.of.a.norm", HIDDEN)
SQUARES = tuple(weight("square" * (n + 1), HIDDEN, HIDDEN) for n in range(3))
SPEC = ModelSpec(
    family="head",
    num_layers=1,
    hidden_size=HIDDEN,
    vocab_size=VOCABULARY,
    context_length=64,
    num_heads=(1,),
    num_kv_heads=(1,),
    head_dim=1,
    windows=(None,),
)


def eagle_like(ops: Any) -> None:
    """Token and features, each normed and projected; their sum is an output and gives logits."""
    token = ops.linear(ops.rms_norm(ops.embed(ops.tokens(), TABLE), SCALE, 1e-5), FROM_TOKEN)
    state = ops.linear(ops.rms_norm(ops.features(), None, 1e-5, heads=2), FROM_STATE)
    x = ops.add(token, state)
    ops.hidden_state(x, 1)
    ops.logits(ops.linear(ops.take_rows(x, ops.output_rows()), HEAD))


def medusa_like(ops: Any) -> None:
    """Several heads on each row of features; one product for all their logits."""
    x = ops.linear(ops.features(), FROM_STATE)
    heads = [ops.add(x, ops.activate(ops.linear(x, square), "silu")) for square in SQUARES]
    rows = ops.take_rows(ops.stack(heads), ops.output_rows())
    ops.logits(ops.linear(ops.rms_norm(rows, SCALE, 1e-5), HEAD))


def hydra_like(ops: Any) -> None:
    """An activation of a sum of products, of rows picked before."""
    picked = ops.take_rows(ops.features(), ops.positions())
    token = ops.linear(ops.embed(ops.tokens(), TABLE), FROM_TOKEN)
    x = ops.activate(ops.add(token, ops.linear(picked, FROM_STATE)), "gelu_tanh")
    ops.logits(ops.linear(ops.take_rows(x, ops.output_rows()), HEAD))


def head(build: Callable[[Any], None], **changes: Any) -> Part:
    facts = {"features": 2 * HIDDEN, "top": 7, **changes}
    return Part(role="drafter", name="head", build=build, spec=SPEC, **facts)


def emit(folder: Path, *parts: Part) -> list[Variant]:
    return emit_hotpath(EmitRequest(folder, FORMATS["fp32"], parts))


def graph_of(folder: Path, part: Part) -> tuple[onnx.GraphProto, Variant]:
    (variant,) = emit(folder, part)
    return load(folder / variant.model), variant


def rms(x: np.ndarray, parts: int = 1) -> np.ndarray:
    return numpy_ops.rms_norm(x, None, 1e-5, parts)


def values(part: Weight) -> np.ndarray:
    return part.dense()


def eagle_by_hand(tokens: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    token = (rms(values(TABLE)[tokens]) * values(SCALE)) @ values(FROM_TOKEN).T
    state = token + rms(features, 2) @ values(FROM_STATE).T
    return state, state @ values(HEAD).T


def medusa_by_hand(features: np.ndarray) -> np.ndarray:
    x = features @ values(FROM_STATE).T
    heads = [x + numpy_ops.activate(x @ values(square).T, "silu") for square in SQUARES]
    return (rms(np.concatenate(heads)) * values(SCALE)) @ values(HEAD).T


def test_sums_of_products_of_two_inputs_take_each_other_in(tmp_path: Path) -> None:
    graph, variant = graph_of(tmp_path, head(eagle_like, hidden_states=(1,)))
    count = Counter(node.op_type for node in graph.node)
    assert count == {"Embed": 1, "Norm": 1, "QLinear": 2, "HeadTopK": 1, "Identity": 1}
    found = run_chain(graph, TOKENS, np.arange(ROWS), FEATURES)
    state, logits = eagle_by_hand(TOKENS, FEATURES)
    np.testing.assert_allclose(found["hidden_states.1"], state, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    assert (variant.features, variant.step.features, variant.step.top) == (64, "features", 7)


def test_rows_of_a_stack_are_counted_across_its_parts(tmp_path: Path) -> None:
    graph, _ = graph_of(tmp_path, head(medusa_like))
    rows = np.array([1, ROWS + 1, 2 * ROWS + 1, 2 * ROWS + 4])
    found = run_chain(graph, TOKENS, rows, FEATURES)
    np.testing.assert_allclose(found["logits"], medusa_by_hand(FEATURES)[rows], atol=1e-5)
    assert [node.op_type for node in graph.node].count("Concat") == 1


@pytest.mark.parametrize("kind", ["silu", "relu", "gelu", "gelu_tanh"])
def test_activations_of_sums_are_for_drafters_only(kind: str, tmp_path: Path) -> None:
    def build(ops: Any) -> None:
        token = ops.linear(ops.embed(ops.tokens(), TABLE), FROM_TOKEN)
        x = ops.activate(ops.add(token, ops.linear(ops.features(), FROM_STATE)), kind)
        ops.logits(ops.linear(ops.take_rows(x, ops.output_rows()), HEAD))

    graph_of(tmp_path, head(build))
    with pytest.raises(UnsupportedModel, match=f"needs {kind} to follow a matrix product"):
        emit(tmp_path, replace(head(build), role="target"))


def opened(folder: Path, part: Part) -> HotpathBackend:
    (variant,) = emit(folder, part)
    return HotpathBackend(folder, SPEC, variant, 2)


@needs_native
def test_a_part_with_features_runs(tmp_path: Path) -> None:
    model = opened(tmp_path, head(eagle_like, hidden_states=(1,)))
    cache = model.new_cache()
    output = model.step(Tree.chain(TOKENS), cache, features=FEATURES)
    state, logits = eagle_by_hand(TOKENS, FEATURES)
    np.testing.assert_allclose(output.hidden_states[1], state, atol=1e-5)
    np.testing.assert_allclose(output.logits, logits, atol=1e-5)
    assert output.top is not None
    assert output.top.ids.tolist() == np.argsort(-logits, axis=1, kind="stable")[:, :7].tolist()
    # Row by row, over the rows before: the same bits, though memory is used again.
    together, states = output.logits.copy(), output.hidden_states[1].copy()
    cache.truncate(0)
    for row in range(ROWS):
        alone = model.step(Tree.chain(TOKENS[row : row + 1]), cache, features=FEATURES[[row]])
        assert alone.logits.tobytes() == together[row].tobytes()
        assert alone.hidden_states[1].tobytes() == states[row].tobytes()
        cache.commit([0])


@needs_native
def test_a_part_shares_threads_with_its_target(tmp_path: Path) -> None:
    options = opened(tmp_path, head(eagle_like))._session.get_session_options()
    assert int(options.get_session_config_entry(THREADS_KEY)) == default_threads()
    assert options.intra_op_num_threads == 1


@needs_native
def test_a_stack_runs(tmp_path: Path) -> None:
    model = opened(tmp_path, head(medusa_like))
    rows = np.array([0, ROWS, 2 * ROWS, 3 * ROWS - 1])
    output = model.step(Tree.chain(TOKENS), model.new_cache(), rows, features=FEATURES)
    np.testing.assert_allclose(output.logits, medusa_by_hand(FEATURES)[rows], atol=1e-5)
    with pytest.raises(BackendError, match="is 15, expected at least 0 and below 15"):
        model.step(Tree.chain(TOKENS), model.new_cache(), np.array([15]), features=FEATURES)


@needs_native
def test_rows_taken_anywhere_and_activations_alone_run(tmp_path: Path) -> None:
    model = opened(tmp_path, head(hydra_like))
    output = model.step(Tree.chain(TOKENS), model.new_cache(), features=FEATURES)
    x = values(TABLE)[TOKENS] @ values(FROM_TOKEN).T + FEATURES @ values(FROM_STATE).T
    expected = numpy_ops.activate(x, "gelu_tanh") @ values(HEAD).T
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


@needs_native
def test_features_must_be_those_of_the_part(tmp_path: Path) -> None:
    model = opened(tmp_path, head(eagle_like))
    cache = model.new_cache()
    for wrong, says in (
        (None, "was given none"),
        (FEATURES[:4], r"was given some of shape \[4, 64\]"),
        (FEATURES[:, :63], r"was given some of shape \[5, 63\]"),
    ):
        with pytest.raises(BackendError, match=rf"takes features \[5, 64\].*{says}"):
            model.step(Tree.chain(TOKENS), cache, features=wrong)
    assert cache.staged == 0
    (variant,) = emit(tmp_path, head(no_features, features=0))
    plain = HotpathBackend(tmp_path, SPEC, variant, 1)
    with pytest.raises(BackendError, match="takes no features, and was given some"):
        plain.step(Tree.chain(TOKENS), plain.new_cache(), features=FEATURES)
    assert plain.step(Tree.chain(TOKENS), plain.new_cache()).logits.shape == (ROWS, VOCABULARY)


def no_features(ops: Any) -> None:
    x = ops.embed(ops.tokens(), TABLE)
    ops.logits(ops.linear(ops.take_rows(x, ops.output_rows()), HEAD))


def test_a_predictor_has_a_second_cache_and_no_logits() -> None:
    request, variant = with_predictor("qwen3", "fp32")
    graph = load(request.folder / variant.model)
    inputs = {"input_ids", "position_ids", "ancestors", "past", "cache"}
    assert {each.name for each in graph.input} == inputs | {"target_past", "target_cache"}
    assert {each.name for each in graph.output} == {"present_cache", "present_target_cache"}
    step = variant.step
    assert (step.target_past, step.logits, step.output_rows) == ("target_past", None, None)
    writes = [node for node in graph.node if node.op_type == "KvWrite"]
    caches = ["target_cache", *(node.output[0] for node in writes)]
    assert caches[-1] == "present_target_cache"
    assert [node.input[3] for node in writes] == caches[:-1]
    assert {node.input[2] for node in writes} == {"target_past"}


def test_parts_share_what_is_equal() -> None:
    request, variant = with_predictor("llama", "int8")
    both = request.folder / "onnx-hotpath/model.data"
    alone = request.folder.parent / "onnx-hotpath/model.data"
    assert both.stat().st_size == alone.stat().st_size
    assert variant.files == ("onnx-hotpath/echo.onnx", "onnx-hotpath/model.data")


TARGET = replace(
    SPEC, num_layers=2, head_dim=8, num_heads=(2, 2), num_kv_heads=(1, 2), windows=(None, None)
)
KEYS = tuple(weight("keys" * (n + 1), 8 * heads, HIDDEN) for n, heads in enumerate((1, 2)))
VALUES = tuple(weight("values" * (n + 1), 8 * heads, HIDDEN) for n, heads in enumerate((1, 2)))
ROPE = Rope((1.0, 0.1, 0.01, 0.001))


def place(layer: int) -> Attention:
    return Attention(layer, 2, TARGET.num_kv_heads[layer], 8, 1.0)


def maps(*layers: int) -> Callable[[Any], None]:
    """Normed and rotated keys, and values, of the layers, from the embedding."""

    def build(ops: Any) -> None:
        x = ops.rms_norm(ops.embed(ops.tokens(), TABLE), None, 1e-5)
        pairs = [(part[layer], None) for layer in layers for part in (KEYS, VALUES)]
        rows = ops.linears(x, pairs)
        for at, layer in enumerate(layers):
            heads = TARGET.num_kv_heads[layer]
            k = ops.rms_norm(rows[2 * at], None, 1e-5, heads=heads)
            ops.stage(ops.rope(k, ops.positions(), ROPE, heads), rows[2 * at + 1], place(layer))

    return build


def predictor(build: Callable[[Any], None]) -> Part:
    return Part("predictor", "maps", build, SPEC, target=TARGET)


def test_maps_are_one_product_whose_columns_are_written(tmp_path: Path) -> None:
    graph, _ = graph_of(tmp_path, predictor(maps(1, 0)))
    count = Counter(node.op_type for node in graph.node)
    expected = {"Embed": 1, "QLinear": 1, "Norm": 2, "RopeTable": 1, "KvWrite": 2, "Identity": 1}
    assert count == expected
    norms = [attributes(node) for node in graph.node if node.op_type == "Norm"]
    assert [(a["heads"], a["width"], a["offset"]) for a in norms] == [(2, 8, 0), (1, 8, 32)]
    writes = [attributes(node) for node in graph.node if node.op_type == "KvWrite"]
    assert [a["v_offset"] for a in writes] == [16, 40]
    assert [(a["kv_heads_before"], a["kv_heads_total"]) for a in writes] == [(1, 3), (0, 3)]


@pytest.mark.parametrize(
    ("layers", "says"),
    [((0,), "maps predicts nothing for layer 1"), ((0, 1, 1), "maps stages layer 1 twice")],
)
def test_every_layer_of_the_target_once(layers: tuple[int, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=says):
        emit(tmp_path, predictor(maps(*layers)))


def test_only_a_predictor_stages(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="head is no predictor"):
        emit(tmp_path, head(maps(0, 1), features=0))

"""The ops of the domain `quickdraft` in ONNX Runtime: what they compute, and in whose memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny.kernel_calls import matrix
from tiny.op_models import INPUTS, OUTPUTS, OneNode, Session, example, normal, session_options

from quickdraft import hotpath_attention as attention
from quickdraft import hotpath_ops as twins

pytestmark = pytest.mark.native

OPS = sorted(INPUTS)


def twin(node: OneNode) -> list[np.ndarray]:
    """What the op's NumPy function gives for the inputs of a node."""
    a, x = dict(node.attributes), dict(node.inputs)
    stored = twins.Matrix(
        *(x.get("weights"), a.get("format"), a.get("n"), a.get("k")), bool(a.get("gated"))
    )
    before = twins.Norm(
        *(a.get("norm", "none"), a.get("norm_eps", 0.0), x.get("norm_weight"), x.get("norm_bias"))
    )
    bias = x.get("bias")
    match node.op:
        case "QLinear":
            activation, residual = a.get("activation", "none"), x.get("residual")
            return [twins.q_linear(x["x"], stored, bias, residual, before, activation)]
        case "Norm":
            how = twins.Norm(a["kind"], a["eps"], x.get("weight"), bias)
            place = (a.get("heads", 1), a["width"], a.get("offset", 0))
            return [twins.norm(x["x"], how, *place, x.get("residual"))]
        case "RopeTable":
            return [twins.rope_table(x["positions"], x["frequencies"], a.get("factor", 1.0))]
        case "Embed":
            return [twins.embed(x["ids"], stored, a.get("scale", 1.0))]
        case "HeadTopK":
            softcap = a.get("softcap", 0.0)
            results = twins.head_top_k(x["x"], x["rows"], stored, a["top"], bias, before, softcap)
            return [*results[:3], results[3][: len(x["rows"]) * int(x["full"][0])]]
        case "KvWrite":
            cache, layer = x["cache"].copy(), attention.KvWrite(**a)
            attention.kv_write((x["k"], x["v"]), x["past"], cache, layer, x.get("rope"))
            return [cache]
        case "EncodeAttention":
            qkv, how = (x["q"], x["k"], x["v"]), attention.Attention(**a)
            return [attention.encode_attention(qkv, how, x.get("rope"), x.get("relative"))]
        case "CrossAttention":
            how = attention.Attention(**a)
            return [attention.cross_attention(x["q"], x["source"], x["memory"], how)]
        case _:
            step = attention.Step(x["positions"], x["ancestors"], x["past"], x.get("rope"))
            cache, how = x["cache"].copy(), attention.Attention(**a)
            extra = (x.get("sinks"), x.get("relative"))
            y = attention.tree_attention((x["q"], x["k"], x["v"]), step, cache, how, *extra)
            return [y, cache]


def assert_like_twin(node: OneNode, found: list[np.ndarray]) -> None:
    for array, (name, dtype), expected in zip(
        found, OUTPUTS[node.op].items(), twin(node), strict=True
    ):
        assert array.dtype == dtype
        assert array.shape == expected.shape, name
        if dtype == np.float32 and array.size:
            room = 2e-6 * max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=room, err_msg=name)
        else:
            np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("op", OPS)
def test_results(op: str) -> None:
    node = example(op)
    assert_like_twin(node, node.run())


@pytest.mark.parametrize("op", OPS)
def test_weights_may_be_fed(op: str) -> None:
    node = example(op)
    constant = node.run()
    fed = OneNode(node.op, node.attributes, node.inputs).run()
    assert all(map(np.array_equal, constant, fed))


def gated() -> OneNode:
    random = np.random.default_rng(3)
    stored = matrix(random, "w6k", 24, 256, gated=True)
    attributes = {"format": "w6k", "k": 256, "n": 24, "gated": 1, "activation": "gelu"}
    bias, residual = normal(random, 48), normal(random, 4, 24)
    inputs = {"x": normal(random, 4, 256), "weights": stored.data}
    return OneNode("QLinear", attributes, inputs | {"bias": bias, "residual": residual})


def chain(kind: int) -> OneNode:
    node = example("TreeAttention")
    capacity, dim = 32, 16
    cache = np.zeros(capacity * 5 * attention.kv_head_bytes(kind, dim), np.uint8)
    rows = len(node.inputs["q"])
    return node.but(
        positions=np.arange(rows),
        ancestors=np.zeros((rows, 0), np.int32),
        past=np.array([0, kind, capacity]),
        cache=cache,
        window=0,
        softcap=0.0,
    )


def written(kind: int) -> OneNode:
    """Many rows, from the middle of a block on, of several threads."""
    random, rows, capacity, dim = np.random.default_rng(kind), 150, 176, 64
    cache = random.integers(0, 99, capacity * 5 * attention.kv_head_bytes(kind, dim), np.uint8)
    return example("KvWrite").but(
        k=normal(random, rows, 2 * dim),
        v=normal(random, rows, 2 * dim + 7),
        past=np.array([23, kind, capacity]),
        cache=cache,
        rope=random.uniform(-1, 1, (rows, 2, 20)).astype(np.float32),
        head_dim=dim,
        v_offset=7,
    )


VARIANTS: dict[str, Callable[[], OneNode]] = {
    "gated": gated,
    "plain product": lambda: example("QLinear").but(
        bias=None, residual=None, norm_weight=None, norm=None, norm_eps=None, activation=None
    ),
    "norm without weight": lambda: example("QLinear").but(norm_weight=None),
    "all defaults of Norm": lambda: example("Norm").but(
        weight=None, bias=None, residual=None, heads=None, offset=None, per_head=None, width=32
    ),
    "one weight for all heads": lambda: example("Norm").but(
        per_head=0, weight=np.arange(8, dtype=np.float32), bias=None, kind="rms"
    ),
    "no factor": lambda: example("RopeTable").but(factor=None),
    "no scale": lambda: example("Embed").but(scale=None),
    "no logits": lambda: example("HeadTopK").but(full=np.array([0])),
    "no cap": lambda: example("HeadTopK").but(softcap=None, bias=None, norm_bias=None),
    "all of the vocabulary": lambda: example("HeadTopK").but(top=70),
    "no rope and no sinks": lambda: example("TreeAttention").but(rope=None, sinks=None),
    "no relative positions": lambda: example("TreeAttention").but(relative=None, reach=None),
    "one relative value": lambda: example("EncodeAttention").but(
        relative=np.ones((4, 1), np.float32), reach=None, rope=None
    ),
    "only sinks": lambda: example("TreeAttention").but(rope=None),
    "no rope of keys": lambda: example("KvWrite").but(rope=None, k_offset=32, v_offset=None),
    **{f"chain {kind}": lambda kind=kind: chain(kind) for kind in range(3)},
    **{f"keys and values {kind}": lambda kind=kind: written(kind) for kind in range(3)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    node = VARIANTS[name]()
    assert_like_twin(node, node.run())


EMPTY = {
    "QLinear": {"x": np.zeros((0, 64), np.float32), "residual": np.zeros((0, 40), np.float32)},
    "Norm": {"x": np.zeros((0, 32), np.float32), "residual": np.zeros((0, 24), np.float32)},
    "RopeTable": {"positions": np.zeros(0, np.int64)},
    "Embed": {"ids": np.zeros(0, np.int64)},
    "HeadTopK": {"rows": np.zeros(0, np.int64)},
    "KvWrite": {
        **dict.fromkeys("kv", np.zeros((0, 64), np.float32)),
        "rope": np.zeros((0, 2, 8), np.float32),
    },
    "EncodeAttention": {
        **dict.fromkeys("qkv", np.zeros((0, 128), np.float32)),
        "rope": np.zeros((0, 2, 8), np.float32),
    },
    "CrossAttention": {"q": np.zeros((0, 128), np.float32)},
    "TreeAttention": {
        **dict.fromkeys("qkv", np.zeros((0, 128), np.float32)),
        "positions": np.zeros(0, np.int64),
        "ancestors": np.zeros((0, 3), np.int32),
        "rope": np.zeros((0, 2, 8), np.float32),
    },
}


@pytest.mark.parametrize("op", OPS)
def test_no_rows(op: str) -> None:
    node = example(op).but(**EMPTY[op])
    found = node.run()
    if "cache" in node.inputs:
        assert np.array_equal(found.pop(), node.inputs["cache"])
    assert all(array.shape[0] == 0 for array in found[:1])


@pytest.mark.parametrize("op", OPS)
def test_rows_and_threads_do_not_change_bits(op: str) -> None:
    node = example(op)
    one = node.run(node.session(1))
    for threads, ours in ((2, True), (5, True), (2, False)):
        assert all(map(np.array_equal, one, node.run(node.session(threads, ours))))


@pytest.mark.parametrize("op", OPS)
def test_several_runs_at_once(op: str) -> None:
    node = example(op)
    session, expected = node.session(2), node.run()

    def runs() -> bool:
        return all(all(map(np.array_equal, node.run(session), expected)) for _ in range(25))

    with ThreadPoolExecutor(4) as pool:
        assert all(future.result() for future in [pool.submit(runs) for _ in range(4)])


STATED: dict[str, tuple[dict[str, Any], list[list[Any]]]] = {
    "QLinear": ({"x": ("n", 64), "residual": ("n", 40)}, [["n", 40]]),
    "Norm": ({"x": (5, 32), "residual": (5, 24)}, [[5, 24]]),
    "RopeTable": ({"positions": ("n",)}, [["n", 2, 8]]),
    "Embed": ({"ids": ("n",)}, [["n", 32]]),
    "HeadTopK": ({"x": ("n", 96), "rows": ("m",)}, [["m", 9], ["m", 9], ["m"], []]),
    "TreeAttention": ({"q": ("n", 128), "cache": ("bytes",)}, [["n", 64], ["bytes"]]),
    "KvWrite": ({"cache": ("bytes",)}, [["bytes"]]),
    "EncodeAttention": ({"q": ("n", 128)}, [["n", 64]]),
    "CrossAttention": ({"q": (9, 128)}, [[9, 64]]),
}


@pytest.mark.parametrize("op", OPS)
def test_shapes_are_inferred(op: str) -> None:
    node = example(op)
    shapes, expected = STATED[op]
    session = OneNode(op, node.attributes, node.inputs, node.constants, shapes).session()
    assert [output.shape for output in session.get_outputs()] == expected


@pytest.mark.parametrize("op", OPS)
def test_unknown_shapes_stay_unknown(op: str) -> None:
    assert all(output.shape == [] for output in example(op).session().get_outputs())


def bound(session: Session, node: OneNode, cache: Any, output: Any) -> None:
    """One run with the memory of `cache` as input and, unless None, of `output` as output."""
    binding = session.io_binding()
    for name, array in node.feeds().items():
        if name != "cache":
            binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_input("cache", cache)
    for name in set(OUTPUTS[node.op]) - {"cache_out"}:
        binding.bind_output(name)
    if output is None:
        binding.bind_output("cache_out")
    else:
        binding.bind_ortvalue_output("cache_out", output)
    session.run_with_iobinding(binding)


WRITERS = ("TreeAttention", "KvWrite")


@pytest.mark.parametrize("op", WRITERS)
def test_cache_is_written_where_it_lies(op: str) -> None:
    node = example(op)
    memory = node.inputs["cache"].copy()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(memory)
    session = node.session()
    for _ in range(2):
        bound(session, node, value, value)
        np.testing.assert_array_equal(value.numpy(), twin(node)[-1])


@pytest.mark.parametrize("op", WRITERS)
def test_cache_is_copied_where_the_caller_wants_it_elsewhere(op: str) -> None:
    node = example(op)
    before = node.inputs["cache"].copy()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(before.copy())
    other = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(before))
    bound(node.session(), node, value, other)
    np.testing.assert_array_equal(value.numpy(), before)
    np.testing.assert_array_equal(other.numpy(), twin(node)[-1])
    bound(node.session(), node, value, None)
    np.testing.assert_array_equal(value.numpy(), before)


def test_the_two_ops_write_the_same_bits() -> None:
    """Of the same keys and values, in every type."""
    for kind in range(3):
        attends = chain(kind)
        a = attends.attributes
        places = ("kv_heads", "head_dim", "k_offset", "v_offset", "kv_heads_before")
        writes = example("KvWrite").but(
            **{name: a[name] for name in (*places, "kv_heads_total")},
            **{name: attends.inputs[name] for name in ("k", "v", "past", "cache", "rope")},
        )
        assert np.array_equal(attends.run()[1], writes.run()[0])
        assert writes.run()[0].any()


def two_layers(node: OneNode) -> Session:
    """The same node twice, as layers at heads 2 and 0, the cache passed from one to the other."""
    model = onnx.load_from_string(node.model())
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[0])
    second.name = "second"
    second.input[6], second.output[0], second.output[1] = "cache_out", "y2", "last_cache"
    (before,) = (a for a in second.attribute if a.name == "kv_heads_before")
    before.i = 0
    model.graph.output[1].name = "last_cache"
    model.graph.output.append(onnx.helper.make_tensor_value_info("y2", 1, None))
    return Session(model.SerializeToString(), session_options(2), ["CPUExecutionProvider"])


@pytest.mark.parametrize("bind_output", [True, False])
def test_cache_passes_through_layers(bind_output: bool) -> None:
    node = example("TreeAttention").but(sinks=None)
    session, first = two_layers(node), twin(node)
    then = twin(node.but(cache=first[1], kv_heads_before=0))

    value = onnxruntime.OrtValue.ortvalue_from_numpy(node.inputs["cache"].copy())
    binding = session.io_binding()
    for name, array in node.feeds().items():
        binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_input("cache", value)
    for name in ("y", "y2"):
        binding.bind_output(name)
    if bind_output:
        binding.bind_ortvalue_output("last_cache", value)
    else:
        binding.bind_output("last_cache")
    session.run_with_iobinding(binding)

    for found, expected in zip(
        binding.copy_outputs_to_cpu(), (first[0], then[0], then[1]), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # The value between the layers is the caller's memory in either case.
    np.testing.assert_array_equal(value.numpy(), then[1] if bind_output else first[1])


def test_one_options_object_serves_many_sessions_and_back() -> None:
    node, options = example("Embed"), session_options()
    sessions = [Session(node.model(), options) for _ in range(3)]
    sessions += [node.session() for _ in range(3)]
    expected = node.run()
    del options
    for session, _ in itertools.product(sessions, range(2)):
        assert np.array_equal(node.run(session)[0], expected[0])

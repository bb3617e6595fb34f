"""What the ops of the domain `quickdraft` refuse, and in which words; nothing may crash."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tiny.op_models import INPUTS, OPTIONAL, OneNode, Session, example, session_options

pytestmark = pytest.mark.native

Refusal = tuple[str, dict[str, Any], str]


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


AT_LOAD: list[Refusal] = [
    ("QLinear", {"k": None}, "attribute k is missing, expected an integer from 1 to 2147483647"),
    ("QLinear", {"k": 0}, "attribute k is 0, expected an integer from 1"),
    ("QLinear", {"k": 2**40}, "attribute k is 1099511627776, expected an integer from 1"),
    ("QLinear", {"n": -40}, "attribute n is -40, expected an integer from 1"),
    ("QLinear", {"k": 64.0}, "attribute k is of another kind, expected an integer"),
    ("QLinear", {"k": 33}, "attribute k is 33, which is no multiple of the group of the format"),
    ("QLinear", {"format": "w6k"}, "attribute k is 64, which is no multiple"),
    ("QLinear", {"format": "q4"}, "attribute format is 'q4', expected one of f32, f16, w4, w4m"),
    ("QLinear", {"format": "w4\0"}, "attribute format is 'w4"),
    ("QLinear", {"format": "\n" * 999}, "attribute format is '?????"),
    ("QLinear", {"format": None}, "attribute format is missing, expected one of f32"),
    ("QLinear", {"format": 4}, "attribute format is of another kind"),
    ("QLinear", {"activation": "tanh"}, "attribute activation is 'tanh', expected one of none"),
    ("QLinear", {"gated": 2}, "attribute gated is 2, expected an integer from 0 to 1"),
    ("QLinear", {"gated": [1]}, "attribute gated is of another kind"),
    ("QLinear", {"gated": 1}, "input weights has shape [3, 576], expected [6, 576]"),
    ("QLinear", {"norm": "batch"}, "attribute norm is 'batch', expected one of none, rms, layer"),
    ("QLinear", {"norm_eps": None}, "attribute norm_eps is missing, expected a finite number"),
    ("QLinear", {"norm_eps": -1.0}, "attribute norm_eps is -1.0"),
    ("QLinear", {"norm_eps": float("nan")}, "attribute norm_eps is nan, expected a finite number"),
    ("QLinear", {"norm_eps": "tiny"}, "attribute norm_eps is of another kind"),
    ("QLinear", {"n": 64}, "input weights has shape [3, 576], expected [4, 576]"),
    ("QLinear", {"weights": zeros(3, 575, dtype=np.uint8)}, "has shape [3, 575], expected [3,"),
    ("QLinear", {"weights": zeros(1728, dtype=np.uint8)}, "has shape [1728], expected [3, 576]"),
    ("QLinear", {"bias": zeros(80)}, "input bias has shape [80], expected [40]"),
    ("QLinear", {"norm_weight": zeros(1, 64)}, "norm_weight has shape [1, 64], expected [64]"),
    ("QLinear", {"norm_weight": zeros(1, 1, 1, 64)}, "has shape [1, 1, 1, 64], expected [64]"),
    ("Norm", {"kind": None}, "attribute kind is missing, expected one of rms, layer"),
    ("Norm", {"eps": float("inf")}, "attribute eps is inf, expected a finite number"),
    ("Norm", {"width": None}, "attribute width is missing"),
    ("Norm", {"heads": 0}, "attribute heads is 0, expected an integer from 1"),
    ("Norm", {"offset": -1}, "attribute offset is -1"),
    ("Norm", {"per_head": 0}, "input weight has shape [24], expected [8]"),
    ("Norm", {"heads": 2**31 - 1, "width": 2**31 - 1}, "expected [4611686014132420609]"),
    ("RopeTable", {"factor": -0.5}, "attribute factor is -0.5"),
    ("Embed", {"scale": float("inf")}, "attribute scale is inf, expected a finite number"),
    ("Embed", {"n": 10}, "input weights has shape [4, 576], expected [1, 576]"),
    ("HeadTopK", {"top": None}, "attribute top is missing"),
    ("HeadTopK", {"top": 71}, "attribute top is 71, expected an integer from 1 to 70"),
    ("HeadTopK", {"softcap": -3.0}, "attribute softcap is -3"),
    ("TreeAttention", {"heads": None}, "attribute heads is missing"),
    ("TreeAttention", {"heads": 2**62}, "attribute heads is 4611686018427387904, expected"),
    ("TreeAttention", {"head_dim": 0}, "attribute head_dim is 0"),
    ("TreeAttention", {"kv_heads": 3}, "attribute heads is no multiple of kv_heads"),
    ("TreeAttention", {"scale": float("nan")}, "attribute scale is nan"),
    ("TreeAttention", {"window": -1}, "attribute window is -1"),
    ("TreeAttention", {"softcap": 5}, "attribute softcap is of another kind"),
    ("TreeAttention", {"k_offset": -4}, "attribute k_offset is -4"),
    ("TreeAttention", {"kv_heads_before": 4}, "kv_heads_before and kv_heads exceed kv_heads_total"),
    ("TreeAttention", {"sinks": zeros(2)}, "input sinks has shape [2], expected [4]"),
    ("TreeAttention", {"reach": -1}, "attribute reach is -1"),
    ("TreeAttention", {"reach": 4}, "input relative has shape [4, 7], expected [4, 9]"),
    ("EncodeAttention", {"kv_heads": 3}, "attribute heads is no multiple of kv_heads"),
    ("EncodeAttention", {"reach": 2**40}, "attribute reach is 1099511627776, expected"),
    ("EncodeAttention", {"relative": zeros(9)}, "input relative has shape [9], expected [4, 9]"),
    ("CrossAttention", {"kv_heads": 3}, "attribute heads is no multiple of kv_heads"),
    ("CrossAttention", {"kv_heads_before": 4}, "kv_heads exceed kv_heads_total"),
    ("CrossAttention", {"scale": None}, "attribute scale is missing"),
    ("KvWrite", {"kv_heads": None}, "attribute kv_heads is missing"),
    ("KvWrite", {"head_dim": 2**40}, "attribute head_dim is 1099511627776, expected an integer"),
    ("KvWrite", {"v_offset": -1}, "attribute v_offset is -1"),
    ("KvWrite", {"kv_heads_before": 4}, "kv_heads_before and kv_heads exceed kv_heads_total"),
]

AT_RUN: list[Refusal] = [
    ("QLinear", {"x": zeros(3, 63)}, "input x has shape [3, 63], expected [any, 64]"),
    ("QLinear", {"x": zeros(64)}, "input x has shape [64], expected [any, 64]"),
    ("QLinear", {"x": zeros(1, 1, 1, 3, 64)}, "input x has shape [1, 1, 1, 3, 64], expected"),
    ("QLinear", {"x": np.array(1, np.float32)}, "input x has shape [], expected [any, 64]"),
    ("QLinear", {"residual": zeros(2, 40)}, "input residual has shape [2, 40], expected [3, 40]"),
    ("QLinear", {"residual": zeros(40, 3)}, "input residual has shape [40, 3], expected [3, 40]"),
    ("Norm", {"x": zeros(5, 27)}, "input x has 27 columns, expected at least 28"),
    ("Norm", {"residual": zeros(5, 32)}, "input residual has shape [5, 32], expected [5, 24]"),
    ("RopeTable", {"positions": zeros(2, 2, dtype=np.int64)}, "shape [2, 2], expected [any]"),
    ("Embed", {"ids": numbers(3, 50)}, "input ids[1] is 50, expected at least 0 and below 50"),
    ("Embed", {"ids": numbers(-1)}, "input ids[0] is -1, expected at least 0"),
    ("Embed", {"ids": numbers(2**63 - 1)}, "input ids[0] is 9223372036854775807"),
    ("HeadTopK", {"rows": numbers(0, 5)}, "input rows[1] is 5, expected at least 0 and below 5"),
    ("HeadTopK", {"rows": numbers(-(2**63))}, "input rows[0] is -9223372036854775808"),
    ("HeadTopK", {"x": zeros(0, 96)}, "input rows[0] is 4, expected at least 0 and below 0"),
    ("HeadTopK", {"full": numbers(2)}, "input full[0] is 2, expected at least 0 and below 2"),
    ("HeadTopK", {"full": numbers()}, "input full has shape [0], expected [1]"),
    ("TreeAttention", {"q": zeros(6, 63)}, "input q has 63 columns, expected at least 64"),
    ("TreeAttention", {"v": zeros(6, 127)}, "input v has 127 columns, expected at least 128"),
    ("TreeAttention", {"k": zeros(5, 128)}, "input k has shape [5, 128], expected [6, any]"),
    ("TreeAttention", {"rope": zeros(6, 2, 9)}, "input rope has 9 pairs, expected at most 8"),
    ("TreeAttention", {"rope": zeros(6, 8)}, "input rope has shape [6, 8], expected [6, 2, any]"),
    ("TreeAttention", {"past": numbers(5, 1)}, "input past has shape [2], expected [3]"),
    ("TreeAttention", {"past": numbers(5, 3, 32)}, "input past[1] is 3, expected 0 (float32), 1"),
    ("TreeAttention", {"past": numbers(5, 1, 40)}, "input past[2] is 40, expected slots in a"),
    ("TreeAttention", {"past": numbers(5, 1, 0)}, "input past[2] is 0, expected slots"),
    ("TreeAttention", {"past": numbers(-1, 1, 32)}, "input past[0] is -1: with 6 new rows that"),
    ("TreeAttention", {"past": numbers(27, 1, 32)}, "past[0] is 27: with 6 new rows that does not"),
    ("TreeAttention", {"past": numbers(5, 1, 2**62)}, "past[2] asks for more bytes than there are"),
    ("TreeAttention", {"past": numbers(5, 0, 32)}, "cache has shape [10240], expected [20480]"),
    ("TreeAttention", {"past": numbers(4, 1, 32)}, "row 0 at position 5 is no node of a tree that"),
    (
        "TreeAttention",
        {"ancestors": np.full((6, 5), 22, np.int32)},
        "row 0 is number 22 of its tree: with 5 committed and 6 new rows that does not fit",
    ),
    (
        "TreeAttention",
        {"positions": np.full(6, 2**63 - 1)},
        "row 0 at position 9223372036854775807 is no node of a tree",
    ),
    ("TreeAttention", {"ancestors": zeros(6, 4, dtype=np.int32)}, "row 1 at position "),
    ("TreeAttention", {"ancestors": np.full((6, 4), 2**31 - 1, np.int32)}, "row 0 is number 21"),
    ("TreeAttention", {"ancestors": np.full((6, 4), -(2**31), np.int32)}, "row 0 at position 5"),
    ("EncodeAttention", {"q": zeros(21, 63)}, "input q has 63 columns, expected at least 64"),
    ("EncodeAttention", {"k": zeros(21, 95)}, "input k has 95 columns, expected at least 96"),
    ("EncodeAttention", {"v": zeros(20, 128)}, "input v has shape [20, 128], expected [21, any]"),
    ("EncodeAttention", {"rope": zeros(21, 2, 9)}, "input rope has 9 pairs, expected at most 8"),
    ("CrossAttention", {"q": zeros(6, 95)}, "input q has 95 columns, expected at least 96"),
    ("CrossAttention", {"source": numbers(0, 1, 32)}, "source[0] is 0, expected at least one row"),
    ("CrossAttention", {"source": numbers(33, 1, 32)}, "source[0] is 33: with 0 new rows that"),
    ("CrossAttention", {"source": numbers(5, 3, 32)}, "source[1] is 3, expected 0 (float32), 1"),
    ("CrossAttention", {"source": numbers(5, 1, 40)}, "source[2] is 40, expected slots in a"),
    ("CrossAttention", {"source": numbers(5, 1, 2**62)}, "source[2] asks for more bytes than"),
    ("CrossAttention", {"source": numbers(5, 0, 32)}, "memory has shape [10240], expected [20480]"),
    ("KvWrite", {"k": zeros(6, 31)}, "input k has 31 columns, expected at least 32"),
    ("KvWrite", {"v": zeros(6, 63)}, "input v has 63 columns, expected at least 64"),
    ("KvWrite", {"v": zeros(5, 64)}, "input v has shape [5, 64], expected [6, any]"),
    ("KvWrite", {"rope": zeros(6, 2, 9)}, "input rope has 9 pairs, expected at most 8"),
    ("KvWrite", {"rope": zeros(5, 2, 8)}, "input rope has shape [5, 2, 8], expected [6, 2, any]"),
    ("KvWrite", {"past": numbers(5, 3, 32)}, "input past[1] is 3, expected 0 (float32), 1"),
    ("KvWrite", {"past": numbers(5, 1, 40)}, "input past[2] is 40, expected slots in a"),
    ("KvWrite", {"past": numbers(27, 1, 32)}, "past[0] is 27: with 6 new rows that does not"),
    ("KvWrite", {"past": numbers(5, 0, 32)}, "cache has shape [10240], expected [20480]"),
    (
        "TreeAttention",
        {"ancestors": zeros(6, 0, dtype=np.int32), "positions": numbers(5, 6, 7, 8, 9, 11)},
        "row 5 at position 11 is not in a chain that starts at position 5",
    ),
]


def names(refusals: list[Refusal]) -> list[str]:
    return [f"{op}-{'-'.join(changes)}-{i}" for i, (op, changes, _) in enumerate(refusals)]


@pytest.mark.parametrize(("op", "changes", "text"), AT_LOAD, ids=names(AT_LOAD))
def test_refused_when_the_model_is_loaded(op: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Exception, match=re.escape(f"{op} 'node': ") + ".*" + re.escape(text)):
        example(op).but(**changes).session()


@pytest.mark.parametrize(("op", "changes", "text"), AT_RUN, ids=names(AT_RUN))
def test_refused_in_a_run(op: str, changes: dict[str, Any], text: str) -> None:
    node = example(op)
    session, expected = node.session(), node.run()
    with pytest.raises(Exception, match=re.escape(f"{op} 'node': ") + ".*" + re.escape(text)):
        node.but(**changes).run(session)
    assert all(map(np.array_equal, node.run(session), expected)), "the session stays usable"


@pytest.mark.parametrize("op", sorted(INPUTS))
def test_missing_inputs(op: str) -> None:
    node = OneNode(op, example(op).attributes, example(op).inputs)
    for name in INPUTS[op]:
        lacking = node.but(**{name: None})
        if name in OPTIONAL:
            assert lacking.run()
            continue
        # The host itself refuses some of these, in words of its own.
        with pytest.raises(Exception, match=f"{name} is missing|{op}"):
            lacking.run()


@pytest.mark.parametrize("op", sorted(INPUTS))
def test_wrong_types(op: str) -> None:
    node = example(op)
    for name, array in node.inputs.items():
        wrong = array.astype(np.float64 if array.dtype != np.float64 else np.int8)
        with pytest.raises(Exception, match=r"[Tt]ype"):
            node.but(**{name: wrong}).session()


def test_fed_weights_are_checked_too() -> None:
    node = example("QLinear")
    fed = OneNode("QLinear", node.attributes, node.inputs)
    session = fed.session()
    for name, wrong in (("weights", zeros(2, 576, dtype=np.uint8)), ("bias", zeros(41))):
        with pytest.raises(Exception, match=rf"input {name} has shape .* expected"):
            fed.but(**{name: wrong}).run(session)
    assert all(map(np.array_equal, fed.run(session), node.run()))


@pytest.mark.parametrize("name", ["norm_weight", "norm_bias"])
def test_a_norm_weight_without_a_norm(name: str) -> None:
    node = example("QLinear").but(norm=None, norm_eps=None, norm_weight=None)
    with pytest.raises(Exception, match=f"input {name} is given without a norm"):
        node.but(**{name: zeros(64)}).run()


@pytest.mark.parametrize("op", ["TreeAttention", "KvWrite"])
def test_a_cache_inside_the_model(op: str) -> None:
    node = example(op)
    inside = OneNode(node.op, node.attributes, node.inputs, {"cache"})
    with pytest.raises(Exception, match="input cache is part of the model"):
        inside.session()


def test_unaligned_data() -> None:
    node = example("RopeTable")
    memory = np.zeros(8 * 4 + 2, np.uint8)
    frequencies = memory[2:].view(np.float32)
    assert frequencies.ctypes.data % 4
    fed = OneNode(node.op, node.attributes, {**node.inputs, "frequencies": frequencies})
    session = fed.session()
    binding = session.io_binding()
    binding.bind_cpu_input("positions", node.inputs["positions"])
    binding.bind_cpu_input("frequencies", frequencies)
    binding.bind_output("table")
    with pytest.raises(Exception, match="input frequencies starts at an address that is no mult"):
        session.run_with_iobinding(binding)


def test_a_failure_leaves_the_cache_alone() -> None:
    node = example("TreeAttention")
    cache = node.inputs["cache"].copy()
    feeds = {**node.feeds(), "cache": cache, "past": numbers(4, 1, 32)}
    with pytest.raises(Exception, match="row 0 at position 5"):
        node.session().run(None, feeds)
    assert np.array_equal(cache, node.inputs["cache"])


def test_a_node_of_another_version() -> None:
    """A model that asks for an op of ours that this library does not have."""
    unknown = example("Embed").model().replace(b"Embed", b"Umbed")
    with pytest.raises(Exception, match=r"quickdraft:Umbed.* is not a registered function/op"):
        Session(unknown, session_options())

"""The width rule of the hotpath flavour, without exception.

A row's logits, its largest tokens and its keys and values are the same bits in plain decoding, in
chunks of any size, in any tree, with any number of threads, over caches that were computed, forked,
cut back, regrown or put together by commits; on every family, weight format, KV type and
instruction set.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.hotpath_models import backend, bits, plain, random_tokens, reference, same_rows
from tiny.native import isas
from tiny.toy_backend import top_tokens

from quickdraft.drafters.tree import Tree
from quickdraft.kvcache import blocked
from quickdraft.kvcache.blocked import KV_TYPES, BlockedCache
from quickdraft.weight_layout import LAYOUTS

pytestmark = pytest.mark.native

QUANTISED = [name for name, layout in LAYOUTS.items() if layout.dense is None]
FAMILIES = ("llama", "gemma2", "gpt2", "qwen3", "phi3-window", "openelm")
CASES = [
    *((name, "fp32", "f16") for name in FAMILIES),
    *(("llama", form, "f16") for form in ("fp16", "int8", "int4", *QUANTISED)),
    *((name, "int8", kv) for name in ("llama", "gemma2") for kv in ("f32", "int8")),
]


@pytest.mark.parametrize(("name", "form", "kv"), CASES)
def test_chunks_and_threads(name: str, form: str, kv: str) -> None:
    tokens = random_tokens(90, seed=0)
    expected, cache = plain(backend(name, form, kv), tokens)
    for size, threads in ((3, 2), (17, 1), (90, 2), (1, 1)):
        model = backend(name, form, kv, threads)
        chunked = model.new_cache()
        found = []
        for start in range(0, len(tokens), size):
            chunk = tokens[start : start + size]
            found += bits(model.step(Tree.chain(chunk), chunked))
            chunked.commit(range(len(chunk)))
        assert found == expected
        assert same_rows(chunked, cache)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    size = draw(st.integers(1, 24))
    parent = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, size)]
    tokens = draw(st.lists(st.integers(0, 319), min_size=size, max_size=size))
    return Tree(np.array(tokens, np.int64), np.array(parent, np.int64))


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while tree.parent[path[0]] >= 0:
        path.insert(0, int(tree.parent[path[0]]))
    return path


@pytest.mark.parametrize(("name", "form", "kv"), CASES)
@settings(max_examples=5, deadline=None)
@given(tree=trees(), past=st.integers(0, 40), node=st.integers(0, 23), seed=st.integers(0, 99))
def test_trees(name: str, form: str, kv: str, tree: Tree, past: int, node: int, seed: int) -> None:
    model = backend(name, form, kv)
    prefix = random_tokens(past, seed)
    cache = model.new_cache()
    if prefix:
        model.step(Tree.chain(prefix), cache)
        cache.commit(range(past))
    found = bits(model.step(tree, cache))
    path = path_to(tree, node % len(tree))
    cache.commit(path)
    expected, decoded = plain(model, prefix + tree.tokens[path].tolist())
    assert [found[i] for i in path] == expected[past:]
    assert same_rows(cache, decoded)
    # What follows sees the same cache.
    after = [model.step(Tree.chain([7, 9]), each) for each in (cache, decoded)]
    assert bits(after[0]) == bits(after[1])


@pytest.mark.parametrize("kv", KV_TYPES)
def test_forked_cut_back_and_regrown_caches(kv: str) -> None:
    model, tokens = backend("gemma2", "int4", kv), random_tokens(60, seed=3)
    expected, _ = plain(model, tokens)
    cache = BlockedCache(model.spec, kv, capacity=1)
    model.step(Tree.chain(tokens[:40]), cache)
    cache.commit(range(40))
    model.step(Tree.chain(random_tokens(30, seed=4)), cache)
    cache.commit(range(30))
    cache.truncate(20)
    twin = cache.fork()
    model.step(Tree.chain(random_tokens(9, seed=5)), cache)
    for each in (twin, cache):
        assert bits(model.step(Tree.chain(tokens[20:]), each)) == expected[20:]


@pytest.mark.parametrize("kv", KV_TYPES)
def test_the_native_row_move_does_what_the_slow_one_does(kv: str) -> None:
    model, tree = backend("openelm", "fp32", kv), Tree(np.arange(9), np.array([-1, *[0] * 8]))
    cache = model.new_cache()
    model.step(Tree.chain(random_tokens(25, seed=1)), cache)
    cache.commit(range(25))
    model.step(tree, cache)
    twin = cache.fork()
    twin.stage(9)
    twin.buffer[:] = cache.buffer
    twin._native_move = blocked.move_rows
    for each in (cache, twin):
        each.commit([0, 2, 3, 7])
    assert same_rows(cache, twin)


def test_wanted_rows_hidden_states_and_absent_logits() -> None:
    model, tokens = backend(), np.arange(9, dtype=np.int64)
    every = model.step(Tree.chain(tokens), model.new_cache())
    rows = np.array([8, 2, 2], np.int64)
    some = model.step(Tree.chain(tokens), model.new_cache(), rows)
    assert bits(some) == [bits(every)[row] for row in rows]
    assert some.hidden_states[1].tobytes() == every.hidden_states[1].tobytes()
    few = model.step(Tree.chain(tokens), model.new_cache(), rows, full_logits=False)
    assert few.logits.shape == (0, 320)
    assert few.top is not None
    assert some.top is not None
    for field in ("values", "ids", "log_sum"):
        assert getattr(few.top, field).tobytes() == getattr(some.top, field).tobytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_largest_tokens_are_those_of_the_logits(name: str) -> None:
    model = backend(name, "fp32")
    output = model.step(Tree.chain(random_tokens(20, seed=8)), model.new_cache())
    expected = top_tokens(output.logits, model.top)
    assert output.top is not None
    assert output.top.ids.tobytes() == expected.ids.tobytes()
    assert output.top.values.tobytes() == expected.values.tobytes()
    np.testing.assert_allclose(output.top.log_sum, expected.log_sum, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_computes_what_the_reference_does(name: str) -> None:
    ours, theirs = backend(name, "fp32", "f32"), reference(name, "fp32")
    tree = Tree(np.arange(3, 12), np.array([-1, 0, 0, 1, 1, 2, 5, 5, 3]))
    outputs = []
    for model in (ours, theirs):
        cache = model.new_cache()
        model.step(Tree.chain(random_tokens(21, seed=2)), cache)
        cache.commit(range(21))
        outputs.append(model.step(tree, cache))
    np.testing.assert_allclose(outputs[0].logits, outputs[1].logits, atol=1e-4)
    np.testing.assert_allclose(outputs[0].hidden_states[1], outputs[1].hidden_states[1], atol=1e-4)


def digest() -> str:
    """Of a tree, a chain and a cache of one model per weight format, and of all KV types."""
    found = hashlib.sha256()
    tree = Tree(np.arange(3, 12), np.array([-1, 0, 0, 1, 1, 2, 5, 5, 3]))
    forms = [("llama", form, "f16") for form in ("int8", *QUANTISED)]
    for case in [*forms, ("gemma2", "int4", "int8"), ("gpt2", "fp32", "f32")]:
        model = backend(*case)
        cache = model.new_cache()
        for step, path in ((Tree.chain(random_tokens(37, seed=1)), range(37)), (tree, [0, 2, 5])):
            for row in bits(model.step(step, cache)):
                found.update(row)
            cache.commit(path)
        for rows in cache.rows():
            found.update(rows.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("isa", isas())
def test_instruction_sets(isa: str) -> None:
    code = "from contract.test_hotpath_width import digest; print(digest())"
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "QUICKDRAFT_ISA": isa, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()

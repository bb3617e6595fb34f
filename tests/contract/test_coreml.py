"""Core ML packages against the NumPy reference, walked op by op by the evaluator.

float32 packages must agree within 1e-3; float16 ones within 2e-2 of the largest logit, as every op
rounds to float16 there, and the logits themselves are float16.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from tiny import coreml_models
from tiny.family_configs import CONFIGS
from tiny.hf_folder import write_hf_folder
from tiny.random_weights import RandomWeights

import quickdraft
from quickdraft.drafters.tree import Tree
from quickdraft.errors import (
    BackendError,
    BundleError,
    Cancelled,
    ContextOverflow,
    OptionError,
    UnsupportedModel,
)
from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.emitters.coreml import VERIFY_ROWS, emit_coreml
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.ops import Attention
from quickdraft.export.pipeline import export_model
from quickdraft.export.quantize import FORMATS
from quickdraft.kvcache.base import KvCache
from quickdraft.manifest import FixedStateLayout, Variant
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.coreml import CoreMlBackend
from quickdraft.runtime.backends.coreml_program import Program
from quickdraft.runtime.backends.reference import ReferenceBackend
from quickdraft.static_shapes import StaticShapes
from quickdraft.types import ModelSpec

pytestmark = [pytest.mark.coreml, pytest.mark.filterwarnings("ignore")]

FAMILIES = {family: name for name, (family, _) in reversed(CONFIGS.items())}
"""The first config of every family."""
FLOAT16 = 2e-2


class Pair:
    """A package and the reference, each with a cache that was given the same."""

    def __init__(self, name: str, form: str) -> None:
        self.backends: tuple[Backend, Backend] = (
            coreml_models.backend(name, form),
            coreml_models.reference(name, form),
        )
        self.caches: list[KvCache] = [backend.new_cache() for backend in self.backends]
        self.random = np.random.default_rng(len(name))
        self.exact = form == "fp32"
        self.worst = 0.0
        self.ran: set[str] = set()
        engine = self.backends[0]._engine
        genuine = type(engine).run.__get__(engine)

        def run(function: str, *arguments: object) -> object:
            self.ran.add(function)
            return genuine(function, *arguments)

        engine.run = run

    def chain(self, length: int) -> Tree:
        return Tree.chain(self.tokens(length))

    def tokens(self, length: int) -> np.ndarray:
        return self.random.integers(4, self.backends[1].spec.vocab_size, length)

    def tree(self, size: int) -> Tree:
        parent = [self.random.integers(max(-1, i - 6), i) if i else -1 for i in range(size)]
        return Tree(self.tokens(size), np.array(parent, np.int64))

    def step(self, tree: Tree, path: Sequence[int], rows: np.ndarray | None = None) -> None:
        """Run and commit with both, and compare."""
        ours, theirs = (
            backend.step(tree, cache, rows)
            for backend, cache in zip(self.backends, self.caches, strict=True)
        )
        assert ours.logits.shape == theirs.logits.shape
        assert theirs.logits.std() > 0.05, "the model says the same about everything"
        self.compare(ours.logits, theirs.logits)
        assert sorted(ours.hidden_states) == sorted(theirs.hidden_states) == [1]
        self.compare(ours.hidden_states[1], theirs.hidden_states[1])
        for cache in self.caches:
            cache.commit(path)

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        limit = 1e-3 if self.exact else FLOAT16 * max(1.0, float(np.abs(theirs).max()))
        assert np.abs(ours - theirs).max() <= limit

    def compare_caches(self) -> None:
        ours, theirs = self.caches
        assert ours.length == theirs.length
        for layer in range(self.backends[1].spec.num_layers):
            for mine, other in zip(ours.layer(layer), theirs.layer(layer), strict=True):
                self.compare(mine[: ours.length], other[: ours.length])


def path_to(tree: Tree, node: int) -> list[int]:
    """The nodes from the root to `node`."""
    return np.flatnonzero(tree.mask[node]).tolist()


PROMPT = 150
"""Rows of a step that the prefill function reads."""


def three_turns(pair: Pair) -> None:
    """Prompts in odd chunks, single steps, and trees of which one path is kept; then a prompt of
    which the last row is wanted, or what of it the model holds, and a tree behind."""
    for turn in range(3):
        for chunk in ((9, 5, 1), (4,), (2, 9))[turn]:
            pair.step(pair.chain(chunk), range(chunk))
        pair.step(pair.chain(1), [0])
        tree = pair.tree((9, 3, 14)[turn])
        deepest = int(np.argmax(tree.depth))
        pair.step(tree, path_to(tree, deepest))
        pair.step(pair.chain(4), range(2))
    left = pair.backends[1].spec.context_length - pair.caches[0].length
    count = min(PROMPT, left - 12)
    if count > 0:
        pair.step(pair.chain(count), range(count), rows=np.array([count - 1]))
        pair.step(pair.tree(6), [0])
        assert ("prefill_64" in pair.ran) == (count > 32)
    pair.compare_caches()


@pytest.mark.parametrize("name", CONFIGS)
def test_float32(name: str) -> None:
    three_turns(Pair(name, "fp32"))


@pytest.mark.parametrize("name", FAMILIES.values())
def test_float16(name: str) -> None:
    three_turns(Pair(name, "fp16"))


@pytest.mark.parametrize(
    "form", ["int4", "int4-g128", "int4-channel", "int8", "w4", "w4m", "w8", "w6k", "w4k"]
)
def test_blocks(form: str) -> None:
    three_turns(Pair("llama-biases-tied-llama3", form))


def test_steps_wider_than_any_function() -> None:
    """A prompt longer than the prefill function, and a tree larger than all that verify."""
    pair = Pair("qwen2-window-tied-yarn", "fp32")
    pair.step(pair.chain(100), range(100), rows=np.array([99]))
    tree = pair.tree(45)
    pair.step(tree, path_to(tree, int(np.argmax(tree.depth))))
    pair.step(pair.chain(30), range(30), rows=np.array([29, 3, 11]))
    pair.compare_caches()


def test_a_long_path_moves_in_several_runs() -> None:
    pair = Pair("llama", "fp32")
    pair.step(pair.chain(5), range(5))
    pair.step(pair.chain(40), [0, *range(2, 40)])
    assert pair.caches[0].length == 44
    pair.compare_caches()


def test_caches_fork_and_truncate() -> None:
    pair = Pair("llama", "fp32")
    pair.step(pair.chain(12), range(12))
    before = [cache.fork() for cache in pair.caches]
    pair.step(pair.chain(6), range(6))
    pair.caches = before
    pair.step(pair.chain(6), range(6))
    for cache in pair.caches:
        cache.truncate(9)
    pair.step(pair.chain(3), range(3))
    pair.compare_caches()


def test_a_full_context_is_refused_before_anything_is_written() -> None:
    backend = coreml_models.backend("llama", "fp32")
    cache = backend.new_cache()
    backend.step(Tree.chain([5] * 250), cache, np.array([0]))
    cache.commit(range(250))
    with pytest.raises(ContextOverflow):
        backend.step(Tree.chain([5] * 7), cache)
    wide = Tree(np.full(60, 5), np.array([-1] + [0] * 59))
    assert backend.step(wide, cache).logits.shape[0] == 60
    assert cache.staged == 60


def test_cancelling_leaves_the_cache_usable() -> None:
    backend = coreml_models.backend("llama", "fp32")
    cache, cancel = backend.new_cache(), CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        backend.step(Tree.chain([5]), cache, cancel=cancel)
    assert (cache.length, cache.staged) == (0, 0)


def program_of(name: str, form: str) -> tuple[Program, Variant, Path]:
    made, variant = coreml_models.exported(name, form)
    package = (made.folder / variant.model).parents[2]
    return Program(package), variant, package


def test_functions_and_states() -> None:
    program, variant, _ = program_of("llama", "fp16")
    layout = variant.cache
    assert isinstance(layout, FixedStateLayout)
    steps = {f"verify_{rows}" for rows in VERIFY_ROWS} | {"prefill_64"}
    assert set(program.functions) == steps | {"move"}
    shape = (6, 256 + 128, 8)
    for function in program.functions:
        assert program.states(function) == {
            "keys": (np.float16, shape),
            "values": (np.float16, shape),
        }
    assert program.inputs("verify_8") == {
        "tokens": (np.int32, (8,)),
        "positions": (np.int32, (8,)),
        "first_slot": (np.int32, (1,)),
        "output_rows": (np.int32, (8,)),
        "mask": (np.float16, (8, 384)),
    }
    assert program.inputs("prefill_64")["output_rows"] == (np.int32, (1,))
    assert program.description.defaultFunctionName == "verify_1"
    facts = json.loads(program.description.metadata.userDefined["quickdraft"])
    assert facts["rows"] == [1, 4, 8, 16, 64]
    both, _, _ = program_of("llama", "fp32")
    assert set(both.states("move")) == {"keys", "keys_rest", "values", "values_rest"}


def test_op_histogram() -> None:
    program, _, _ = program_of("llama", "int4")
    counts = program.histogram("verify_4")
    layers = 3
    assert counts["constexpr_blockwise_shift_scale"] == 7 * layers + 2
    assert counts["linear"] == 7 * layers + 1
    assert counts["write_state"] == counts["slice_update"] == 2 * layers
    assert counts["matmul"] == 2 * layers
    assert counts["softmax"] == counts["silu"] == layers
    assert counts["layer_norm"] == 2 * layers + 1
    assert "cast" not in counts, "a float16 program stays in float16, for the Neural Engine"
    assert program.histogram("prefill_64") == counts


def test_functions_share_their_weights() -> None:
    _, _, package = program_of("llama", "fp16")
    made, _ = coreml_models.exported("llama", "fp16")
    size = (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    weights = 2 * (320 * 32 * 2 + 3 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64))
    tables = 2 * 2 * 256 * 4
    assert weights + tables < size < 1.3 * (weights + tables)
    assert made.parts[0].spec.vocab_size == 320


def test_damaged_packages_are_refused(tmp_path: Path) -> None:
    made, variant = coreml_models.exported("llama", "fp16")
    folder = tmp_path / "bundle"
    shutil.copytree(made.folder, folder)
    spec = made.parts[0].spec
    weights = (folder / variant.model).parent / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    opened = CoreMlBackend(folder, spec, variant, device="EVALUATOR")
    with pytest.raises(BundleError, match="export the model again"):
        opened.step(Tree.chain([5]), opened.new_cache())
    (folder / variant.model).write_bytes(b"\xff" * 50)
    with pytest.raises(BundleError, match="export the model again"):
        CoreMlBackend(folder, spec, variant, device="EVALUATOR")


def test_options_are_refused() -> None:
    made, variant = coreml_models.exported("llama", "fp16")
    spec = made.parts[0].spec
    with pytest.raises(OptionError, match="chooses its threads"):
        CoreMlBackend(made.folder, spec, variant, threads=2, device="EVALUATOR")
    with pytest.raises(OptionError, match="kv_cache is 'int8'"):
        CoreMlBackend(made.folder, spec, variant, kv_cache="int8", device="EVALUATOR")
    with pytest.raises(OptionError, match="no device 'TPU'"):
        CoreMlBackend(made.folder, spec, variant, device="TPU")


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML is there")
def test_core_ml_is_missing_elsewhere() -> None:
    made, variant = coreml_models.exported("llama", "fp16")
    with pytest.raises(BackendError, match=r"on macOS only.*coreml:EVALUATOR"):
        CoreMlBackend(made.folder, made.parts[0].spec, variant)


def test_a_drafter_takes_features(tmp_path: Path) -> None:
    """A part beside the target: vectors come with its tokens, and it has a cache of its own."""
    weights = RandomWeights()
    table, mix, head = (
        weights.expect(name, shape)
        for name, shape in (("embed", (50, 16)), ("mix", (16, 12)), ("head", (50, 16)))
    )

    def build(ops: Any) -> None:
        x = ops.add(ops.linear(ops.features(), mix), ops.embed(ops.tokens(), table))
        x = ops.add(x, ops.attend(x, x, x, Attention(0, 2, 2, 8, 0.3)))
        ops.logits(ops.linear(ops.take_rows(x, ops.output_rows()), head))

    spec = ModelSpec("toy", 1, 16, 50, 64, (2,), (2,), 8, (None,))
    part = Part("drafter", "heads", build, spec, features=12)
    request = EmitRequest(tmp_path, FORMATS["fp32"], (part,))
    ours = CoreMlBackend(tmp_path, spec, emit_coreml(request)[0], device="EVALUATOR")
    theirs = ReferenceBackend(tmp_path, spec, emit_reference(request)[0])
    caches = [ours.new_cache(), theirs.new_cache()]
    random = np.random.default_rng(1)
    for tree, path in (
        (Tree.chain(random.integers(0, 50, 11)), range(11)),
        (Tree(random.integers(0, 50, 4), np.array([-1, 0, 0, 2])), [0, 2, 3]),
    ):
        features = random.standard_normal((len(tree), 12)).astype(np.float32)
        found = [
            backend.step(tree, cache, features=features).logits
            for backend, cache in zip((ours, theirs), caches, strict=True)
        ]
        assert np.abs(found[0] - found[1]).max() <= 1e-3
        for cache in caches:
            cache.commit(path)
    with pytest.raises(BackendError, match="takes features"):
        ours.step(Tree.chain([1]), caches[0])


def test_other_parts_are_refused(tmp_path: Path) -> None:
    made = coreml_models.request("llama", "fp16")
    target = made.parts[0]
    part = Part("predictor", "ahead", target.build, target.spec, target=target.spec)
    with pytest.raises(UnsupportedModel, match="'ahead'"):
        emit_coreml(EmitRequest(tmp_path, made.fmt, (target, part)))


def test_a_bundle_answers_as_the_reference_does(tmp_path: Path) -> None:
    """Through the whole of quickdraft, with drafts and without."""
    write_hf_folder(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    export_model(tmp_path / "checkpoint", bundle, weights="fp32", formats=("coreml", "reference"))
    answers = []
    for backend, draft in (
        ("reference", "none"),
        ("coreml:EVALUATOR", "none"),
        ("coreml:EVALUATOR", "prompt_lookup"),
    ):
        with quickdraft.load(bundle, backend=backend, drafter=draft) as model:
            answer = model.generate(
                "one two three one two three one two", max_new_tokens=20, temperature=0.0
            )
            answers.append(answer.token_ids)
    assert answers[0] == answers[1] == answers[2]


def test_other_shapes_give_the_same_answer() -> None:
    """Asked-for widths, prefill and cache: a tree wider than all, in a shorter context."""
    made = replace(coreml_models.request("llama", "fp32"), shapes=StaticShapes((1, 6), 20, 100))
    variant = emit_coreml(made)[0]
    layout = variant.cache
    assert isinstance(layout, FixedStateLayout)
    assert [step.name for step in layout.steps] == ["verify_1", "verify_6", "prefill_20"]
    assert layout.length == 100
    spec = made.parts[0].spec
    backend = CoreMlBackend(made.folder, spec, variant, device="evaluator")
    assert backend.spec.context_length == 100
    reference = coreml_models.reference("llama", "fp32")
    found = []
    for model in (backend, reference):
        cache = model.new_cache()
        model.step(Tree.chain([5] * 45), cache, np.array([44]))
        cache.commit(range(45))
        tree = Tree(np.arange(30), np.array([-1, *[0] * 10, *range(1, 20)]))
        found.append(model.step(tree, cache).logits)
    assert np.abs(found[0] - found[1]).max() <= 1e-3
    with pytest.raises(OptionError, match=r"cache_length is 300, and the context .* has 256"):
        emit_coreml(replace(made, shapes=StaticShapes(cache_length=300)))

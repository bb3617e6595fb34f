"""Encoder-decoder models as Core ML packages, walked by the evaluator, against NumPy.

float32 packages must agree within 1e-3; float16 ones within 2e-2 of the largest value.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from tiny.seq2seq_checkpoint import write_t5
from tiny.seq2seq_configs import SEQ2SEQ_CONFIGS, family_request
from tiny.seq2seq_models import SPECS, emitted, request, source

import quickdraft
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, InputError, UnsupportedModel
from quickdraft.export.emitters.base import EmitRequest
from quickdraft.export.emitters.coreml import emit_coreml
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.pipeline import export_model
from quickdraft.kvcache.by_head import ByHeadMemory
from quickdraft.kvcache.memory import RowMemory, Source
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.coreml import CoreMlBackend
from quickdraft.runtime.backends.coreml_program import Program
from quickdraft.runtime.backends.reference import ReferenceBackend

pytestmark = [pytest.mark.coreml, pytest.mark.filterwarnings("ignore")]

TREE = Tree(np.array([9, 8, 7, 6, 5, 4, 11]), np.array([-1, 0, 0, 1, 1, 2, 5]))
FAMILIES = {family: name for name, (family, _) in reversed(SEQ2SEQ_CONFIGS.items())}
"""The first config of every family."""
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def family(name: str, form: str) -> EmitRequest:
    """SEQ2SEQ_CONFIGS[name] with random weights."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    return family_request(name, form, Path(_FOLDERS[-1].name))


def pair(asked: EmitRequest) -> tuple[CoreMlBackend, ReferenceBackend]:
    """Both backends of a model."""
    spec = asked.parts[0].spec
    target, encoder = emit_coreml(asked)
    ours = CoreMlBackend(asked.folder, spec, target, device="evaluator", encoder=encoder)
    target, encoder = emit_reference(asked)
    return ours, ReferenceBackend(asked.folder, spec, target, encoder=encoder)


def compare(ours: Any, theirs: Any, form: str) -> None:
    limit = 1e-3 if form == "fp32" else 2e-2 * max(1.0, float(np.abs(theirs).max()))
    assert np.abs(ours - theirs).max() <= limit


def three_turns(asked: EmitRequest, rows: int, form: str) -> None:
    """Memories, then prompts, trees of which one path is kept, and single steps."""
    backends = pair(asked)
    reads = asked.parts[0].spec.source
    assert reads is not None
    random = np.random.default_rng(rows)
    if reads.width:
        frames = reads.length if reads.fixed else rows
        values = random.standard_normal((frames, reads.width)).astype(np.float32)
        given = Source(features=values)
    else:
        given = Source(tokens=random.integers(3, asked.parts[0].spec.vocab_size, rows))
    memories = [backend.encode(given) for backend in backends]
    assert memories[0].rows == memories[1].rows
    for layer in range(asked.parts[0].spec.num_layers):
        for a, b in zip(*(memory.layer(layer) for memory in memories), strict=True):
            compare(a, b, form)
    caches = [b.new_cache(memory) for b, memory in zip(backends, memories, strict=True)]
    for count in (19, 1):
        text = Tree.chain(random.integers(4, asked.parts[0].spec.vocab_size, count))
        for tree, path in ((text, range(count)), (TREE, [0, 2, 5, 6])):
            a, b = (
                backend.step(tree, cache).logits
                for backend, cache in zip(backends, caches, strict=True)
            )
            assert b.std() > 0.05
            compare(a, b, form)
            for cache in caches:
                cache.commit(path)
        caches = [cache.fork() for cache in caches]


@pytest.mark.parametrize("name", SEQ2SEQ_CONFIGS)
def test_float32(name: str) -> None:
    three_turns(family(name, "fp32"), 23, "fp32")


@pytest.mark.parametrize("name", FAMILIES.values())
def test_float16(name: str) -> None:
    three_turns(family(name, "fp16"), 23, "fp16")


def test_t5_computes_in_float32_whatever_its_weights(tmp_path: Path) -> None:
    """flan-t5-small gives no numbers in float16."""
    for name, kv_type in (("t5-v1.1", "f32"), ("bart", "f16")):
        (tmp_path / name).mkdir()
        asked = family_request(name, "fp16", tmp_path / name)
        target, encoder = emit_coreml(asked)
        spec = asked.parts[0].spec
        model = CoreMlBackend(asked.folder, spec, target, device="evaluator", encoder=encoder)
        assert model.kv_type == kv_type
        memory = model.encode(Source(tokens=np.arange(5)))
        assert isinstance(memory, ByHeadMemory)
        assert memory.layers[0][0].dtype == {"f32": np.float32, "f16": np.float16}[kv_type]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_blocks(form: str, tmp_path: Path) -> None:
    three_turns(request("after", form, tmp_path), 37, form)


@pytest.mark.parametrize("rows", [1, 64, 65, 300])
def test_sources_of_every_width(rows: int, tmp_path: Path) -> None:
    three_turns(request("tokens", "fp32", tmp_path), rows, "fp32")


@functools.cache
def small(form: str = "fp16") -> CoreMlBackend:
    asked, target, encoder = emitted(emit_coreml, "after", form)
    spec = asked.parts[0].spec
    return CoreMlBackend(asked.folder, spec, target, device="evaluator", encoder=encoder)


def test_functions_and_inputs() -> None:
    asked, target, encoder = emitted(emit_coreml, "tokens", "fp16")
    reads = Program((asked.folder / encoder.model).parents[2])
    assert reads.functions == ("encode_256", "encode_300", "encode_64")
    assert reads.inputs("encode_64") == {
        "positions": (np.int32, (64,)),
        "tokens": (np.int32, (64,)),
        "source_bias": (np.float16, (1, 64)),
    }
    assert not reads.states("encode_64")
    steps = Program((asked.folder / target.model).parents[2])
    found = steps.inputs("verify_4")
    assert found["memory_1_key"] == found["memory_0_value"] == (np.float16, (4, 300, 16))
    assert found["distances"] == (np.int32, (4, 64 + 128))
    assert "memory_0_key" not in steps.inputs("move")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="any number of frames"):
        emit_coreml(request("frames", "fp32", tmp_path))
    model = small()
    with pytest.raises(InputError, match="41 tokens; the model reads 1 to 40"):
        model.encode(source("after", 41))
    with pytest.raises(BackendError, match="over no source"):
        model.step(Tree.chain([1]), model.new_cache())
    rows = np.zeros((5, 4, 16), np.float32)
    with pytest.raises(BackendError, match="its own memories, not RowMemory"):
        model.step(Tree.chain([1]), model.new_cache(RowMemory(((rows, rows),) * 2)))
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        model.encode(source("after", 4), token)
    asked, target, encoder = emitted(emit_coreml, "after", "fp16")
    spec = asked.parts[0].spec
    with pytest.raises(BundleError, match="does not name its functions"):
        CoreMlBackend(
            asked.folder, spec, target, device="evaluator", encoder=replace(encoder, details={})
        )
    closed = CoreMlBackend(asked.folder, spec, target, device="evaluator", encoder=encoder)
    closed.close()
    with pytest.raises(BackendError, match="closed"):
        closed.encode(source("after", 4))


def test_a_package_may_read_less_than_the_model() -> None:
    asked, target, encoder = emitted(emit_coreml, "tokens", "fp16")
    facts = replace(asked.parts[0].spec, source=replace(SPECS["tokens"].source, length=5000))
    model = CoreMlBackend(asked.folder, facts, target, device="evaluator", encoder=encoder)
    with pytest.raises(InputError, match="301 tokens; the model reads 1 to 300"):
        model.encode(source("tokens", 301))


def test_a_bundle_answers_as_the_reference_does(tmp_path: Path) -> None:
    """Through the whole of quickdraft, with drafts and without."""
    write_t5(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    export_model(tmp_path / "checkpoint", bundle, weights="fp32", formats=("coreml", "reference"))
    answers = []
    for backend, draft in (
        ("reference", "none"),
        ("coreml:EVALUATOR", "none"),
        ("coreml:EVALUATOR", "prompt_lookup"),
    ):
        with quickdraft.load(bundle, backend=backend, drafter=draft) as model:
            answer = model.generate("one two three one two", max_new_tokens=12, temperature=0.0)
            answers.append(answer.token_ids)
    assert answers[0] == answers[1] == answers[2]

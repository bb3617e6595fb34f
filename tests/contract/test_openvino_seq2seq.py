"""Sources on OpenVINO: graphs of one number of rows, and what both flavours refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import half_precision
from tiny.checkpoint import tiny_checkpoint
from tiny.seq2seq_checkpoint import tiny_t5
from tiny.seq2seq_models import SPECS, emitted, request, source

from quickdraft.drafters.tree import Tree
from quickdraft.errors import (
    BackendError,
    BundleError,
    Cancelled,
    DeviceError,
    InputError,
    UnsupportedModel,
)
from quickdraft.export.architectures.t5 import FAMILY as T5_FAMILY
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.emitters.openvino import emit_openvino, emit_openvino_static
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.kvcache.memory import RowMemory
from quickdraft.manifest import parse_manifest
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.openvino import OpenVinoBackend
from quickdraft.runtime.backends.reference import ReferenceBackend
from quickdraft.types import WIDE_FAMILIES

pytest.importorskip("openvino")
pytestmark = pytest.mark.openvino

TOKENS = np.arange(9)
EMITTERS = {"openvino": emit_openvino, "openvino-static": emit_openvino_static}
each = pytest.mark.parametrize("form", list(EMITTERS))


def load(form: str, name: str = "tokens", weights: str = "fp32") -> OpenVinoBackend:
    asked, target, encoder = emitted(EMITTERS[form], name, weights)
    return OpenVinoBackend(asked.folder, asked.parts[0].spec, target, 1, encoder=encoder)


def reference(name: str = "tokens", weights: str = "fp32") -> ReferenceBackend:
    asked, target, encoder = emitted(emit_reference, name, weights)
    return ReferenceBackend(asked.folder, asked.parts[0].spec, target, encoder=encoder)


@each
def test_sources_of_every_length_one_after_another(form: str) -> None:
    """Around the widths of the static graphs; a memory of one row before longer ones."""
    ours, theirs = load(form), reference()
    for rows in (1, 63, 64, 65, 256, 257, 300):
        given = source("tokens", rows)
        a, b = ours.encode(given), theirs.encode(given)
        assert a.rows == b.rows == rows
        for mine, other in zip(a.layer(1), b.layer(1), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-4)
        found, expected = (
            backend.step(Tree.chain(TOKENS), backend.new_cache(memory)).logits
            for backend, memory in ((ours, a), (theirs, b))
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
@each
def test_every_weight_format(form: str, weights: str) -> None:
    """The same rounded weights, computed with in float32."""
    given, logits = source("tokens", 21), []
    for backend in (load(form, weights=weights), reference(weights=weights)):
        cache = backend.new_cache(backend.encode(given))
        logits.append(backend.step(Tree.chain(TOKENS), cache).logits.copy())
    assert np.abs(logits[0] - logits[1]).max() <= 1e-3


def test_a_static_encoder_may_read_less_than_the_model() -> None:
    asked, target, encoder = emitted(emit_openvino_static, "tokens", "fp32")
    assert sorted(encoder.widths) == [64, 256, 300]
    facts = replace(asked.parts[0].spec, source=replace(SPECS["tokens"].source, length=5000))
    model = OpenVinoBackend(asked.folder, facts, target, 1, encoder=encoder)
    with pytest.raises(InputError, match="301 tokens; the model reads 1 to 300"):
        model.encode(source("tokens", 301))


def test_static_graphs_need_a_fixed_number_of_frames(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"any number of frames.*--format openvino$"):
        emit_openvino_static(request("frames", "fp32", tmp_path))


@each
@pytest.mark.parametrize("name", ["after", "frames"])
def test_sources_in_float16(form: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As GPUs and NPUs compute: every value is rounded."""
    reads = SPECS[name].source
    if form == "openvino-static" and reads.width and not reads.fixed:
        pytest.skip("frames of any number have no graph of fixed shapes")
    monkeypatch.setattr(openvino_device, "compile_graph", half_precision.compile_graph)
    given, found = source(name, 23), []
    for backend in (load(form, name), reference(name)):
        cache = backend.new_cache(backend.encode(given))
        found.append(backend.step(Tree.chain(TOKENS), cache).logits)
    assert np.abs(found[0] - found[1]).max() <= 2e-2 * max(1.0, np.abs(found[1]).max())


def test_models_that_do_not_fit_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5: float32 where the device has it, and refused where it has not."""
    assert "ACCURACY" in openvino_device.properties("GPU", None, family="t5").values()
    assert "ACCURACY" not in openvino_device.properties("GPU", None, family="bart").values()
    for device in ("NPU", "NPU.1", "AUTO:NPU,CPU"):
        with pytest.raises(DeviceError, match="does not fit float16"):
            openvino_device.properties(device, None, family="t5")
    openvino_device.properties("NPU", None, family="bart")
    assert (T5_FAMILY.read({**T5_FAMILY.defaults, "vocab_size": 9}).family,) == WIDE_FAMILIES


@each
def test_static_graphs_of_sources_have_no_dynamic_dimension(form: str) -> None:
    import openvino

    asked, *variants = emitted(EMITTERS[form], "tokens", "fp32")
    for variant in variants:
        (weights,) = (name for name in variant.files if name.endswith(".bin"))
        for name in variant.widths.values():
            graph = openvino.Core().read_model(asked.folder / name, asked.folder / weights)
            for node in graph.get_ordered_ops():
                assert all(output.partial_shape.is_static for output in node.outputs()), node
        assert bool(variant.widths) == (form == "openvino-static")


@each
def test_memories_of_others_and_closed_models_are_refused(form: str) -> None:
    model, given = load(form), source("tokens", 5)
    spec = model.spec
    rows = np.zeros((5, spec.num_kv_heads[0], spec.head_dim), np.float32)
    other = model.new_cache(RowMemory(((rows, rows),) * spec.num_layers))
    with pytest.raises(BackendError, match="its own memories, not RowMemory"):
        model.step(Tree.chain([1]), other)
    assert other.staged == 0
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.encode(given)


@each
def test_a_cancelled_encoding(form: str) -> None:
    model, token = load(form), CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        model.encode(source("tokens", 5), token)


@each
def test_a_manifest_that_names_another_memory(form: str) -> None:
    asked, target, encoder = emitted(EMITTERS[form], "tokens", "fp32")
    assert target.memory is not None
    wrong = replace(encoder, memory=replace(target.memory, present_key="other.{layer}"))
    with pytest.raises(BundleError, match="disagree about the output"):
        OpenVinoBackend(asked.folder, asked.parts[0].spec, target, 1, encoder=wrong)
    without = OpenVinoBackend(asked.folder, asked.parts[0].spec, target, 1)
    with pytest.raises(BackendError, match="opened without the encoder"):
        without.encode(source("tokens", 5))


@pytest.mark.parametrize(
    ("role", "name", "value", "says"),
    [
        ("target", "source", "source_bias", "step has 'source'"),
        ("encoder", "source", "source_bias", "step has 'source'"),
        ("encoder", "distances", "distances", "step has 'distances'"),
        ("encoder", "positions", None, "step lacks 'positions'"),
    ],
)
def test_manifests_say_what_a_dynamic_step_has(
    tmp_path: Path, role: str, name: str, value: str | None, says: str
) -> None:
    """Only fixed numbers of rows are masked, and only a target is given distances."""
    export_checkpoint(tiny_t5(), tmp_path / "bundle", weights="fp32", formats=["openvino"])
    text = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    text["roles"][role][0]["step"][name] = value
    with pytest.raises(BundleError, match=says):
        parse_manifest(json.dumps(text).encode(), "manifest.json")


def test_manifests_of_decoders_have_no_distances(tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint("llama"), tmp_path / "bundle", formats=["openvino"])
    text = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    text["roles"]["target"][0]["step"]["distances"] = "distances"
    with pytest.raises(BundleError, match="a step over a memory, and slots or rows, reads"):
        parse_manifest(json.dumps(text).encode(), "manifest.json")

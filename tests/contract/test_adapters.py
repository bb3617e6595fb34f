"""Folders of other tools, opened as they are: the same logits however a text is cut into steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import exports
from tiny.checkpoint import tiny_checkpoint

from quickdraft.bundle import Bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import AdapterError, BackendError, BundleError, DeviceError, OptionError
from quickdraft.export.emitters import onnx_weights
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.manifest import parse_manifest
from quickdraft.models.adapters import adapt, recognise
from quickdraft.models.resolve import resolve
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.adapted import AdaptedBackend
from quickdraft.runtime.backends.opening import open_backend

TOKENS = np.random.default_rng(3).integers(3, 320, 150)
CUTS = {"at once": [], "one by one": list(range(1, 150)), "odd": [1, 4, 5, 21, 130]}


def with_past(folder: Path) -> Path:
    return exports.write_optimum(folder, model=exports.graph())


def merged(folder: Path) -> Path:
    graph = exports.graph(inputs=("use_cache_branch",))
    return exports.write_optimum(folder, decoder_model_merged=graph, decoder_model=graph)


def pair(folder: Path) -> Path:
    graphs = {
        "decoder_model": exports.graph(past=False),
        "decoder_with_past_model": exports.graph(),
    }
    return exports.write_optimum(folder, **graphs)


def traced_with_one_token(folder: Path) -> Path:
    single = exports.graph(causal=False)
    return exports.write_optimum(
        folder, decoder_model=exports.graph(past=False), decoder_with_past_model=single
    )


def plain(folder: Path) -> Path:
    return exports.write_optimum(folder, model=exports.graph(past=False))


def quantised(folder: Path) -> Path:
    """As its quantiser names it; the weights do not matter here."""
    return exports.write_optimum(folder, model_quantized=exports.graph())


KINDS = [
    with_past,
    merged,
    pair,
    traced_with_one_token,
    plain,
    quantised,
    pytest.param(exports.write_openvino, marks=pytest.mark.openvino),
]


def opened(folder: Path) -> tuple[Bundle, AdaptedBackend]:  # type: ignore[type-arg]
    bundle = adapt(folder)
    backend = open_backend(bundle.folder, bundle.manifest, "auto", None).backend
    assert isinstance(backend, AdaptedBackend)
    return bundle, backend


def run(backend: AdaptedBackend, cuts: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    cache, logits = backend.new_cache(), []
    for part in np.split(TOKENS, cuts):
        logits.append(backend.step(Tree.chain(part), cache).logits)
        cache.commit(range(len(part)))
    return np.concatenate(logits)


@pytest.mark.parametrize("write", KINDS)
def test_logits_are_the_models_however_a_text_is_cut(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    bundle, backend = opened(write(tmp_path / "export"))
    assert (backend.width == 1) == (write is traced_with_one_token)
    assert bundle.manifest.model.context_length == exports.CONTEXT
    expected = exports.expected(TOKENS)
    for name, cuts in CUTS.items():
        np.testing.assert_allclose(run(backend, cuts), expected, rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("write", KINDS)
def test_rejected_rows_leave_no_trace(write: Callable[[Path], Path], tmp_path: Path) -> None:
    _, backend = opened(write(tmp_path / "export"))
    cache, expected = backend.new_cache(), exports.expected(TOKENS)
    for at in range(0, 30, 2):
        chain = [*TOKENS[at : at + 2], 9, 11]  # two that count, two that will be rejected
        logits = backend.step(Tree.chain(chain), cache, np.array([1])).logits
        np.testing.assert_allclose(logits[0], expected[at + 1], rtol=0, atol=1e-3)
        cache.commit([0, 1])
    twin = cache.fork()
    cache.truncate(5)
    assert (cache.length, twin.length) == (5, 30)
    for where, each in ((5, cache), (30, twin)):
        logits = backend.step(Tree.chain(TOKENS[where : where + 3]), each).logits
        np.testing.assert_allclose(logits, expected[where : where + 3], rtol=0, atol=1e-3)


def test_a_cache_that_was_never_written_can_be_stepped_over(tmp_path: Path) -> None:
    _, backend = opened(with_past(tmp_path / "export"))
    cache = backend.new_cache()
    cache.stage(65)
    cache.commit(range(1, 65))  # as calibration makes a long context
    assert np.isfinite(backend.step(Tree.chain([5]), cache).logits).all()


def test_trees_and_options_are_refused(tmp_path: Path) -> None:
    bundle, backend = opened(with_past(tmp_path / "export"))
    tree = Tree(np.array([5, 6, 7]), np.array([-1, 0, 0]))
    assert (backend.trees, backend.guarantee) == ("none", "same_distribution")
    with pytest.raises(BackendError, match="chains of tokens only"):
        backend.step(tree, backend.new_cache())
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.step(Tree.chain([5]), backend.new_cache())
    with pytest.raises(OptionError, match="kv_cache"):
        open_backend(bundle.folder, bundle.manifest, "onnxruntime", None, "int8")


@pytest.mark.parametrize("write", [with_past, pair, plain])
def test_providers_are_chosen_by_name(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """As for graphs of our own."""
    bundle = adapt(write(tmp_path / "export"))
    backend = open_backend(bundle.folder, bundle.manifest, "onnxruntime:CPU", None).backend
    assert backend.device == "CPU"
    found = backend.step(Tree.chain(TOKENS), backend.new_cache()).logits
    np.testing.assert_allclose(found, exports.expected(TOKENS), rtol=0, atol=1e-3)
    with pytest.raises(DeviceError, match=r"has no QNNExecutionProvider .* onnxruntime-qnn"):
        open_backend(bundle.folder, bundle.manifest, "onnxruntime:QNN", None)


@pytest.mark.openvino
class TestDevicesOfOpenVino:
    """A folder of optimum-intel is opened with the rules of our own graphs."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return exports.write_openvino(tmp_path / "export")

    def open(self, folder: Path, device: str, **options: Any) -> Any:
        bundle = adapt(folder)
        name = f"openvino:{device}"
        return open_backend(bundle.folder, bundle.manifest, name, **{"threads": None, **options})

    @pytest.mark.parametrize(("device", "said"), [("cpu", "CPU"), ("AUTO", "AUTO (CPU)")])
    def test_names_are_taken_in_any_case(self, folder: Path, device: str, said: str) -> None:
        backend = self.open(folder, device).backend
        assert backend.device == said
        found = backend.step(Tree.chain(TOKENS), backend.new_cache()).logits
        np.testing.assert_allclose(found, exports.expected(TOKENS), rtol=0, atol=1e-2)

    @pytest.mark.parametrize("device", ["GPU.7", "TPU", "NPU.3"])
    def test_what_is_not_here_is_refused(self, folder: Path, device: str) -> None:
        with pytest.raises(DeviceError, match="no device"):
            self.open(folder, device)

    def test_an_npu_takes_no_such_graph(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        core = SimpleNamespace(available_devices=["CPU", "NPU"])
        monkeypatch.setattr(openvino_device, "core", lambda: core)
        with pytest.raises(DeviceError, match=r"NPU takes graphs of fixed shapes only.*static"):
            self.open(folder, "npu")

    def test_options_that_a_device_does_not_take(self, folder: Path) -> None:
        with pytest.raises(OptionError, match="threads is 2, and only OpenVINO's CPU"):
            self.open(folder, "AUTO", threads=2)
        with pytest.raises(OptionError, match="kv_cache is 'f16', and only OpenVINO's CPU"):
            self.open(folder, "AUTO", kv_cache="f16")
        assert self.open(folder, "CPU", kv_cache="int8").backend.kv_type == "int8"
        assert self.open(folder, "CPU").backend.kv_type == "f32"

    def test_a_harmful_graph_is_looked_at_first(self, folder: Path) -> None:
        bundle = adapt(folder)
        xml = folder / "openvino_model.xml"
        xml.write_bytes(xml.read_bytes() + b"<a>" * 100)
        with pytest.raises(BundleError, match=r"openvino_model\.xml"):
            open_backend(bundle.folder, bundle.manifest, "openvino", None)

    def test_what_is_compiled_elsewhere_is_kept(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = {}
        genuine = openvino_device.compile_graph

        def compile_graph(xml: Path, weights: Path, device: str, how: Any) -> Any:
            given.update(how)
            return genuine(xml, weights, device, how)

        monkeypatch.setattr(openvino_device, "compile_graph", compile_graph)
        self.open(folder, "AUTO")
        assert Path(given["CACHE_DIR"]).is_dir()
        assert "INFERENCE_NUM_THREADS" not in given


@pytest.fixture(scope="module")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the format genai, windows and soft caps included."""
    folder = tmp_path_factory.mktemp("genai") / "bundle"
    export_checkpoint(
        tiny_checkpoint("gemma2"), folder, weights="fp32", formats=("genai", "reference")
    )
    return folder


def test_a_genai_bundle_has_the_logits_of_the_reference(genai: Path) -> None:
    bundle = resolve(str(genai))
    tokens = TOKENS[:40]
    results = []
    for name in ("onnxruntime_adapted", "reference"):
        backend = open_backend(bundle.folder, bundle.manifest, name, None).backend
        cache = backend.new_cache()
        for part in np.split(tokens, [7, 8, 30]):
            results.append(backend.step(Tree.chain(part), cache).logits.copy())
            cache.commit(range(len(part)))
    for ours, theirs in zip(results[:4], results[4:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_only_rounding_of_activations_parts_genai_from_the_reference(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_weights.WeightStore, "accuracy_level", 0)
    folder, checkpoint = tmp_path / "bundle", tiny_checkpoint("llama")
    export_checkpoint(checkpoint, folder, weights=weights, formats=("genai", "reference"))
    bundle, found = resolve(str(folder)), []
    for name in ("onnxruntime_adapted", "reference"):
        backend = open_backend(bundle.folder, bundle.manifest, name, None).backend
        cache = backend.new_cache()
        for part in np.split(TOKENS[:40], [37, 38]):
            found.append(backend.step(Tree.chain(part), cache).logits.copy())
            cache.commit(range(len(part)))
    np.testing.assert_allclose(np.vstack(found[:3]), np.vstack(found[3:]), rtol=0, atol=1e-3)


def test_a_genai_folder_opens_without_our_manifest(genai: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(genai, folder, ignore=shutil.ignore_patterns("manifest.json", "reference"))
    assert recognise(folder) == "onnxruntime-genai"
    ours, theirs = resolve(str(genai)).manifest, resolve(str(folder)).manifest
    mine, found = ours.roles["target"][0], theirs.roles["target"][0]
    assert (mine.step, mine.cache, mine.details) == (found.step, found.cache, found.details)
    assert ours.tokenizer.eos_token_ids == theirs.tokenizer.eos_token_ids
    assert parse_manifest(theirs.to_json().encode(), "it") == theirs


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    value["model"] |= {k: v for k, v in changes.items() if k not in value["model"]["decoder"]}
    value["model"]["decoder"] |= {
        k: v for k, v in changes.items() if k in value["model"]["decoder"]
    }
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.onnx.data").unlink(), "lacks model.onnx.data"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: edit(f / "genai_config.json", vision={}), "the part 'vision'"),
        (lambda f: edit(f / "genai_config.json", filename="../model.onnx"), "not a name of a file"),
        (lambda f: edit(f / "genai_config.json", filename="other.onnx"), "lacks other.onnx"),
        (lambda f: edit(f / "genai_config.json", head_size="wide"), "'head_size' is 'wide'"),
        (
            lambda f: edit(f / "genai_config.json", inputs={"attention_mask": "mask"}),
            "has the input 'attention_mask'",
        ),
        (lambda f: (f / "genai_config.json").write_text("{"), "genai_config.json"),
        (lambda f: (f / "model.onnx").write_bytes(b""), "is empty"),
    ],
)
def test_almost_a_genai_folder(
    genai: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(genai, folder, ignore=shutil.ignore_patterns("manifest.json", "reference"))
    spoil(folder)
    with pytest.raises(AdapterError, match=message):
        resolve(str(folder))


def test_almost_a_folder_of_optimum(tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(BundleError, match=message):
            resolve(str(folder))

    foreign = exports.graph(inputs=("encoder_hidden_states",))
    refused(exports.write_optimum(tmp_path / "a", model=foreign), "input 'encoder_hidden_states'")
    half = exports.write_optimum(tmp_path / "b", decoder_with_past_model=exports.graph())
    refused(half, "lacks decoder_model.onnx")
    whole = with_past(tmp_path / "c")
    (whole / "config.json").unlink()
    refused(whole, "lacks config.json")
    config = exports.CONFIG | {"num_hidden_layers": 2}
    (whole / "config.json").write_text(json.dumps(config))
    refused(whole, "says 2 layers, and the graph has 1")


@pytest.mark.openvino
def test_almost_a_folder_of_openvino(tmp_path: Path) -> None:
    folder = exports.write_openvino(tmp_path / "a")
    (folder / "tokenizer.json").unlink()
    (folder / "openvino_tokenizer.xml").write_text("<net/>")
    with pytest.raises(AdapterError, match=r"no tokenizer.json, only openvino_tokenizer.xml"):
        resolve(str(folder))
    (folder / "openvino_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"lacks openvino_model.bin"):
        resolve(str(folder))

"""Which backend opens which bundle, and what is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny.toy_model import byte_tokenizer_json, toy_manifest

from quickdraft.errors import BackendError, BundleError, OptionError
from quickdraft.manifest import Manifest, SlotsLayout, StepNames, Variant
from quickdraft.runtime.backends import hotpath, opening
from quickdraft.runtime.backends.opening import open_backend, variant_for
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.model import Model


class Recorder:
    """Stands for every backend class; keeps what it was given."""

    name = "recorder"
    flavour = "portable"
    guarantee = "bit_identical"
    trees = "exact"
    closed = False

    def __init__(
        self,
        folder: Path,
        spec: object,
        variant: Variant,
        threads: int | None,
        kv_cache: str | None = None,
    ) -> None:
        self.folder, self.spec, self.variant, self.threads = folder, spec, variant, threads
        self.kv_cache = kv_cache
        Recorder.closed = False

    def close(self) -> None:
        Recorder.closed = True


@pytest.fixture(autouse=True)
def _recorders(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("hotpath", "onnxruntime", "reference", "other")
    table = dict.fromkeys(names, f"{__name__}:Recorder")
    monkeypatch.setattr(opening, "BACKENDS", table)
    real = opening.lookup
    monkeypatch.setattr(
        opening, "lookup", lambda *args: Recorder if args[2] in table else real(*args)
    )


def variant(target_format: str, flavour: str = "portable") -> Variant:
    step = StepNames("tokens", "positions", "rows", "logits", "slots", {None: "bias"})
    cache = SlotsLayout("slots", 64, "pk{layer}", "pv{layer}", "k{layer}", "v{layer}")
    return Variant(
        target_format=target_format,  # type: ignore[arg-type]
        flavour=flavour,  # type: ignore[arg-type]
        weight_format="fp32",
        model="model",
        files=("model",),
        step=step,
        cache=cache,
        guarantee="bit_identical",
    )


def test_an_npu_gets_the_variant_of_fixed_shapes() -> None:
    """Whatever the bundle names first, and however the device is written."""
    dynamic, fixed = variant("openvino"), variant("openvino", "static")
    both = manifest(dynamic, fixed)
    for device in ("NPU", "npu", "NPU.0", "AUTO:NPU,CPU"):
        assert variant_for(both, "openvino", device) is fixed
        with pytest.raises(BundleError, match=f"{device} takes graphs of fixed.*openvino-static"):
            variant_for(manifest(dynamic), "openvino", device)
    for device in ("", "CPU", "GPU", "AUTO"):
        assert variant_for(both, "openvino", device) is dynamic


def manifest(*variants: Variant) -> Manifest:
    return replace(toy_manifest(), roles={"target": variants})


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("auto", ["reference", "onnx"], "onnx"),
        ("auto", ["reference", "onnx", "hotpath"], "hotpath"),
        ("auto", ["reference"], "reference"),
        ("onnxruntime", ["hotpath", "onnx"], "onnx"),
        ("reference", ["onnx", "reference"], "reference"),
        ("other", ["onnx", "reference"], "onnx"),
    ],
)
def test_a_backend_gets_the_variant_it_opens(
    name: str, given: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotpath, "problem", lambda: None)
    variants = {each: variant(each) for each in ("onnx", "reference")}
    variants["hotpath"] = variant("onnx", "hotpath")
    bundle = manifest(*(variants[each] for each in given))
    opened = open_backend(Path("there"), bundle, name, 3)
    backend = opened.backend
    assert opened.degraded is None
    assert isinstance(backend, Recorder)
    assert backend.kv_cache is None
    assert backend.variant == variants[expected]
    assert (backend.folder, backend.spec, backend.threads) == (Path("there"), bundle.model, 3)


@pytest.mark.parametrize(
    ("name", "variants", "error", "message"),
    [
        ("auto", [], BundleError, "no target model"),
        ("auto", [variant("onnx", "static")], BundleError, "it has: onnx static"),
        ("reference", [variant("onnx")], BundleError, "no variant for the backend 'reference'"),
        ("onnxrutime", [variant("onnx")], OptionError, "did you mean 'onnxruntime'"),
    ],
)
def test_what_no_backend_opens_is_refused(
    name: str, variants: list[Variant], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_backend(Path("there"), manifest(*variants), name, None)


def test_where_the_hotpath_cannot_run_the_portable_variant_does_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hotpath, "problem", lambda: "no native library")
    bundle = manifest(variant("onnx", "hotpath"), variant("reference"), variant("onnx"))
    opened = open_backend(Path("there"), bundle, "auto", None, "f32")
    assert opened.backend.variant == variant("onnx")
    assert opened.backend.kv_cache == "f32"
    assert opened.degraded == "no native library"
    assert "slower than it could be" in caplog.text
    assert "no native library" in caplog.text


def test_where_the_hotpath_cannot_run_and_nothing_else_can_that_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hotpath, "problem", lambda: "no native library")
    bundle = manifest(variant("onnx", "hotpath"), variant("reference"))
    with pytest.raises(BackendError, match=r"no native library\..*--format hotpath,onnx"):
        open_backend(Path("there"), bundle, "auto", None)


def test_a_backend_that_was_asked_for_by_name_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hotpath, "problem", lambda: pytest.fail("asked"))
    bundle = manifest(variant("onnx", "hotpath"), variant("onnx"))
    opened = open_backend(Path("there"), bundle, "hotpath", None)
    assert opened.backend.variant == variant("onnx", "hotpath")


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_bad_numbers_of_threads_are_refused(threads: int, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="threads is"):
        Model.open(tmp_path, manifest=manifest(variant("onnx")), threads=threads)


def test_a_model_is_opened_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer_json(), encoding="utf-8")
    (tmp_path / "template").write_text("{{ bos_token }}", encoding="utf-8")
    bundle = manifest(variant("onnx"))
    entry = replace(bundle.tokenizer, chat_template="template", special_tokens={"bos_token": "<s>"})
    bundle = replace(bundle, tokenizer=entry)
    plain = DraftingSetup("none")
    with Model.open(tmp_path, manifest=bundle, name="tiny", drafting=plain) as model:
        assert model.name == "tiny"
        assert model.load_ms > 0
        assert model.tokenize_chat([{"role": "user", "content": "x"}]) == [entry.bos_token_id]
    assert Recorder.closed


def test_a_backend_is_closed_when_the_rest_of_a_bundle_is_bad(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer_json(), encoding="utf-8")
    bad = replace(manifest(variant("onnx")), generation={"top_p": 9})
    with pytest.raises(OptionError, match="top_p"):
        Model.open(tmp_path, manifest=bad)
    assert Recorder.closed

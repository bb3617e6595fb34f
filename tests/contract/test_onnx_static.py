"""Static ONNX graphs: every dimension is fixed, all widths share their weights, and which backend
opens them on which device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny.checkpoint import tiny_checkpoint
from tiny.rows_bundles import load, write_bundle
from tiny.seq2seq_checkpoint import tiny_t5

import quickdraft
from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, DeviceError, OptionError, UnsupportedModel
from quickdraft.export.emitters import onnx_static
from quickdraft.export.emitters.onnx_static import fix_shapes
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.manifest import Variant
from quickdraft.models.formats import default_formats
from quickdraft.runtime.backends import opening, providers
from quickdraft.runtime.backends.opening import open_backend

WEIGHTS = ("fp32", "fp16", "int8", "int4")
PRODUCTS = {"fp32": "Gemm", "fp16": "Gemm", "int8": "DequantizeLinear", "int4": "MatMulNBits"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle("onnx-static", tmp_path_factory.mktemp("static") / "tiny")


@pytest.fixture(scope="module", params=WEIGHTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("static") / str(request.param)
    checkpoint = tiny_checkpoint("gemma2", max_position_embeddings=96)
    export_checkpoint(checkpoint, path, weights=request.param, formats=["onnx-static"])
    return path


def variant_of(folder: Path) -> Variant:
    return open_bundle(folder).manifest.roles["target"][0]


def graphs(folder: Path) -> Iterator[tuple[int, Any]]:
    """Every graph by its rows, without its weights."""
    for rows, name in variant_of(folder).widths.items():
        yield rows, onnx.load(str(folder / name), load_external_data=False)


def test_no_dimension_is_dynamic(exported: Path) -> None:
    variant = variant_of(exported)
    assert sorted(variant.widths) == [1, 4, 8, 16, 128]
    for rows, model in graphs(exported):
        graph = model.graph
        values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
        made = {name for node in graph.node for name in node.output}
        assert made <= set(values)
        for value in values.values():
            sizes = value.type.tensor_type.shape.dim
            assert all(size.WhichOneof("value") == "dim_value" for size in sizes), value.name
            assert value.type.tensor_type.HasField("shape"), value.name
        shape = {
            name: [s.dim_value for s in v.type.tensor_type.shape.dim] for name, v in values.items()
        }
        assert shape["input_ids"] == shape["position_ids"] == [rows]
        assert shape["output_rows"] == [1 if rows == 128 else rows]
        assert shape["attention_bias"] == [rows, variant.capacity + rows]
        assert shape["past_key_values.0.key"][1] == variant.capacity
        assert shape["present.0.key"][1] == rows


def test_all_widths_read_the_same_bytes(exported: Path) -> None:
    found = []
    for _, model in graphs(exported):
        places = {}
        for tensor in model.graph.initializer:
            if tensor.external_data:
                where = {entry.key: entry.value for entry in tensor.external_data}
                places[tensor.name] = (where["location"], where["offset"], where["length"])
        found.append(places)
    assert all(places == found[0] for places in found)
    assert {location for location, _, _ in found[0].values()} == {"static.onnx_data"}
    end = max(int(offset) + int(length) for _, offset, length in found[0].values())
    assert (exported / "onnx" / "static.onnx_data").stat().st_size == end


def test_ops_are_standard_but_for_products_of_four_bits(exported: Path) -> None:
    for _, model in graphs(exported):
        assert [entry.version for entry in model.opset_import if not entry.domain] == [21]
        contrib = {node.op_type for node in model.graph.node if node.domain}
        assert contrib == ({"MatMulNBits"} if exported.name == "int4" else set())
        ops = {node.op_type for node in model.graph.node}
        assert PRODUCTS[exported.name] in ops
    for name in variant_of(exported).widths.values():
        onnx.checker.check_model(str(exported / name), full_check=True)


def test_nothing_lies_there_unused(exported: Path) -> None:
    for _, model in graphs(exported):
        read = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= read
        assert {value.name for value in model.graph.input} <= read


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    """The embedding and the head read the same bytes in every format."""
    sizes = {}
    for tied in (True, False):
        for weights in WEIGHTS:
            checkpoint = tiny_checkpoint("llama", tie_word_embeddings=tied)
            path = tmp_path / f"{weights}-{tied}"
            export_checkpoint(checkpoint, path, weights=weights, formats=["onnx-static"])
            sizes[weights, tied] = (path / "onnx" / "static.onnx_data").stat().st_size
    assert all(sizes[weights, True] < sizes[weights, False] for weights in WEIGHTS)


def test_a_dimension_that_is_not_fixed_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("NonZero", ["x"], ["y"])
    ends = [value("x", onnx.TensorProto.FLOAT, [3])], [value("y", onnx.TensorProto.INT64, [1, "k"])]
    graph = onnx.helper.make_graph([node], "g", *ends)
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), str(tmp_path / "m.onnx"))
    with pytest.raises(BackendError, match=r"m\.onnx has no fixed shape for y"):
        fix_shapes(tmp_path / "m.onnx")


def test_an_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'onnx-static' cannot hold t5"):
        export_checkpoint(tiny_t5(), tmp_path / "x", formats=["onnx-static"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("backend", ["onnxruntime_static", "onnxruntime_static:QNN"])
def test_the_backend_by_its_own_name(backend: str) -> None:
    assert default_formats(backend) == ("onnx-static",)


def test_profiles_of_npus_lead_to_static_graphs() -> None:
    """What a profile says of its flavour is what is exported for its backends."""
    from quickdraft.device_profiles.profile import profiles

    found = {
        profile.name: default_formats(profile.run.backends[0])
        for profile in profiles().values()
        if profile.run.flavour == "static" and profile.run.backends[0].startswith("onnxruntime")
    }
    assert found == dict.fromkeys(("ryzen-ai-npu", "snapdragon-x-npu"), ("onnx-static",))


@pytest.mark.parametrize(
    ("name", "formats", "opened"),
    [
        ("onnxruntime", ["onnx-static", "onnx"], "onnxruntime"),
        ("onnxruntime", ["onnx-static"], "onnxruntime_static"),
        ("onnxruntime_static", ["onnx", "onnx-static"], "onnxruntime_static"),
        ("onnxruntime:QNN", ["onnx", "onnx-static"], "onnxruntime_static"),
        ("auto", ["onnx-static"], "onnxruntime_static"),
        ("auto", ["onnx-static", "onnx"], "onnxruntime"),
    ],
)
def test_which_backend_opens_what(
    name: str, formats: list[str], opened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QNN stands for any NPU; its session is one of the processor here."""
    monkeypatch.setattr(providers, "use", lambda options, device: ["CPUExecutionProvider"])
    monkeypatch.setattr(providers, "fallen_back", lambda sessions, device: None)
    checkpoint = tiny_checkpoint("llama", max_position_embeddings=96)
    manifest = export_checkpoint(checkpoint, tmp_path / "b", weights="fp32", formats=formats)
    backend = open_backend(tmp_path / "b", manifest, name, 1).backend
    assert backend.name == opened
    assert opening.weight_bytes(manifest, backend) < sum(e.size for e in manifest.files.values())
    tree = Tree.chain([1, 2, 3])
    assert backend.step(tree, backend.new_cache()).logits.shape[0] == 3


def test_an_npu_refuses_a_bundle_without_static_graphs(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", max_position_embeddings=96)
    manifest = export_checkpoint(checkpoint, tmp_path / "b", weights="fp32", formats=["onnx"])
    with pytest.raises(BundleError, match=r"fixed shapes only.*--format onnx-static"):
        open_backend(tmp_path / "b", manifest, "onnxruntime:QNN", None)


def test_a_provider_that_is_not_here(folder: Path) -> None:
    with pytest.raises(DeviceError, match="onnxruntime-qnn"):
        load("onnx-static", folder, "QNN")


def test_options_that_it_does_not_take(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    with pytest.raises(OptionError, match="f32 only"):
        open_backend(folder, manifest, "onnxruntime_static", None, "int8")


@pytest.mark.parametrize("changes", [{"widths": {}}, {"capacity": 32}])
def test_variants_that_are_not_static(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"no static graph|too few"):
        load("onnx-static", folder, **changes)


def test_a_damaged_graph(folder: Path, tmp_path: Path) -> None:
    manifest = open_bundle(folder).manifest
    target = manifest.roles["target"][0]
    (tmp_path / "onnx").mkdir()
    (tmp_path / target.model).write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=re.escape("cannot load model.1.onnx")):
        open_backend(tmp_path, replace(manifest, roles={"target": (target,)}), "auto", None)


def test_equal_sizes_are_written_once_more_the_same(tmp_path: Path) -> None:
    """Exports are reproducible to the byte, shapes included."""
    contents = []
    for name in "ab":
        path = write_bundle("onnx-static", tmp_path / name)
        files = sorted((path / "onnx").iterdir())
        contents.append([(file.name, file.read_bytes()) for file in files])
    assert contents[0] == contents[1]


def test_positions_are_turned_by_tables(folder: Path) -> None:
    """In float16 an angle computed from a position beyond 2,048 would be wrong by a radian."""
    for _, model in graphs(folder):
        ops = [node.op_type for node in model.graph.node]
        assert not {"Cos", "Sin"} & set(ops)
        shapes = {t.name: list(t.dims) for t in model.graph.initializer}
        assert shapes["rope.0"][0] == variant_of(folder).capacity


def test_a_whole_answer_is_the_portable_one(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", max_position_embeddings=256)
    path = tmp_path / "both"
    export_checkpoint(checkpoint, path, weights="fp32", formats=["onnx", "onnx-static"])
    texts = []
    for backend in ("onnxruntime", "onnxruntime_static"):
        with quickdraft.load(path, backend=backend, store=False) as model:
            result = model.generate("a b c " * 30, max_new_tokens=20, ignore_eos=True)
            texts.append(list(result.token_ids))
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_the_widest_graph_gives_one_row_of_logits(folder: Path) -> None:
    """So a step that wants all of many rows goes through the widths that verify."""
    model = load("onnx-static", folder)
    cache = model.new_cache()
    tokens = Tree.chain(np.arange(70))
    every = model.step(tokens, cache).logits.copy()
    one = model.step(tokens, model.new_cache(), np.array([69])).logits
    np.testing.assert_allclose(one[0], every[69], atol=1e-4)
    assert onnx_static.DATA in {Path(name).name for name in variant_of(folder).files}

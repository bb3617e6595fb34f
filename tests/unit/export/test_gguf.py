"""Whole files: what a checkpoint says of itself, split files, and looking at a file's start."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from tiny.gguf_file import F32, I32, STRING, U16, GgufFile, pair, tensor
from tiny.gguf_models import SHAPE, llama_shapes, model_file, random_arrays, tiny_llama

from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.gguf import looks_like_gguf, read_gguf

RMS = {**SHAPE, "attention.layer_norm_rms_epsilon": 1e-5}


def test_source_and_generation(tmp_path: Path) -> None:
    file = tiny_llama()
    file.pairs += [
        pair("general.name", STRING, "Tiny"),
        pair("general.license", STRING, "mit"),
        pair("general.sampling.temp", F32, 0.7),
        pair("general.sampling.top_k", I32, 20),
    ]
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.to_bytes())
    checkpoint = read_gguf(path)
    source = checkpoint.source
    assert (source.kind, source.name, source.licence) == ("gguf", "Tiny", "mit")
    assert source.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.generation == {"do_sample": True, "temperature": 0.7, "top_k": 20}
    assert checkpoint.config["eos_token_id"] == checkpoint.tokenizer.eos_token_ids[0]


def test_without_a_name_and_sampling(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama().to_bytes())
    checkpoint = read_gguf(path)
    assert (checkpoint.source.name, checkpoint.source.licence) == ("tiny", None)
    assert checkpoint.generation == {}


def test_bad_sampling_is_refused(tmp_path: Path) -> None:
    file = tiny_llama()
    file.pairs.append(pair("general.sampling.temp", F32, float("inf")))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.to_bytes())
    with pytest.raises(CheckpointError, match=r"general\.sampling\.temp"):
        read_gguf(path)


def _split(folder: Path, parts: int = 3) -> tuple[list[Path], dict[str, np.ndarray]]:
    arrays = random_arrays(llama_shapes())
    names = list(arrays)
    paths = []
    for index in range(parts):
        file = model_file("qwen2", RMS, {name: arrays[name] for name in names[index::parts]})
        if index:
            file.pairs = [pair("general.architecture", STRING, "qwen2")]
        file.pairs += [
            pair("split.no", U16, index),
            pair("split.count", U16, parts),
            pair("split.tensors.count", I32, len(names)),
        ]
        paths.append(folder / f"tiny-{index + 1:05}-of-{parts:05}.gguf")
        paths[-1].write_bytes(file.to_bytes())
    return paths, arrays


def test_split_files_are_read_from_any_part(tmp_path: Path) -> None:
    paths, arrays = _split(tmp_path)
    first, last = read_gguf(paths[0]), read_gguf(paths[2])
    assert len(first.weights) == len(arrays)
    assert first.source.fingerprint == last.source.fingerprint
    for name, source in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"),
    ):
        assert np.array_equal(last.weights[name].dense(), arrays[source])


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths, _ = _split(tmp_path)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 parts .* tiny-00002-of-00003\.gguf"):
        read_gguf(paths[0])


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    paths, _ = _split(tmp_path)
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        read_gguf(paths[0].rename(tmp_path / "model.gguf"))


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    paths, _ = _split(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(CheckpointError, match="is in two parts"):
        read_gguf(paths[0])
    paths[2].write_bytes(
        GgufFile([pair("split.count", U16, 3)], [tensor("x", np.ones(8))]).to_bytes()
    )
    with pytest.raises(CheckpointError, match="belong to different models"):
        read_gguf(paths[0])


def test_a_hostile_part_count_is_refused_quickly(tmp_path: Path) -> None:
    start = time.perf_counter()
    for name in ("m-00001-of-99999.gguf", "m-00001-of-00000.gguf"):
        (tmp_path / name).write_bytes(tiny_llama().to_bytes())
        with pytest.raises(CheckpointError, match="claims"):
            read_gguf(tmp_path / name)
    assert time.perf_counter() - start < 1


def test_looks_like_gguf(tmp_path: Path) -> None:
    good, bad, short = (tmp_path / name for name in ("good", "bad.gguf", "short.gguf"))
    good.write_bytes(tiny_llama().to_bytes())
    bad.write_bytes(b"<html>")
    short.write_bytes(b"GG")
    assert looks_like_gguf(good)
    for path in (bad, short, tmp_path, tmp_path / "nothing"):
        assert not looks_like_gguf(path)

"""CTranslate2 folders of Whisper as checkpoints: what faster-whisper runs.

Names of variables: CTranslate2's `WhisperSpec`. It joins query, key and value projections, and
keeps no config: sizes follow from shapes, special tokens from their text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.base import Checkpoint, TokenizerFiles, WeightMap
from quickdraft.export.checkpoints.ctranslate2_file import Variables, read_variables
from quickdraft.export.checkpoints.hf import read_json_file
from quickdraft.export.checkpoints.hf_tokenizer import read_tokenizer_files
from quickdraft.export.checkpoints.whisper_tokens import whisper_generation
from quickdraft.export.weights import Weight
from quickdraft.manifest import SourceEntry

MODEL = "model.bin"
_MAX_LAYERS = 256
_GELU = 3
"""Its number of the activation: not the approximation by tanh, which is 1."""


def read_ctranslate2(folder: Path) -> Checkpoint:
    """Read a folder with `model.bin` and `tokenizer.json`; weights stay on disk until loaded.

    Raises:
        CheckpointError: a file is missing or damaged. UnsupportedModel: not a Whisper.
        TokenizerError: tokenizer.json cannot be used.
    """
    variables = read_variables(folder / MODEL)
    if variables.spec != "WhisperSpec":
        raise UnsupportedModel(
            f"{folder / MODEL} holds a {variables.spec}; of CTranslate2's models Whisper is read: "
            "give the checkpoint it was converted from"
        )
    sizes = _Sizes.of(variables)
    weights = dict(_weights(variables, sizes))
    found = read_tokenizer_files(folder, lambda name: read_json_file(folder / name), {}, {})
    settings = read_json_file(folder / "config.json")
    special, generation = whisper_generation(folder, found.tokenizer_json, settings)
    generation["max_length"] = sizes.config["max_target_positions"]
    config = {**sizes.config, **special}
    end = int(special["eos_token_id"])
    with (folder / MODEL).open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(
        config=config,
        weights=WeightMap(weights),
        tokenizer=TokenizerFiles(found.tokenizer_json, None, None, (end,), add_bos=False),
        generation=generation,
        source=SourceEntry("ctranslate2", folder.resolve().name, fingerprint),
    )


@dataclass(frozen=True)
class _Sizes:
    encoder_layers: int
    decoder_layers: int
    width: int
    config: Mapping[str, Any]

    @staticmethod
    def of(variables: Variables) -> _Sizes:
        """What shapes say, as transformers' config of a Whisper."""
        vocab, width = variables.weight("decoder/embeddings/weight").shape
        encoder, decoder = (_count_layers(variables, side) for side in ("encoder", "decoder"))
        default = variables.number("encoder/num_heads")
        config = {
            "model_type": "whisper",
            "d_model": width,
            "vocab_size": vocab,
            "encoder_layers": encoder,
            "decoder_layers": decoder,
            "encoder_attention_heads": default,
            "decoder_attention_heads": variables.number("decoder/num_heads", default),
            "encoder_ffn_dim": variables.weight("encoder/layer_0/ffn/linear_0/weight").shape[0],
            "decoder_ffn_dim": variables.weight("decoder/layer_0/ffn/linear_0/weight").shape[0],
            "num_mel_bins": variables.weight("encoder/conv1/weight").shape[1],
            "max_source_positions": _positions(variables, "encoder"),
            "max_target_positions": _positions(variables, "decoder"),
            "activation_function": "gelu",
            "scale_embedding": bool(variables.number("decoder/scale_embeddings", 0)),
            "tie_word_embeddings": True,
        }
        if variables.number("decoder/activation", _GELU) != _GELU:
            raise UnsupportedModel(f"{variables.path}: the activation is not the exact GELU")
        if not variables.number("decoder/pre_norm", 1):
            raise UnsupportedModel(f"{variables.path}: norms come after the layers, not before")
        return _Sizes(encoder, decoder, width, config)


def _positions(variables: Variables, side: str) -> int:
    return variables.weight(f"{side}/position_encodings/encodings").shape[0]


def _count_layers(variables: Variables, side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in variables and count < _MAX_LAYERS:
        count += 1
    if not count:
        raise CheckpointError(f"{variables.path} has no layers of the {side}")
    return count


def _weights(variables: Variables, sizes: _Sizes) -> Iterator[tuple[str, Weight]]:
    """Every weight under the name transformers gives it."""
    for name in ("conv1", "conv2"):
        yield from _plain(variables, f"encoder/{name}", f"model.encoder.{name}")
    yield "model.decoder.embed_tokens.weight", variables.weight("decoder/embeddings/weight")
    for side in ("encoder", "decoder"):
        places = variables.weight(f"{side}/position_encodings/encodings")
        yield f"model.{side}.embed_positions.weight", places
        yield from _norm(variables, f"{side}/layer_norm", f"model.{side}.layer_norm")
    for layer in range(sizes.encoder_layers):
        yield from _layer(variables, f"encoder/layer_{layer}", f"model.encoder.layers.{layer}")
    for layer in range(sizes.decoder_layers):
        ours, theirs = f"model.decoder.layers.{layer}", f"decoder/layer_{layer}"
        yield from _layer(variables, theirs, ours)
        yield from _norm(
            variables, f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm"
        )
        attention = f"{ours}.encoder_attn"
        yield from _plain(variables, f"{theirs}/attention/linear_0", f"{attention}.q_proj")
        yield from _split(variables, f"{theirs}/attention/linear_1", attention, "kv")
        yield from _plain(variables, f"{theirs}/attention/linear_2", f"{attention}.out_proj")


def _layer(variables: Variables, theirs: str, ours: str) -> Iterator[tuple[str, Weight]]:
    """What layers of both sides have."""
    attention = f"{theirs}/self_attention"
    yield from _norm(variables, f"{attention}/layer_norm", f"{ours}.self_attn_layer_norm")
    yield from _split(variables, f"{attention}/linear_0", f"{ours}.self_attn", "qkv")
    yield from _plain(variables, f"{attention}/linear_1", f"{ours}.self_attn.out_proj")
    yield from _norm(variables, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
    yield from _plain(variables, f"{theirs}/ffn/linear_0", f"{ours}.fc1")
    yield from _plain(variables, f"{theirs}/ffn/linear_1", f"{ours}.fc2")


def _plain(variables: Variables, theirs: str, ours: str) -> Iterator[tuple[str, Weight]]:
    yield f"{ours}.weight", variables.weight(f"{theirs}/weight")
    yield f"{ours}.bias", variables.weight(f"{theirs}/bias")


def _norm(variables: Variables, theirs: str, ours: str) -> Iterator[tuple[str, Weight]]:
    yield f"{ours}.weight", variables.weight(f"{theirs}/gamma")
    yield f"{ours}.bias", variables.weight(f"{theirs}/beta")


def _split(
    variables: Variables, theirs: str, ours: str, order: str
) -> Iterator[tuple[str, Weight]]:
    """Projections that the file joins, one after another; those of keys have no bias."""
    weight, bias = variables.weight(f"{theirs}/weight"), variables.weight(f"{theirs}/bias")
    rows, rest = divmod(weight.shape[0], len(order))
    if rest or bias.shape != weight.shape[:1]:
        raise CheckpointError(f"{variables.path}: {theirs!r} does not hold {len(order)} matrices")
    for index, letter in enumerate(order):
        part = slice(index * rows, (index + 1) * rows)
        name = f"{ours}.{letter}_proj"
        yield f"{name}.weight", weight.take_rows(part, f"{name}.weight")
        if letter != "k":
            yield f"{name}.bias", bias.take_rows(part, f"{name}.bias")
        elif np.any(bias.dense()[part]):
            raise UnsupportedModel(f"{variables.path}: {theirs!r} has a bias of its keys")

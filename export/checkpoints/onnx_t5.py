"""T5 checkpoints that exist only as the ONNX graphs that optimum's exporter wrote, quantised.

A folder of `encoder.onnx`, `decoder.onnx` and `tokenizer.json`. The weights are read back out of
the graphs: nodes keep the names of the modules they came from, and 8-bit matrices have one scale
each, so that as blocks of ours they keep their values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.base import Checkpoint, TokenizerFiles, WeightMap
from quickdraft.export.checkpoints.hf import read_json_file
from quickdraft.export.checkpoints.hf_tokenizer import read_tokenizer_files
from quickdraft.export.checkpoints.onnx_tensors import Graph, Node, read_graph
from quickdraft.export.weights import Blocked, Dense, Weight, dense_weight
from quickdraft.manifest import SourceEntry

GRAPHS = ("encoder.onnx", "decoder.onnx")
_GROUP = 32
_BYTE_ZERO = 128
_HALF = np.finfo(np.float16)
_EMBEDDING = "shared.weight"
# What follows the name of whoever wrapped the model: enc., m.decoder., /m/decoder/, ...
_NORM = re.compile(r"(block\.\d+\.layer\.\d\.layer_norm|final_layer_norm)\.weight")
_MATRIX = re.compile(
    r"(block\.\d+)/(layer\.\d)/(SelfAttention|EncDecAttention|DenseReluDense)/(q|k|v|o|w\w+)/MatMul"
)


def read_onnx_t5(folder: Path) -> Checkpoint:
    """Read a folder of graphs; weights stay on disk until they are loaded.

    Raises:
        CheckpointError: a file is missing or damaged. UnsupportedModel: the graphs are not those of
            a T5, or keep their weights in another way. TokenizerError: as read_tokenizer_files.
    """
    weights: dict[str, Weight] = {}
    for side in ("encoder", "decoder"):
        weights |= _read_side(read_graph(folder / f"{side}.onnx"), side)
    tokens = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    found = read_tokenizer_files(folder, lambda name: read_json_file(folder / name), tokens, tokens)
    return Checkpoint(
        config={**_config(folder, weights), **tokens},
        weights=WeightMap(weights),
        tokenizer=TokenizerFiles(found.tokenizer_json, None, None, (1,), add_bos=False),
        generation=tokens,
        source=SourceEntry("onnx", folder.resolve().name, _fingerprint(folder)),
    )


def _read_side(graph: Graph, side: str) -> dict[str, Weight]:
    """The weights of one graph under the names of transformers."""
    weights = dict(_named(graph, side))
    for node in graph.nodes:
        if node.op not in ("MatMulInteger", "MatMul") or len(node.inputs) < 2:
            continue
        match = _MATRIX.search(node.name)
        if match is not None:
            weights[f"{side}.{'.'.join(match.groups())}.weight"] = _matrix(graph, node)
        elif "/lm_head/" in node.name:
            weights["lm_head.weight"] = _matrix(graph, node)
    return weights


def _named(graph: Graph, side: str) -> Iterator[tuple[str, Weight]]:
    """Norms, tables and embeddings, which keep their names."""
    for name in graph.tensors:
        plain = name.removesuffix("_quantized")
        norm = _NORM.search(plain)
        if norm is not None:
            yield f"{side}.{norm[0]}", dense_weight(name, graph.values(name).astype(np.float32))
        elif plain.endswith("relative_attention_bias.weight"):
            where = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            yield where, _table(graph, name)
        elif plain.endswith(("shared.weight", "embed_tokens.weight")):
            yield _EMBEDDING, _table(graph, name)


def _table(graph: Graph, name: str) -> Weight:
    """Rows that are looked up, 8-bit with one scale and one zero point, or floats."""
    values = graph.values(name)
    if not name.endswith("_quantized"):
        return Weight(name, values.shape, "F32", lambda: Dense(values))
    scale, zero = _quantisation(graph, name.removesuffix("_quantized"))
    return _blocks(name, values, scale, zero)


def _matrix(graph: Graph, node: Node) -> Weight:
    """The second factor of a product, outputs first."""
    name = node.inputs[1]
    values = graph.values(name)
    if values.ndim != 2:
        raise UnsupportedModel(f"{graph.path}: {name[:120]!r} is no matrix")
    if node.op == "MatMul":
        return Weight(name, values.T.shape, "F32", lambda: Dense(np.ascontiguousarray(values.T)))
    scale, zero = _quantisation(graph, name.removesuffix("_quantized"))
    return _blocks(name, values.T, scale, zero)


def _quantisation(graph: Graph, name: str) -> tuple[np.float32, int]:
    """Scale and zero point of a tensor as a whole."""
    scale, zero = graph.values(f"{name}_scale"), graph.values(f"{name}_zero_point")
    if scale.size != 1 or zero.size != 1:
        raise UnsupportedModel(
            f"{graph.path}: {name[:120]!r} has {scale.size} scales; quantise it with one per tensor"
        )
    return np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])


def _blocks(name: str, values: NDArray[Any], scale: np.float32, zero: int) -> Weight:
    """8-bit values as blocks, all of one scale; dense where blocks do not divide a row.

    Blocks hold scales in float16, so a matrix as a whole may come out 0.05 % larger or smaller,
    far less than its 8 bits leave open; as floats it would be four times as large, and as slow.
    """
    rows, columns = values.shape
    if _HALF.smallest_normal <= scale <= _HALF.max:
        scale = np.float32(np.float16(scale))
    if columns % _GROUP:

        def dense() -> Dense:
            return Dense((values.astype(np.float32) - np.float32(zero)) * scale)

        return Weight(name, values.shape, "Q8", dense)
    shift = _BYTE_ZERO if values.dtype == np.int8 else 0

    def load() -> Blocked:
        codes = np.ascontiguousarray(values.astype(np.int16) + shift).astype(np.uint8)
        scales = np.full((rows, columns // _GROUP), scale, np.float32)
        return Blocked(codes, scales, None, bits=8, group=_GROUP, zero=zero + shift)

    return Weight(name, values.shape, "Q8", load)


def _config(folder: Path, weights: Mapping[str, Weight]) -> dict[str, Any]:
    """Sizes of a T5, from shapes. What leaves no trace in them is as in all T5 1.1 models."""
    try:
        vocab, width = weights[_EMBEDDING].shape
        attention = "encoder.block.0.layer.0.SelfAttention"
        buckets, heads = weights[f"{attention}.relative_attention_bias.weight"].shape
        inner = weights[f"{attention}.q.weight"].shape[0]
        first = weights.get("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")
        plain = weights.get("encoder.block.0.layer.1.DenseReluDense.wi.weight")
        feed_forward = (first or plain).shape[0]  # type: ignore[union-attr]
    except (KeyError, AttributeError, ValueError) as error:
        raise UnsupportedModel(
            f"{folder} holds encoder.onnx and decoder.onnx, but not those of a T5 as optimum "
            f"exports it (missing: {error}); give the checkpoint they were made from"
        ) from None
    return {
        "model_type": "t5",
        "vocab_size": vocab,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": feed_forward,
        "num_heads": heads,
        "num_layers": _layers(weights, "encoder"),
        "num_decoder_layers": _layers(weights, "decoder"),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu" if first else "relu",
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "is_encoder_decoder": True,
    }


def _layers(weights: Mapping[str, Weight], side: str) -> int:
    found = {name.split(".")[2] for name in weights if name.startswith(f"{side}.block.")}
    if found != set(map(str, range(len(found)))):
        raise CheckpointError(f"the graph of the {side} lacks layers: it has {sorted(found)}")
    return len(found)


def _fingerprint(folder: Path) -> str:
    hashes = []
    for name in GRAPHS:
        with (folder / name).open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()

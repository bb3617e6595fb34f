"""The graphs of a T5 of a few numbers, named and quantised as optimum and ONNX Runtime do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VOCAB, WIDTH, HEADS, KEYS, INNER, BUCKETS = 12, 32, 2, 32, 64, 4
_ZERO = 130


def quantise(values: NDArray[np.float32], zero: int) -> tuple[NDArray[np.integer], np.float32]:
    scale = np.float32(np.float16(np.abs(values).max() / 120))  # what blocks hold as it is
    kind = np.int8 if zero == 0 else np.uint8
    return (np.round(values / scale) + zero).clip(-128 if zero == 0 else 0, 255).astype(kind), scale


class Side:
    """Collects one graph and what its weights stand for."""

    def __init__(self, name: str, wrapper: str, seed: int) -> None:
        self.name, self._wrapper = name, wrapper
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        self.expected: dict[str, NDArray[np.float32]] = {}

    def _quantised(self, name: str, values: NDArray[np.float32], zero: int) -> NDArray[np.float32]:
        codes, scale = quantise(values, zero)
        self._tensors.append(numpy_helper.from_array(codes, f"{name}_quantized"))
        self._tensors.append(numpy_helper.from_array(np.array(scale), f"{name}_scale"))
        kind = TensorProto.INT8 if zero == 0 else TensorProto.UINT8
        # In int32_data, as ONNX Runtime's quantiser writes it.
        self._tensors.append(helper.make_tensor(f"{name}_zero_point", kind, [], [zero]))
        return (codes.astype(np.float32) - np.float32(zero)) * scale

    def _values(self, *shape: int) -> NDArray[np.float32]:
        return self._rng.normal(0, 0.4, shape).astype(np.float32)

    def matrix(self, module: str, rows: int, columns: int, expected: str) -> None:
        name = f"onnx::MatMul_{len(self._tensors)}"
        values = self._quantised(name, self._values(columns, rows), 0)
        node = f"/{self._wrapper}{module}/MatMul_quant"
        inputs = ["x", f"{name}_quantized", "z", f"{name}_zero_point"]
        self._nodes.append(helper.make_node("MatMulInteger", inputs, ["y"], node))
        self.expected[expected] = values.T

    def table(self, name: str, rows: int, columns: int, expected: str) -> None:
        self.expected[expected] = self._quantised(name, self._values(rows, columns), _ZERO)

    def norm(self, name: str, prefix: str) -> None:
        values = self._values(WIDTH)
        self._tensors.append(numpy_helper.from_array(values, f"{prefix}{name}"))
        self.expected[f"{self.name}.{name}"] = values

    def write(self, folder: Path) -> None:
        graph = helper.make_graph(self._nodes, self.name, [], [], self._tensors)
        onnx.save(helper.make_model(graph), str(folder / f"{self.name}.onnx"))


def write_folder(folder: Path, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Write the folder; gives the weights it stands for by the names of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, decoder = Side("encoder", "enc/", seed), Side("decoder", "m/decoder/", seed)
    encoder.table("enc.embed_tokens.weight", VOCAB, WIDTH, "shared.weight")
    decoder.table("m.shared.weight", VOCAB, WIDTH, "shared.weight")
    for side, prefix, kinds in (
        (encoder, "enc.", ("SelfAttention", "DenseReluDense")),
        (decoder, "m.decoder.", ("SelfAttention", "EncDecAttention", "DenseReluDense")),
    ):
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        side.table(f"{prefix}{bias}", BUCKETS, HEADS, f"{side.name}.{bias}")
        for layer, kind in enumerate(kinds):
            side.norm(f"block.0.layer.{layer}.layer_norm.weight", prefix)
            shapes = {"q": (HEADS * KEYS, WIDTH), "k": (HEADS * KEYS, WIDTH)}
            shapes |= {"v": (HEADS * KEYS, WIDTH), "o": (WIDTH, HEADS * KEYS)}
            if kind == "DenseReluDense":
                shapes = {"wi_0": (INNER, WIDTH), "wi_1": (INNER, WIDTH), "wo": (WIDTH, INNER)}
            for part, (rows, columns) in shapes.items():
                expected = f"{side.name}.block.0.layer.{layer}.{kind}.{part}.weight"
                side.matrix(f"block.0/layer.{layer}/{kind}/{part}", rows, columns, expected)
        side.norm("final_layer_norm.weight", prefix)
    decoder._wrapper = "m/"
    decoder.matrix("lm_head", VOCAB, WIDTH, "lm_head.weight")
    encoder.write(folder)
    decoder.write(folder)
    words = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return {**encoder.expected, **decoder.expected}

"""A tiny random T5 made with NumPy alone, as a checkpoint folder."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tiny.checkpoint import EOS, VOCAB_SIZE, tiny_tokenizer_files
from tiny.hf_folder import write_hf_folder

from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.weights import Weight, dense_weight
from quickdraft.manifest import SourceEntry

_CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "eos_token_id": EOS,
}


def tiny_t5(**config: Any) -> Checkpoint:
    """A random T5: vocabulary 320, one layer a stack, hidden 32, unless `config` says otherwise."""
    full = {**_CONFIG, **config}
    return Checkpoint(
        config=full,
        weights=WeightMap({name: _random(name, shape) for name, shape in _shapes(full).items()}),
        tokenizer=tiny_tokenizer_files(),
        generation={"decoder_start_token_id": 0, "eos_token_id": EOS},
        source=SourceEntry("huggingface", "tiny-t5", "0" * 64),
    )


def write_t5(folder: Path, **config: Any) -> None:
    """The same as a folder."""
    write_hf_folder(folder, checkpoint=tiny_t5(**config))


def _random(name: str, shape: tuple[int, ...]) -> Weight:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.normal(size=shape) * (1.0 if len(shape) == 1 else 1.3 / shape[-1] ** 0.5)
    return dense_weight(name, values.astype(np.float32))


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide = config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (config["vocab_size"], hidden)}
    for stack, kinds in (("encoder", ["Self"]), ("decoder", ["Self", "EncDec"])):
        for index in range(config["num_layers"]):
            base = f"{stack}.block.{index}.layer"
            for place, kind in enumerate(kinds):
                at = f"{base}.{place}.{kind}Attention"
                shapes |= {f"{at}.{part}.weight": (inner, hidden) for part in "qkv"}
                shapes[f"{at}.o.weight"] = (hidden, inner)
            dense = f"{base}.{len(kinds)}.DenseReluDense"
            shapes |= {f"{dense}.{part}.weight": (wide, hidden) for part in ("wi_0", "wi_1")}
            shapes[f"{dense}.wo.weight"] = (hidden, wide)
            norms = range(len(kinds) + 1)
            shapes |= {f"{base}.{place}.layer_norm.weight": (hidden,) for place in norms}
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[table] = (config["relative_attention_num_buckets"], config["num_heads"])
        shapes[f"{stack}.final_layer_norm.weight"] = (hidden,)
    return shapes

"""Write a T5 in CTranslate2's form, with the specifications its makers publish for that.

    PYTHON convert_t5.py CHECKPOINT FOLDER

PYTHON is the interpreter of CTranslate2's environment. CHECKPOINT holds weights.npz, float32 under
Hugging Face's names, config.json and tokenizer.json (bench/titles.py writes it). FOLDER gets
model.bin, config.json, shared_vocabulary.json and tokenizer.json; weights stay float32, since
CTranslate2 rounds them when it opens a model. Imports nothing of ours.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from tokenizers import Tokenizer

_ACTIVATIONS = {
    "relu": common_spec.Activation.RELU,
    "gelu_new": common_spec.Activation.GELUTanh,
    "silu": common_spec.Activation.SWISH,
}


class Converter:
    """Fills a specification from weights by name."""

    def __init__(self, weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._weights = weights
        self._config = config

    def spec(self) -> Any:
        """The whole model."""
        config = self._config
        kind = config["feed_forward_proj"].removeprefix("gated-")
        gated = config["feed_forward_proj"].startswith("gated-")
        made = transformer_spec.TransformerSpec.from_config(
            (config["num_layers"], config["num_decoder_layers"]),
            config["num_heads"],
            pre_norm=True,
            # T5's gated GELU is the one with a hyperbolic tangent.
            activation=_ACTIVATIONS["gelu_new" if kind == "gelu" else kind],
            ffn_glu=gated,
            relative_attention_bias=True,
            rms_norm=True,
        )
        self._stack(made.encoder, "encoder")
        self._stack(made.decoder, "decoder")
        tied = config["tie_word_embeddings"]
        made.decoder.projection.weight = self._weights[
            "shared.weight" if tied else "lm_head.weight"
        ]
        if tied:
            made.decoder.scale_outputs = config["d_model"] ** -0.5
        return made

    def _stack(self, spec: Any, name: str) -> None:
        spec.layer_norm.gamma = self._weights[f"{name}.final_layer_norm.weight"]
        embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
        embeddings.weight = self._weights["shared.weight"]
        spec.scale_embeddings = False
        table = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        for index, layer in enumerate(spec.layer):
            base = f"{name}.block.{index}.layer"
            own = layer.self_attention
            self._attention(own, f"{base}.0", "SelfAttention", ("qkv",))
            own.relative_attention_bias = self._weights[table]
            own.relative_attention_max_distance = np.int32(
                self._config["relative_attention_max_distance"]
            )
            last = 1
            if name == "decoder":
                self._attention(layer.attention, f"{base}.1", "EncDecAttention", ("q", "kv"))
                last = 2
            self._mlp(layer.ffn, f"{base}.{last}")

    def _attention(self, spec: Any, base: str, name: str, fused: tuple[str, ...]) -> None:
        spec.queries_scale = 1.0
        for place, letters in enumerate(fused):
            parts = [self._weights[f"{base}.{name}.{letter}.weight"] for letter in letters]
            spec.linear[place].weight = np.concatenate(parts)
        spec.linear[-1].weight = self._weights[f"{base}.{name}.o.weight"]
        spec.layer_norm.gamma = self._weights[f"{base}.layer_norm.weight"]

    def _mlp(self, spec: Any, base: str) -> None:
        dense = f"{base}.DenseReluDense"
        if hasattr(spec, "linear_0_noact"):
            spec.linear_0.weight = self._weights[f"{dense}.wi_0.weight"]
            spec.linear_0_noact.weight = self._weights[f"{dense}.wi_1.weight"]
        else:
            spec.linear_0.weight = self._weights[f"{dense}.wi.weight"]
        spec.linear_1.weight = self._weights[f"{dense}.wo.weight"]
        spec.layer_norm.gamma = self._weights[f"{base}.layer_norm.weight"]


def main(checkpoint: Path, folder: Path) -> None:
    """Convert once; FOLDER appears when it is whole."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with np.load(checkpoint / "weights.npz") as weights:
        spec = Converter(dict(weights), config).spec()
    rows = len(spec.decoder.projection.weight)
    texts = [tokenizer.id_to_token(i) or f"<unused_{i}>" for i in range(rows)]
    spec.register_source_vocabulary(texts)
    spec.register_target_vocabulary(texts)
    spec.config.eos_token, spec.config.unk_token = "</s>", "<unk>"
    spec.config.bos_token = spec.config.decoder_start_token = "<pad>"
    spec.validate()
    spec.optimize()
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    spec.save(str(unfinished))
    shutil.copyfile(checkpoint / "tokenizer.json", unfinished / "tokenizer.json")
    unfinished.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

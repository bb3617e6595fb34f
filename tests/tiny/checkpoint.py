"""Tiny random checkpoints made with NumPy alone, for tests that need a model but no torch."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quickdraft.export.checkpoints.base import Checkpoint, TokenizerFiles, WeightMap
from quickdraft.export.weights import Weight, dense_weight
from quickdraft.manifest import SourceEntry

VOCAB_SIZE = 320
BOS, EOS, START, END = 0, 1, 2, 3
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Shapes = dict[str, tuple[int, ...]]


def tiny_checkpoint(family: str = "llama", seed: int = 0, **config: Any) -> Checkpoint:
    """A random model: vocabulary 320, 2 layers, hidden 32, unless `config` says otherwise.

    family: llama or gemma2. The logits differ clearly between tokens, so that greedy decoding
    is not decided by rounding.
    """
    defaults, shapes_of = _FAMILIES[family]
    full = {**defaults, **config}
    shapes = shapes_of(full)
    weights = {name: _random(name, shape, seed, family) for name, shape in shapes.items()}
    fingerprint = hashlib.sha256(f"{seed}{json.dumps(full, sort_keys=True)}".encode())
    return Checkpoint(
        config=full,
        weights=WeightMap(weights),
        tokenizer=tiny_tokenizer_files(),
        generation={"bos_token_id": BOS, "eos_token_id": [EOS, END]},
        source=SourceEntry("huggingface", f"tiny-{family}", fingerprint.hexdigest()),
    )


def tiny_tokenizer_files() -> TokenizerFiles:
    """The tokenizer of all tiny models, with a ChatML template."""
    return TokenizerFiles(
        tokenizer_json=tiny_tokenizer_json(),
        chat_template=CHAT_TEMPLATE,
        bos_token_id=BOS,
        eos_token_ids=(EOS, END),
        add_bos=False,
        special_tokens={"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS]},
    )


@cache
def tiny_tokenizer_json() -> bytes:
    """A byte-level BPE: 4 special tokens, 256 bytes, then merges of frequent pairs, 320 in all."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*SPECIAL, *letters])}
    merges = []
    pairs = "Ġt h e|i n|a n|r e|Ġ a|Ġ s|o n|e r|a t|Ġ w|e n|i t|o r|e s|i s|Ġ o|e d|Ġ c|a l|Ġ b"
    for pair in pairs.replace("Ġt h e", "Ġ t|h e|Ġt he").split("|"):
        left, right = pair.split(" ")
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
    while len(vocab) < VOCAB_SIZE:  # three-letter tokens fill the rest
        left, right = merges[len(vocab) % 20]
        letter = letters[len(vocab) % 26 + 33]
        merges.append((left + right, letter))
        vocab.setdefault(left + right + letter, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer.to_str().encode()


def _random(name: str, shape: tuple[int, ...], seed: int, family: str) -> Weight:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = generator.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        centre = 0.0 if family.startswith("gemma") else 1.0
        values = (centre + 0.1 * values).astype(np.float32)
    else:
        values *= np.float32(1.5 / np.sqrt(shape[-1])) if "embed" not in name else np.float32(1)
    return dense_weight(name, values)


def _layer_shapes(config: Mapping[str, Any], norms: list[str]) -> Shapes:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        base = f"model.layers.{i}"
        shapes |= {
            f"{base}.self_attn.q_proj.weight": (q, hidden),
            f"{base}.self_attn.k_proj.weight": (kv, hidden),
            f"{base}.self_attn.v_proj.weight": (kv, hidden),
            f"{base}.self_attn.o_proj.weight": (hidden, q),
            f"{base}.mlp.gate_proj.weight": (width, hidden),
            f"{base}.mlp.up_proj.weight": (width, hidden),
            f"{base}.mlp.down_proj.weight": (hidden, width),
        }
        shapes |= {f"{base}.{norm}.weight": (hidden,) for norm in norms}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _llama_shapes(config: Mapping[str, Any]) -> Shapes:
    return _layer_shapes(config, ["input_layernorm", "post_attention_layernorm"])


def _gemma2_shapes(config: Mapping[str, Any]) -> Shapes:
    sandwich = ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return _layer_shapes(config, ["input_layernorm", "post_attention_layernorm", *sandwich])


_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}

_FAMILIES: dict[str, tuple[dict[str, Any], Callable[[Mapping[str, Any]], Shapes]]] = {
    "llama": (
        {**_COMMON, "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False},
        _llama_shapes,
    ),
    "gemma2": (
        {
            **_COMMON,
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        _gemma2_shapes,
    ),
}

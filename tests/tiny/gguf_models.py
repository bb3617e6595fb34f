"""Tiny models as GGUF files: tokenizers of both kinds, and weights in the order converters give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tiny.gguf_file import (
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    GgufFile,
    Tensor,
    array,
    pair,
    tensor,
)  # fmt: skip

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġ Ġ")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, by byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(b if b in kept else 256 + moved.index(b)) for b in range(256)]


def byte_level(pre: str | tuple[int, Any] | None = "smollm", **changes: Any) -> list[bytes]:
    """Metadata of a `gpt2` tokenizer; `changes` replace whole values (None drops a key)."""
    words = [*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), *SPECIALS]
    first = len(words) - len(SPECIALS)
    values: dict[str, tuple[Any, ...] | None] = {
        "model": (STRING, "gpt2"),
        "pre": (STRING, pre) if isinstance(pre, str) else pre,
        "tokens": (STRING, [*words]),
        "token_type": (I32, [NORMAL] * first + [CONTROL] * len(SPECIALS)),
        "merges": (STRING, [*MERGES]),
        "bos_token_id": (U32, first + 1),
        "eos_token_id": (U32, first + 2),
        "unknown_token_id": (U32, first),
        "add_bos_token": (BOOL, False),
    }
    return _tokenizer({**values, **changes})


def sentencepiece(prefix: bool = True, **changes: Any) -> list[bytes]:
    """Metadata of a `llama` tokenizer that knows a few words and all bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    pieces = ["▁h", "he", "ll", "▁he", "▁hell", "▁hello", "▁w", "or", "ld", "▁wor", "▁world"]
    letters = sorted(set("▁helloworld"))
    scores = [0.0] * len(words) + [-1.0 - i for i in range(len(pieces) + len(letters))]
    words += [*pieces, *letters]
    types += [NORMAL] * (len(pieces) + len(letters))
    values: dict[str, tuple[Any, ...] | None] = {
        "model": (STRING, "llama"),
        "tokens": (STRING, words),
        "token_type": (I32, types),
        "scores": (F32, scores),
        "add_space_prefix": (BOOL, prefix),
    }
    return _tokenizer({**values, **changes})


def _tokenizer(values: Mapping[str, tuple[Any, ...] | None]) -> list[bytes]:
    pairs = []
    for name, value in values.items():
        if value is not None:
            write = array if isinstance(value[1], list) else pair
            pairs.append(write(f"tokenizer.ggml.{name}", *value))
    return pairs


def metadata(architecture: str, values: Mapping[str, Any]) -> list[bytes]:
    """Hyper-parameters: integers as u32, floats as f32, lists as arrays."""
    pairs = [pair("general.architecture", STRING, architecture)]
    for name, value in values.items():
        key = f"{architecture}.{name}"
        if isinstance(value, list):
            pairs.append(array(key, BOOL if isinstance(value[0], bool) else I32, value))
        else:
            kinds = {bool: BOOL, int: U32, float: F32, str: STRING}
            pairs.append(pair(key, kinds[type(value)], value))
    return pairs


def model_file(
    architecture: str,
    values: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    tokenizer: Sequence[bytes] = (),
) -> GgufFile:
    """A file with float32 tensors."""
    pairs = [*metadata(architecture, values), *(tokenizer or byte_level())]
    return GgufFile(pairs, [tensor(name, value) for name, value in arrays.items()])


SHAPE: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "block_count": 1,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
"""Hyper-parameters that nearly all tiny models share: 4 heads of 8 over 2 KV heads."""


def llama_shapes(vocabulary: int = 280) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes of a llama of SHAPE."""
    return {
        "token_embd.weight": (vocabulary, 32),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.ffn_gate.weight": (48, 32),
        "blk.0.ffn_up.weight": (48, 32),
        "blk.0.ffn_down.weight": (32, 48),
        "output_norm.weight": (32,),
    }


def random_arrays(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal values."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def tiny_llama() -> GgufFile:
    """A llama whose matrices are Q4_0 and Q8_0 (Q4_0 rows of 48 do not exist: F32)."""
    rng = np.random.default_rng(1)
    values = {**SHAPE, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}
    tensors = []
    for name, shape in llama_shapes().items():
        if len(shape) == 1 or shape[1] % 32:
            tensors.append(tensor(name, rng.standard_normal(shape, np.float32)))
            continue
        kind, nbytes = (8, 34) if name == "token_embd.weight" else (2, 18)
        blocks = rng.integers(0, 256, (shape[0] * shape[1] // 32, nbytes), np.uint8)
        scales = rng.uniform(0.01, 0.02, len(blocks)).astype("<f2")
        blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
        tensors.append(Tensor(name, shape[::-1], blocks.tobytes(), kind))
    return GgufFile([*metadata("llama", values), *byte_level()], tensors)

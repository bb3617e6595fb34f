"""A random Whisper of three languages, and its tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny.checkpoint import tiny_tokenizer_files
from tiny.random_weights import RandomWeights

from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.manifest import SourceEntry

WORDS = 20
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|yue|>"),
    *("<|translate|>", "<|transcribe|>", "<|nospeech|>", "<|notimestamps|>"),
)
TOKEN = {name: WORDS + place for place, name in enumerate(SPECIAL)}
TIMES = 12
VOCAB = WORDS + len(SPECIAL) + TIMES
FRAMES = 12
GENERATION: dict[str, Any] = {
    "decoder_start_token_id": TOKEN["<|startoftranscript|>"],
    "no_timestamps_token_id": TOKEN["<|notimestamps|>"],
    "eos_token_id": TOKEN["<|endoftext|>"],
    "is_multilingual": True,
    "lang_to_id": {name: TOKEN[name] for name in SPECIAL[2:5]},
    "task_to_id": {task: TOKEN[f"<|{task}|>"] for task in ("transcribe", "translate")},
}


def tokenizer() -> bytes:
    """Words w0 .. w19, then SPECIAL, then times."""
    times = [f"<|{number / 50:.2f}|>" for number in range(TIMES)]
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": WORDS + place, "content": text, "special": text in SPECIAL, **common}
        for place, text in enumerate([*SPECIAL, *times])
    ]
    words = {f"w{number}": number for number in range(WORDS)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    return json.dumps({"version": "1.0", "added_tokens": added, "model": model}).encode()


def write_whisper(folder: Path, bins: int = 5, **generation: Any) -> Path:
    """A bundle for the reference backend. generation: other settings; None leaves one out."""
    config = {
        "model_type": "whisper", "vocab_size": VOCAB, "d_model": 16, "num_mel_bins": bins,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "max_source_positions": FRAMES // 2, "max_target_positions": 24,
        "decoder_start_token_id": GENERATION["decoder_start_token_id"],
    }  # fmt: skip
    told = {**GENERATION, **generation}
    checkpoint = Checkpoint(
        config=config,
        weights=RandomWeights(),
        tokenizer=replace(
            tiny_tokenizer_files(),
            tokenizer_json=tokenizer(),
            chat_template=None,
            bos_token_id=None,
            eos_token_ids=(TOKEN["<|endoftext|>"],),
            special_tokens={},
        ),
        generation={key: value for key, value in told.items() if value is not None},
        source=SourceEntry("huggingface", "tiny-whisper", "0" * 64),
    )
    export_checkpoint(checkpoint, folder, formats=("reference",), weights="fp32")
    return folder

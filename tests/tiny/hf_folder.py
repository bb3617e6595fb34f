"""A tiny checkpoint as a Hugging Face folder on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tiny.checkpoint import EOS, SPECIAL, tiny_checkpoint

from quickdraft.export.checkpoints.base import Checkpoint


def write_hf_folder(
    folder: Path,
    template: str | None = None,
    checkpoint: Checkpoint | None = None,
    **config: Any,
) -> None:
    """A checkpoint, or else the llama of `tiny_checkpoint`, with a chat template of the test's own
    if it wants one."""
    checkpoint = checkpoint or tiny_checkpoint("llama", **config)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**checkpoint.config, "eos_token_id": EOS}))
    arrays = {name: weight.dense() for name, weight in checkpoint.weights.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer.tokenizer_json)
    words = {"eos_token": SPECIAL[EOS], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))

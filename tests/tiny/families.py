"""Tiny random models of every family, built with torch and saved as checkpoint folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from tiny.checkpoint import BOS, CHAT_TEMPLATE, EOS, SPECIAL, tiny_tokenizer_json
from tiny.family_configs import CONFIGS
from tiny.openelm import OpenElm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Oracle:
    """A model of the published code, without a cache."""

    model: Any

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [1, n] to logits [1, n, vocabulary]."""
        with torch.no_grad():
            if isinstance(self.model, OpenElm):
                return self.model(ids)
            return self.model(ids, use_cache=False).logits.float()

    def hidden_states(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The residual streams [1, n, hidden] by number of layers passed."""
        with torch.no_grad():
            return self.model(ids, use_cache=False, output_hidden_states=True).hidden_states


def save_tiny(name: str, folder: Path) -> Oracle:
    """Build CONFIGS[name], save it as a checkpoint folder, and return it as an oracle."""
    family, config = CONFIGS[name]
    torch.manual_seed(len(name))
    if family == "openelm":
        model: Any = OpenElm(config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
    else:
        settings = AutoConfig.for_model(family, **config)
        # The initialiser of StableLM stumbles over its own norms without bias; we need none.
        with mock.patch.object(PreTrainedModel, "_initialize_weights"):
            model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    randomise(model)
    model.eval()
    if family == "openelm":
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(folder)

    return Oracle(model)


def randomise(model: torch.nn.Module) -> None:
    """Values large enough that every part of the model shows in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # sinusoids
            if parameter.dim() == 1:
                # Biases and norms around their neutral values, whichever these are.
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.3 / parameter.shape[-1] ** 0.5)


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer of tiny models, and its settings."""
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    settings = {
        "bos_token": SPECIAL[BOS],
        "eos_token": {"content": SPECIAL[EOS], "special": True},
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

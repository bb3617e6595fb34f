"""Mu in torch from its published definition (arXiv 2501.16273), as an oracle.

It is not part of transformers. Parameter names are those of the published code; one source and one
answer at a time, so that nothing is padded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny.checkpoint import EOS
from tiny.families import randomise, save_tokenizer
from torch import nn


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rotate(x: torch.Tensor, start: int, theta: float) -> torch.Tensor:
    """x: [heads, tokens, head_dim], of positions from `start` on."""
    width = x.shape[-1]
    inverse = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(start, start + x.shape[1]).float(), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Attention(nn.Module):
    def __init__(self, config: dict[str, Any], kind: str) -> None:
        super().__init__()
        self.kind, self.theta = kind, config.get("rope_theta", 10000)
        self.heads, self.kv_heads = config["n_head"], config["n_kv_head"]
        self.each = config["qkv_embd"] // self.heads
        hidden, keys = config["n_embd"], self.kv_heads * self.each
        self.q_linear = nn.Linear(hidden, config["qkv_embd"])
        self.k_linear = nn.Linear(hidden, keys)
        self.v_linear = nn.Linear(hidden, keys)
        self.out_linear = nn.Linear(config["qkv_embd"], hidden)

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(rows).reshape(len(rows), -1, self.each).transpose(0, 1)
            for project, rows in (
                (self.q_linear, x),
                (self.k_linear, read),
                (self.v_linear, read),
            )
        )
        if self.kind != "cross":
            # Encoders count from the middle.
            start = 0 if self.kind == "causal" else -((len(x) - 1) // 2)
            q, k = rotate(q, start, self.theta), rotate(k, start, self.theta)
        k, v = (torch.cat([part] * (self.heads // self.kv_heads)) for part in (k, v))
        scores = q @ k.transpose(1, 2) / self.each**0.5
        if self.kind == "causal":
            scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        return self.out_linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1))


class Mlp(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config["n_embd"], config["hidden_dim"])
        self.fc2 = nn.Linear(config["hidden_dim"], config["n_embd"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class EncoderBlock(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.ln1, self.ln2 = RmsNorm(config["n_embd"]), RmsNorm(config["n_embd"])
        self.attn, self.mlp = Attention(config, "encoder"), Mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln1(x)
        x = x + self.attn(normed, normed)
        return x + self.mlp(self.ln2(x))


class DecoderBlock(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.ln1, self.ln2 = RmsNorm(config["n_embd"]), RmsNorm(config["n_embd"])
        self.ln3, self.mlp = RmsNorm(config["n_embd"]), Mlp(config)
        self.causal_attn = Attention(config, "causal")
        self.cross_attn = Attention(config, "cross")

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        normed = self.ln1(x)
        x = x + self.causal_attn(normed, normed)
        x = x + self.cross_attn(self.ln2(x), memory)
        return x + self.mlp(self.ln3(x))


class Mu(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["n_embd"]
        encoder = [EncoderBlock(config) for _ in range(config["n_encoder_layer"])]
        decoder = [DecoderBlock(config) for _ in range(config["n_decoder_layer"])]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config["vocab_size"], hidden),
                "e": nn.ModuleList(encoder),
                "ln_e": RmsNorm(hidden),
                "h": nn.ModuleList(decoder),
                "ln_f": RmsNorm(hidden),
            }
        )

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](tokens)
        for block in self.transformer["e"]:
            x = block(x)
        found: torch.Tensor = self.transformer["ln_e"](x)
        return found

    def decode(self, tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](tokens)
        for block in self.transformer["h"]:
            x = block(x, memory)
        found: torch.Tensor = self.transformer["ln_f"](x) @ self.transformer["wte"].weight.T
        return found

    def generate(self, source: torch.Tensor, opening: list[int], count: int) -> list[int]:
        tokens, memory = list(opening), self.encode(source)
        while len(tokens) < len(opening) + count and EOS not in tokens[len(opening) :]:
            tokens.append(int(self.decode(torch.tensor(tokens), memory)[-1].argmax()))
        return tokens


def save_mu(config: dict[str, Any], folder: Path) -> Mu:
    """A random model, saved as a checkpoint folder."""
    model = Mu(config)
    randomise(model)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    # The head is the embedding, saved again under its own name.
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    whole = {**config, "model_type": "mu", "is_encoder_decoder": True, "eos_token_id": EOS}
    (folder / "config.json").write_text(json.dumps(whole))
    save_tokenizer(folder)
    return model

"""OpenELM in torch from its published definition (arXiv 2404.14619), as an oracle.

It is not part of transformers. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def feed_forward_width(config: dict[str, Any], multiplier: float) -> int:
    divisor = config["ffn_dim_divisor"]
    value = multiplier * config["model_dim"]
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """x: [heads, tokens, head_dim]."""
    width = x.shape[-1]
    inverse = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Attention(nn.Module):
    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.config = config
        self.queries, self.keys = config["num_query_heads"][layer], config["num_kv_heads"][layer]
        each, width = config["head_dim"], config["model_dim"]
        self.qkv_proj = nn.Linear(width, (self.queries + 2 * self.keys) * each, bias=False)
        self.out_proj = nn.Linear(self.queries * each, width, bias=False)
        if config["normalize_qk_projections"]:
            self.q_norm, self.k_norm = RmsNorm(each), RmsNorm(each)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, each = len(x), self.config["head_dim"]
        qkv = self.qkv_proj(x).reshape(count, -1, each).transpose(0, 1)
        q, k, v = qkv.split([self.queries, self.keys, self.keys])
        if self.config["normalize_qk_projections"]:
            q, k = self.q_norm(q), self.k_norm(k)
        theta = self.config["rope_freq_constant"]
        q, k = rotate(q, theta), rotate(k, theta)
        k, v = (part.repeat_interleave(self.queries // self.keys, dim=0) for part in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(each)
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
        mixed = scores.softmax(-1) @ v
        return self.out_proj(mixed.transpose(0, 1).reshape(count, -1))


class FeedForward(nn.Module):
    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        width = feed_forward_width(config, config["ffn_multipliers"][layer])
        self.proj_1 = nn.Linear(config["model_dim"], 2 * width, bias=False)
        self.proj_2 = nn.Linear(width, config["model_dim"], bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.proj_1(x).chunk(2, dim=-1)
        return self.proj_2(nn.functional.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.ffn = FeedForward(config, layer)
        self.attn_norm = RmsNorm(config["model_dim"])
        self.ffn_norm = RmsNorm(config["model_dim"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.token_embeddings = nn.Embedding(config["vocab_size"], config["model_dim"])
        layers = range(config["num_transformer_layers"])
        self.layers = nn.ModuleList(Layer(config, layer) for layer in layers)
        self.norm = RmsNorm(config["model_dim"])


class OpenElm(nn.Module):
    """forward: token ids [1, n] to logits [1, n, vocabulary]."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.transformer = Transformer(config)
        if not config["share_input_output_layers"]:
            self.lm_head = nn.Linear(config["model_dim"], config["vocab_size"], bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        model = self.transformer
        x = model.token_embeddings(ids[0])
        for layer in model.layers:
            x = layer(x)
        head = self.lm_head if hasattr(self, "lm_head") else model.token_embeddings
        return (model.norm(x) @ head.weight.T)[None]

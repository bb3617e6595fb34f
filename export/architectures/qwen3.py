"""Qwen 3: Qwen 2 with a norm of each query and key head, and biases as the config says."""

from __future__ import annotations

from dataclasses import replace

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.architectures.llama import gather_llama
from quickdraft.export.architectures.qwen2 import DEFAULTS as QWEN2
from quickdraft.export.architectures.qwen2 import read_qwen

DEFAULTS = {**QWEN2, "head_dim": 128}


def read(config: Config) -> DecoderSpec:
    """`model_type` qwen3."""
    return replace(
        read_qwen(config, "qwen3"),
        attention_bias=(config.flag("attention_bias"),) * 4,
        query_norm="head",
    )


FAMILY = Family(read, gather_llama, DEFAULTS)

"""Which settings of a model's generation config are not followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "constraints": (None, [], ()),
    "dola_layers": (None,),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, [], ()),
    "guidance_scale": (None, 1, 1.0),
    "max_initial_timestamp_index": (None, 50),
    "penalty_alpha": (None, 0, 0.0),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
    "sequence_bias": (None, {}, []),
    "token_healing": (None, False),
    "top_h": (None, 1.0),
    "watermarking_config": (None, {}),
}
"""Settings of transformers that change answers and are not implemented, with the values that change
nothing."""

_TO_BE_ASKED_FOR: Mapping[str, tuple[Any, ...]] = {
    "diversity_penalty": (None, 0, 0.0),
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
}
"""What is implemented, and nobody gets without asking for it."""


def not_followed(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a generation config that would change answers and are not implemented."""
    return _other(generation, _WITHOUT_EFFECT)


def to_be_asked_for(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a generation config that count only where a call or a command has them."""
    return _other(generation, _TO_BE_ASKED_FOR)


def _other(generation: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {k: v for k, v in generation.items() if k in neutral and v not in neutral[k]}

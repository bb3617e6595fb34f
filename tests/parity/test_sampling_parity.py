"""Processors and samplers against transformers' own, in the order its `generate` runs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.sampling import process

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import GenerationConfig as TheirConfig  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

VOCAB = 97
EOS = 5

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p": {"temperature": 1.3, "top_p": 0.83},
    "min_p": {"temperature": 0.9, "min_p": 0.07},
    "typical_p": {"temperature": 1.0, "typical_p": 0.6},
    "all filters": {
        "temperature": 1.5,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.02,
        "typical_p": 0.9,
    },
    "repetition": {"repetition_penalty": 1.7, "temperature": 0.8},
    "repetition below one": {"repetition_penalty": 0.6, "temperature": 0.8},
    "n-grams": {"no_repeat_ngram_size": 2, "temperature": 1.0},
    "single tokens": {"no_repeat_ngram_size": 1, "temperature": 1.0},
    "minimum": {"min_new_tokens": 9, "temperature": 1.0},
    "bad words": {"bad_words_ids": [[3], [EOS], [1, 2], [4, 4, 7]], "temperature": 1.0},
    "minimum in all": {"min_length": 30, "temperature": 1.0},
    "forced end": {"max_length": 61, "forced_eos_token_id": EOS, "temperature": 1.0},
    "n-grams of the source": {"encoder_no_repeat_ngram_size": 2, "temperature": 1.0},
    "tokens of the source": {"encoder_no_repeat_ngram_size": 1, "temperature": 1.0},
    "everything": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 9,
        "logit_bias": {3: 2.5, 11: -4.0},
        "bad_words_ids": [[2, 9], [10]],
        "encoder_no_repeat_ngram_size": 3,
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.95,
    },
}


@pytest.fixture(scope="module")
def model() -> Any:
    """Only its method that lists the processors is used, which is told that there is a source."""
    size = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": VOCAB}
    return GPT2LMHeadModel(GPT2Config(**size, is_encoder_decoder=True))


def theirs(
    model: Any,
    logits: np.ndarray,
    context: np.ndarray,
    generated: int,
    options: dict[str, Any],
    source: np.ndarray,
) -> np.ndarray:
    given = dict(options)
    bias = given.pop("logit_bias", None)
    config = TheirConfig(
        **{"top_k": 0, **given},
        do_sample="temperature" in given,
        decoder_start_token_id=0,
        sequence_bias=[[[token], value] for token, value in bias.items()] if bias else None,
    )
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    config._eos_token_tensor = torch.tensor([EOS])
    processors = model._get_logits_processor(
        config, len(context) - generated, torch.tensor(source)[None], device="cpu"
    )
    scores = processors(torch.tensor(context)[None], torch.tensor(logits)[None])
    if not config.do_sample:
        return np.eye(VOCAB)[int(scores.argmax())]
    return torch.softmax(scores[0].double(), 0).numpy()


@pytest.mark.parametrize("name", CASES)
def test_the_distribution_is_transformers_own(model: Any, name: str) -> None:
    options = CASES[name]
    config = GenerationConfig(**{"top_k": 0, **options})
    rng = np.random.default_rng(7)
    for trial in range(60):
        logits = rng.normal(0, 3, VOCAB).astype(np.float32)
        context = rng.integers(0, VOCAB if trial % 2 else 12, int(rng.integers(8, 60)))
        generated = int(rng.integers(0, 8))
        if "forced_eos_token_id" in options:
            context = rng.integers(0, VOCAB, 60 - trial % 2)  # the last place, and the one before
        source = rng.integers(0, VOCAB if trial % 2 else 12, int(rng.integers(1, 60)))
        prepared = config.after(len(context) - generated)
        found = process(logits, context, generated, prepared, (EOS,), source)
        ours = np.zeros(VOCAB)
        ours[found.ids] = found.probabilities
        expected = theirs(model, logits, context, generated, options, source)
        assert np.abs(ours - expected).max() < 2e-6, f"trial {trial}"

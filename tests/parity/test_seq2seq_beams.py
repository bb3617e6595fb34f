"""Beams of encoder-decoder models: the answers and scores of transformers, in its order."""

from __future__ import annotations

import numpy as np
import pytest
from parity.test_seq2seq_answers import opened, sources

torch = pytest.importorskip("torch")

from tiny.seq2seq_families import SEQ2SEQ_CONFIGS  # noqa: E402
from transformers import GenerationMixin  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

BEAMS = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 6}
SOURCES = 13
"""Of each of 16 models: 200 and more."""


@pytest.mark.parametrize(
    "name", [name for name, (family, _) in SEQ2SEQ_CONFIGS.items() if family != "mu"]
)
def test_beam_search(name: str) -> None:
    model, oracle = opened(name, "none")
    settings = oracle.model.generation_config
    fill = {settings.pad_token_id, settings.eos_token_id}  # a pad of 0 it takes for none
    generate = GenerationMixin.generate if oracle.reads_features else type(oracle.model).generate
    for source in sources(name, SOURCES):
        result = model.generate(source, **BEAMS)
        assert result.beams is not None
        opening = list(result.prompt_token_ids)
        given = source.tokens if source.features is None else source.features
        with torch.no_grad():
            made = generate(
                oracle.model,
                **oracle._given(given),
                decoder_input_ids=torch.tensor([opening]),
                do_sample=False,
                forced_eos_token_id=None,
                use_cache=False,
                length_penalty=1.0,
                early_stopping=False,
                return_dict_in_generate=True,
                output_scores=True,
                **BEAMS,
            )
        answers = made.sequences[:, len(opening) :].tolist()
        for ranked, answer in zip(result.sequences, answers, strict=True):
            size = len(ranked.token_ids)
            assert ranked.token_ids == tuple(answer[:size])
            assert fill.issuperset(answer[size:])
        scores = [ranked.score for ranked in result.sequences]
        np.testing.assert_allclose(scores, made.sequences_scores.tolist(), atol=1e-4)

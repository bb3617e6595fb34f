"""Answers of encoder-decoder models on 200 random inputs each: greedy, beams, diverse beams.

Greedy and with beams as transformers' generate; diverse beams as its published algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from parity.test_seq2seq_answers import opened, sources

from quickdraft.kvcache.memory import Source
from quickdraft.runtime.beams.decoder import BeamDecoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity.test_beams import PAD, assert_same, cut, first_end, published_groups  # noqa: E402
from tiny.seq2seq_families import SEQ2SEQ_CONFIGS, Seq2SeqOracle  # noqa: E402
from transformers import GenerationMixin  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = 200
NEW = 6
PUBLISHED = [name for name, (family, _) in SEQ2SEQ_CONFIGS.items() if family != "mu"]
"""Configs of families that transformers has."""


@pytest.mark.parametrize("name", list(SEQ2SEQ_CONFIGS))
def test_greedy(name: str) -> None:
    model, oracle = opened(name, "none")
    for source in sources(name, INPUTS):
        result = model.generate(source, max_new_tokens=NEW, temperature=0)
        opening = result.prompt_token_ids
        wanted = oracle.generate(source, opening, NEW)
        assert (*opening, *result.token_ids) == tuple(wanted)


def searched(model: Any, source: Source, config: GenerationConfig, ends: Any) -> tuple[Any, Any]:
    """What a model's answers begin with, and its best answers."""
    opening = list(model._question(source, None).tokens)
    decoder = BeamDecoder(model.backend, model.session(), Plan(config, ends), None, PAD)
    return opening, decoder.run(opening, source).answers


def alike(name: str) -> Iterator[list[Source]]:
    """The inputs of a model, those of one length together: transformers takes them at once, and
    with nothing to mask its numbers are those of each alone."""
    given = sorted(sources(name, INPUTS), key=len)
    for _, same in groupby(given, key=len):
        yield list(same)


def batch_of(oracle: Seq2SeqOracle, given: list[Source]) -> dict[str, Any]:
    """What a model of transformers takes for inputs of one length."""
    rows = [oracle._given(raw(source)) for source in given]
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def raw(source: Source) -> np.ndarray[Any, Any]:
    """Tokens [n] or frames [n, width] of a source."""
    given = source.tokens if source.features is None else source.features
    assert given is not None  # one of them is there
    return given


@pytest.mark.parametrize("name", PUBLISHED)
def test_beams(name: str) -> None:
    model, oracle = opened(name, "none")
    ends = model.tokenizer.eos_token_ids[:1]
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": NEW}
    generate = GenerationMixin.generate if oracle.reads_features else type(oracle.model).generate
    for given in alike(name):
        searches = [searched(model, each, GenerationConfig(**options), ends) for each in given]
        opening = searches[0][0]
        with torch.no_grad():
            made = generate(
                oracle.model,
                **batch_of(oracle, given),
                decoder_input_ids=torch.tensor([opening] * len(given)),
                do_sample=False,
                forced_eos_token_id=None,
                eos_token_id=list(ends),
                pad_token_id=PAD,
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
        answers = [cut(each[len(opening) :], ends) for each in made.sequences.tolist()]
        expected = list(zip(answers, made.sequences_scores.tolist(), strict=True))
        for at, (_, found) in enumerate(searches):
            assert_same(found, expected[4 * at : 4 * at + 4])


def steps_of(oracle: Seq2SeqOracle, states: Any, beams: int) -> Any:
    """Logits after rows of decoder tokens, of a source whose states [1, rows, hidden] are given."""
    encoded = (states.expand(beams, -1, -1),)

    def logits_of(ids: Any) -> Any:
        with torch.no_grad():
            made = oracle.model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False)
        return made.logits[:, -1].float()

    return logits_of


@pytest.mark.parametrize("name", PUBLISHED)
def test_diverse_beams(name: str) -> None:
    """With 2 and with 4 groups; a source is encoded once for both."""
    model, oracle = opened(name, "none")
    ends = model.tokenizer.eos_token_ids[:1]
    configs = [
        GenerationConfig(
            num_beams=4,
            num_return_sequences=4,
            num_beam_groups=groups,
            diversity_penalty=0.8,
            max_new_tokens=NEW,
        )
        for groups in (2, 4)
    ]
    for given in alike(name):
        with torch.no_grad():
            states = oracle.model.get_encoder()(**batch_of(oracle, given))[0]
        for source, own in zip(given, states, strict=True):
            for config in configs:
                opening, found = searched(model, source, config, ends)
                expected = published_groups(steps_of(oracle, own[None], 4), opening, config, ends)
                assert_same([first_end(answer, ends) for answer in found], expected)

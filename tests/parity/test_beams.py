"""Beams against transformers: the same answers in the same order, with the same scores.

Beam search is that of `generate`. Diverse beam search has moved out of transformers; what is left
of it there (its scorer and its diversity processor) does here what its `group_beam_search` did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quickdraft.drafters.tree import Tree
from quickdraft.runtime.beams.constraints import TokenTrie
from quickdraft.runtime.beams.decoder import BeamDecoder
from quickdraft.runtime.beams.search import Hypothesis
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.decoders import tiny_decoder  # noqa: E402
from transformers import LogitsProcessorList  # noqa: E402
from transformers.generation.beam_search import BeamSearchScorer  # noqa: E402
from transformers.generation.logits_process import (  # noqa: E402
    HammingDiversityLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

BATCH = 25
MODELS = ("llama", "gpt2", "gemma2", "qwen2")
PAD = 0
Answers = list[tuple[tuple[int, ...], float]]
Case = tuple[list[list[int]], GenerationConfig, tuple[int, ...]]


def cases(count: int, most_ends: int = 30, **fixed: Any) -> Iterator[Case]:
    """Prompts of one length, options and end-of-text tokens, at random."""
    for seed in range(count // BATCH):
        random = np.random.default_rng(seed)
        prompts = random.integers(5, 300, (BATCH, int(random.integers(2, 9)))).tolist()
        config = GenerationConfig(
            max_new_tokens=int(random.integers(2, 11)),
            num_beams=4,
            num_return_sequences=4,
            length_penalty=float(random.choice([0.0, 0.7, 1.0, 2.0, -0.5])),
            early_stopping=[False, True, "never"][seed % 3],
            repetition_penalty=float(random.choice([1.0, 1.3])),
            no_repeat_ngram_size=int(random.choice([0, 2])),
            **fixed,
        )
        ends = random.integers(1, 320, int(random.choice([1, 2, most_ends]))).tolist()
        yield prompts, config, tuple(dict.fromkeys(ends))


def ours(model: str, prompt: list[int], config: GenerationConfig, ends: tuple[int, ...]) -> Any:
    backend = tiny_decoder(model).reference()
    decoder = BeamDecoder(backend, Session(backend), Plan(config, ends), None, PAD)
    return decoder.run(prompt).answers


def cut(tokens: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    """An answer without what pads it."""
    length = next((at for at, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tuple(tokens[:length])


def assert_same(found: list[Hypothesis], expected: Answers) -> None:
    assert [answer.tokens for answer in found] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose(
        [answer.score for answer in found], [score for _, score in expected], rtol=1e-4, atol=1e-4
    )


def generate(model: Any, prompts: list[list[int]], config: GenerationConfig, ends: Any) -> Any:
    """The answers of transformers, by prompt."""
    names = ("max_new_tokens", "num_beams", "num_return_sequences", "length_penalty")
    names += ("early_stopping", "repetition_penalty", "no_repeat_ngram_size")
    ids = torch.tensor(prompts)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **{name: getattr(config, name) for name in names},
    )
    answers = made.sequences[:, len(prompts[0]) :].tolist()
    ranked = [
        (cut(tokens, ends), score)
        for tokens, score in zip(answers, made.sequences_scores.tolist(), strict=True)
    ]
    size = config.num_return_sequences
    return [ranked[at : at + size] for at in range(0, len(ranked), size)]


@pytest.mark.parametrize("model", MODELS)
def test_beam_search(model: str) -> None:
    published = tiny_decoder(model).oracle.model
    for prompts, config, ends in cases(200 // len(MODELS)):
        for prompt, expected in zip(
            prompts, generate(published, prompts, config, ends), strict=True
        ):
            assert_same(ours(model, prompt, config, ends), expected)


def published_groups(
    logits_of: Callable[[Any], Any], prompt: list[int], config: GenerationConfig, ends: Any
) -> Answers:
    """What `group_beam_search` of transformers 4.55 did, for one prompt."""
    beams, groups = config.num_beams, config.num_beam_groups
    size, limit = beams // groups, len(prompt) + config.max_new_tokens
    scorer = BeamSearchScorer(
        1, beams, torch.device("cpu"), config.length_penalty, config.early_stopping,
        beams, groups, limit,
    )  # fmt: skip
    diversity = HammingDiversityLogitsProcessor(config.diversity_penalty, beams, groups)
    others = LogitsProcessorList()
    if config.repetition_penalty != 1:
        others.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        others.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    ids = torch.tensor([prompt] * beams)
    totals = torch.full((beams,), -1e9)
    totals[::size] = 0
    while True:
        chosen, order = torch.zeros(beams, dtype=torch.long), ids.clone()
        scores = torch.log_softmax(logits_of(ids), -1)
        for group in range(groups):
            here = slice(group * size, (group + 1) * size)
            rows = diversity(ids[here], scores[here].clone(), chosen, group)
            rows = (others(ids[here], rows) + totals[here, None]).view(1, -1)
            best, flat = torch.topk(rows, max(2, 1 + len(ends)) * size)
            vocabulary = scores.shape[1]
            made = scorer.process(
                ids[here], best, flat % vocabulary, flat // vocabulary, PAD, list(ends),
                group_index=group, decoder_prompt_len=len(prompt),
            )  # fmt: skip
            totals[here] = made["next_beam_scores"]
            chosen[here] = made["next_beam_tokens"]
            order[here] = ids[here][made["next_beam_indices"]]
        ids = torch.cat([order, chosen[:, None]], -1)
        if scorer.is_done or ids.shape[1] >= limit:
            break
    made = scorer.finalize(
        ids, totals, None, None, limit, PAD, list(ends), decoder_prompt_len=len(prompt)
    )
    answers = [cut(tokens[len(prompt) :], ends) for tokens in made["sequences"].tolist()]
    return list(zip(answers, made["sequence_scores"].tolist(), strict=True))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_diverse_beam_search(model: str, groups: int) -> None:
    published = tiny_decoder(model).oracle.model

    def logits_of(ids: Any) -> Any:
        with torch.no_grad():
            return published(ids).logits[:, -1].float()

    penalty = {"num_beam_groups": groups, "diversity_penalty": 0.8}
    for prompts, config, ends in cases(200 // len(MODELS), 4, **penalty):
        for prompt in prompts:
            expected = published_groups(logits_of, prompt, config, ends)
            found = [first_end(answer, ends) for answer in ours(model, prompt, config, ends)]
            assert_same(found, expected)


def first_end(answer: Hypothesis, ends: tuple[int, ...]) -> Hypothesis:
    """With the first end-of-text token for that which ended it: the scorer forgets which."""
    if answer.finish_reason != "stop":
        return answer
    return replace(answer, tokens=(*answer.tokens[:-1], ends[0]))


def test_allowed_tokens() -> None:
    """As prefix_allowed_tokens_fn, where a constraint leaves more tokens than there are beams."""
    tiny, random = tiny_decoder("llama"), np.random.default_rng(0)
    backend = tiny.reference()
    answers = random.integers(5, 300, (300, 4)).tolist()
    trie = TokenTrie(answers, (2,))
    config = GenerationConfig(max_new_tokens=8, num_beams=4)
    for prompt in random.integers(5, 300, (10, 3)).tolist():
        made = tiny.oracle.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, 3),
            do_sample=False,
            eos_token_id=2,
            pad_token_id=PAD,
            num_beams=4,
            max_new_tokens=8,
            prefix_allowed_tokens_fn=lambda _, ids: list(trie(ids[3:].tolist())) or [2],
        )
        decoder = BeamDecoder(backend, Session(backend), Plan(config, (2,)), trie, PAD)
        found = decoder.run(prompt).answers
        assert found[0].tokens == cut(made[0, 3:].tolist(), (2,))
        assert all([*answer.tokens[:-1]] in answers for answer in found)


def test_the_rows_are_those_of_the_paths() -> None:
    """Scores are the sums of what decoding an answer plainly gives."""
    backend = tiny_decoder("llama").reference()
    config = GenerationConfig(max_new_tokens=12, num_beams=4, num_return_sequences=4)
    prompt = [7, 8, 9]
    for answer in ours("llama", prompt, config, (1,)):
        tokens = [*prompt, *answer.tokens]
        logits = backend.step(Tree.chain(tokens[:-1]), backend.new_cache()).logits[2:]
        log_probabilities = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
        total = log_probabilities[np.arange(len(answer.tokens)), list(answer.tokens)].sum()
        np.testing.assert_allclose(total, answer.total, rtol=1e-4)

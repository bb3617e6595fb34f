"""What the head is told, what it reads, and the trees that grow from it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.answers import CONTEXT, FLAT, VOCAB
from tiny.toy_backend import ToyBackend, hashed, toy_spec
from tiny.toy_head import WIDTH, ToyHead

from quickdraft.drafters.base import DrafterContext, DraftSettings, Observation
from quickdraft.drafters.eagle import Eagle, open_eagle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session


def opened(**options: object) -> tuple[Eagle, ToyHead]:
    head = ToyHead(lambda tokens: 4 * hashed(VOCAB)(tokens), VOCAB, CONTEXT)
    source = open_eagle(DrafterContext(VOCAB, CONTEXT, open_head=lambda name: head), options)
    drafter = source.new()
    assert isinstance(drafter, Eagle)
    return drafter, head


def states(tokens: list[int], start: int = 0) -> dict[int, NDArray[np.float32]]:
    """What the toy backend would say of these tokens."""
    rows = [(token, number, 1, 1) for number, token in enumerate(tokens, start)]
    return {1: np.array(rows, np.float32).reshape(-1, WIDTH)}


def told(said: list[int], new: list[int]) -> Observation:
    tree = Tree.chain([said[-1], *new[:-1]])
    path = list(range(len(new)))
    rows = states([said[-1], *new[:-1]], len(said) - 1)
    return Observation(new, tree, path, None, rows)


def test_it_reads_tokens_one_ahead_of_their_states() -> None:
    drafter, head = opened(depth=1)
    prompt = [3, 1, 4, 1, 5]
    drafter.begin(prompt, DraftSettings())
    drafter.read(0, states(prompt[:2]))
    drafter.read(2, states(prompt[2:4], 2))
    drafter.observe(told(prompt, [9]))
    assert not head.steps, "it reads when it is asked"
    draft = drafter.propose(4)
    assert draft is not None
    assert draft.tree.tokens[0] == 9
    (tokens, parents, features), *more = head.steps
    assert not more
    assert tokens == [1, 4, 1, 5, 9]
    assert parents == [-1, 0, 1, 2, 3]
    assert features[:, :2].tolist() == [[3, 0], [1, 1], [4, 2], [1, 3], [5, 4]]
    assert not features[:, WIDTH:].any()
    drafter.observe(told([*prompt, 9], [2, 6]))
    drafter.propose(4)
    tokens, _, features = head.steps[1]
    assert tokens == [2, 6]
    assert features[:, :2].tolist() == [[9, 5], [2, 6]]
    assert drafter.cache.length == 7


def test_deeper_levels_run_on_its_own_states() -> None:
    drafter, head = opened(depth=3, width=2, stop_below=0.0)
    drafter.begin([1, 2], DraftSettings())
    drafter.read(0, states([1]))
    drafter.observe(told([1, 2], [3]))
    draft = drafter.propose(12)
    assert draft is not None
    assert max(draft.tree.depth) == 3
    assert drafter.cache.length == 2, "what was only drafted is not kept"
    assert len(head.steps) == 3
    for tokens, parents, features in head.steps[1:]:
        assert not features[:, :WIDTH].any()
        for parent, own in zip(parents, features[:, WIDTH:].tolist(), strict=True):
            # The state of the token before, which for the first level is the one in the cache.
            assert own == [tokens[parent] if parent >= 0 else 3, 0, 0, -1]


def test_trees_hold_the_likeliest_paths() -> None:
    """As found by looking at all of them."""
    drafter, _ = opened(depth=2, width=8, stop_below=0.0)
    drafter.begin([7], DraftSettings())
    drafter.observe(told([7], [1]))
    draft = drafter.propose(6)
    assert draft is not None

    def likely(tokens: tuple[int, ...]) -> list[tuple[float, tuple[int, ...]]]:
        logits = 4 * hashed(VOCAB)((1, *tokens)).astype(np.float64)
        odds = np.exp(logits) / np.exp(logits).sum()
        return [(float(odds[token]), (*tokens, token)) for token in range(VOCAB)]

    first = likely(())
    second = [(p * q, path) for p, path in first for q, path in likely(path)]
    best = sorted([*first, *second], reverse=True)[:6]
    found = []
    for node in range(1, len(draft.tree)):
        path: list[int] = []
        while node:
            path.insert(0, int(draft.tree.tokens[node]))
            node = int(draft.tree.parent[node])
        found.append(tuple(path))
    assert sorted(found) == sorted(path for _, path in best)


def test_rows_that_nobody_told_are_left_out() -> None:
    """Those of a prefix that an answer without drafts left in the cache, or that are predicted."""
    drafter, head = opened(depth=1)
    prompt = [1, 2, 3, 4, 5, 6]
    drafter.begin(prompt, DraftSettings())
    drafter.read(3, states(prompt[3:4], 3))
    assert drafter.propose(4) is None, "the states of the last token are missing"
    drafter.observe(told(prompt, [7]))
    assert drafter.propose(4) is not None
    assert [tokens for tokens, _, _ in head.steps] == [[5], [7]]
    drafter.begin([*prompt, 7, 8], DraftSettings())
    assert drafter.propose(4) is None


def test_a_conversation_that_turns_keeps_what_still_holds() -> None:
    drafter, head = opened(depth=1)
    drafter.begin([1, 2, 3, 4], DraftSettings())
    drafter.read(0, states([1, 2, 3]))
    drafter.observe(told([1, 2, 3, 4], [5]))
    assert drafter.propose(4) is not None
    drafter.begin([1, 2, 3, 9, 9], DraftSettings())
    assert drafter.cache.length == 2  # row 2 read the token 4
    drafter.read(0, states([1, 2, 3, 9]))  # all of it once more: known rows are not read again
    drafter.observe(told([1, 2, 3, 9, 9], [6]))
    assert drafter.propose(4) is not None
    assert head.steps[-1][0] == [9, 9, 6]
    assert head.steps[-1][2][:, :2].tolist() == [[3, 2], [9, 3], [9, 4]]


def test_the_engine_tells_it_all() -> None:
    """Over chunks, turns and accepted drafts: every row the head keeps has its token and state."""
    logits = hashed(VOCAB)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    head = ToyHead(lambda tokens: 9 * logits((prompt[0], *tokens)), VOCAB, CONTEXT)
    source = open_eagle(DrafterContext(VOCAB, CONTEXT, open_head=lambda name: head), {})
    backend = ToyBackend(logits, toy_spec(VOCAB, CONTEXT))
    session = Session(backend, Drafting([source], backend, FLAT))
    config = GenerationConfig(max_new_tokens=20, prefill_chunk_size=3, num_draft_tokens=6)
    for turn in range(2):
        emissions = list(Decoder(backend, session, Plan(config)).run(prompt))
        assert sum(len(e.tokens) for e in emissions) == 20
        # Its words are the target's, so that it is right wherever it is sure.
        assert len(emissions) < 8
        drafter = session.speculation._drafters[0] if session.speculation else None
        assert isinstance(drafter, Eagle)
        keys = drafter.cache.layer(0)[0][: drafter.cache.length, 0, 0]
        assert keys.tolist() == session.tokens[1 : 1 + drafter.cache.length]
        prompt = [*session.tokens, turn, 3]
    for tokens, _, features in head.steps:
        for token, row in zip(tokens, features.tolist(), strict=True):
            number = int(row[1])
            assert row[WIDTH:] != [0] * WIDTH or session.tokens[number + 1] == token


@pytest.mark.parametrize("details", [{}, {"kind": "medusa", "hidden_states": [1]}])
def test_parts_of_other_kinds_are_refused(details: dict[str, object]) -> None:
    head = ToyHead(hashed(VOCAB), VOCAB, CONTEXT)
    head.details = details
    with pytest.raises(OptionError, match="of this kind"):
        open_eagle(DrafterContext(VOCAB, CONTEXT, open_head=lambda name: head), {})


def test_without_a_bundle_there_is_no_head() -> None:
    with pytest.raises(OptionError, match="bundle"):
        open_eagle(DrafterContext(VOCAB, CONTEXT), {})


def test_a_prompt_that_is_told_late_is_read_before_what_came_after_it() -> None:
    """As a refresh tells it: the answer has begun over predicted rows."""
    drafter, head = opened(depth=1)
    drafter.begin([1, 2, 3, 4], DraftSettings())
    drafter.observe(told([1, 2, 3, 4], [5]))
    drafter.observe(told([1, 2, 3, 4, 5], [6]))
    assert drafter.propose(4) is not None
    assert head.steps[-1][0] == [5, 6]
    drafter.read(0, states([1, 2, 3, 4]))
    drafter.read(4, states([5], 4))
    drafter.observe(told([1, 2, 3, 4, 5, 6], [7]))
    assert drafter.propose(4) is not None
    assert head.steps[-1][0] == [2, 3, 4, 5, 6, 7]
    assert drafter.cache.length == 6

"""A small model as drafter: what it proposes, in how many of its own steps, and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny.answers import FLAT, decode, tv_ratio
from tiny.toy_backend import (
    LogitsOf,
    ToyBackend,
    hashed,
    oracle,
    random_trees,
    toy_source,
    toy_spec,
)

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.small_model import GRADES, SmallModelOptions, open_small_model
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, InputError, OptionError
from quickdraft.runtime.draft_model import BackendDraftModel
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session

VOCAB = 16
TARGET = hashed(VOCAB, scale=3.0)


def near(tokens: tuple[int, ...]) -> NDArray[np.float32]:
    """Says nearly what the target says."""
    return TARGET(tokens) + hashed(VOCAB, markov=0.0, scale=1.5)(tokens)


def softmax(logits: NDArray[np.float32], tokens: Sequence[int] = ()) -> Distribution:
    weights = np.exp(logits.astype(np.float64))
    return Distribution(np.arange(len(weights)), weights / weights.sum())


def opened(
    logits: LogitsOf = TARGET, context: int = 96, vocab: int = VOCAB, **options: Any
) -> tuple[DrafterSource, ToyBackend]:
    backend = ToyBackend(logits, toy_spec(vocab, context))
    model = BackendDraftModel(backend, vocab)
    told = DrafterContext(VOCAB, 96, open_model=lambda *name: model)
    return open_small_model(told, {"model": "toy", **options}), backend


def proposal(budget: int = 8, law: bool = False, **options: Any) -> Draft | None:
    source, _ = opened(**options)
    drafter = source.new()
    drafter.begin([1, 2, 3], DraftSettings(law=softmax if law else None))
    return drafter.propose(budget)


def greedily(tokens: list[int], count: int) -> list[int]:
    said = list(tokens)
    for _ in range(count):
        said.append(int(np.argmax(TARGET(tuple(said)))))
    return said[len(tokens) :]


METHODS = ["chain", "tree", "rsd_c", "rsd_s"]


@pytest.mark.parametrize("method", METHODS)
def test_the_target_itself_is_always_right(method: str) -> None:
    """And saves all steps that can be saved: of greedy answers and, as its laws are the target's,
    of drawn ones."""
    for sampling in ({}, {"temperature": 1.0, "seed": 3, "top_k": 0}):
        if sampling and method == "tree":
            continue
        source, _ = opened(method=method, depth=4, width=1, stop_below=0.0)
        config = GenerationConfig(max_new_tokens=41, num_draft_tokens=4, **sampling)
        _, emissions = decode(TARGET, [1, 2, 3], config, [source])
        steps = [emission.record for emission in emissions[1:] if emission.record]
        assert len(steps) == 8  # five tokens each
        assert sum(step.drafted for step in steps) == sum(step.accepted for step in steps) == 32
        assert all((step.drawn > 0) == bool(sampling) for step in steps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_another_model_saves_steps(method: str, temperature: float) -> None:
    source, _ = opened(near, method=method, stop_below=0.1)
    config = GenerationConfig(
        max_new_tokens=60, num_draft_tokens=6, temperature=temperature, seed=1, top_k=0
    )
    tokens, emissions = decode(TARGET, [1, 2, 3], config, [source])
    assert len(emissions) < 45
    if not temperature or method == "tree":
        plain, _ = decode(TARGET, [1, 2, 3], config)
        assert tokens == plain


@pytest.mark.parametrize(
    ("method", "others"),
    [("chain", False), ("chain", True), ("rsd_c", False), ("rsd_s", False), ("rsd_s", True)],
)
def test_sampled_answers_have_the_law_of_the_target(method: str, others: bool) -> None:
    """Joint law of four tokens, of which a step can decide the last three together (S4)."""
    vocab, draws = 3, 800
    logits = hashed(vocab, markov=0.5, scale=1.2)
    noise = hashed(vocab, markov=0.0, scale=1.5)
    source, _ = opened(lambda t: logits(t) + noise(t), vocab=vocab, method=method, stop_below=0.0)
    chosen = [toy_source(oracle(logits)), toy_source(random_trees(1, vocab))] if others else []
    backend = ToyBackend(logits, toy_spec(vocab, 96))
    session = Session(backend, Drafting([source, *chosen], backend, FLAT))
    config = GenerationConfig(temperature=1.0, top_k=0, max_new_tokens=5, num_draft_tokens=6)
    counts, drawn = np.zeros((vocab,) * 4), 0
    for seed in range(draws):
        run = list(Decoder(backend, session, Plan(config.replace(seed=seed))).run([0, 1, 0]))
        counts[tuple([token for emission in run for token in emission.tokens][:4])] += 1
        drawn += sum(emission.record.drawn for emission in run if emission.record)
    exact = np.ones_like(counts)
    for outcome in np.ndindex(*exact.shape):
        for i, token in enumerate(outcome):
            exact[outcome] *= softmax(logits((0, 1, 0, *outcome[:i]))).probability(token)
    assert tv_ratio(counts.ravel(), exact.ravel()) < 1.35
    assert drawn > draws


def test_a_path_takes_one_step_a_token() -> None:
    """The first of them reads what is new; what was right is not read again."""
    source, backend = opened(method="chain", stop_below=0.0)
    drafter = source.new()
    drafter.begin([1, 2, 3], DraftSettings())
    assert backend.steps == 0  # the model reads when it is asked
    draft = drafter.propose(4)
    right = greedily([1, 2, 3], 6)
    assert draft is not None
    assert draft.tree.tokens.tolist() == [3, *right[:4]]
    assert draft.tree.is_chain
    assert backend.rows == [3, 1, 1, 1]
    drafter.observe(Observation(right[:5], draft.tree, [0, 1, 2, 3, 4]))
    drafter.propose(2)
    assert backend.rows[4:] == [2, 1]  # the last guess, never read, and what the target added


def test_a_tree_takes_one_step_a_level_and_is_not_read_again() -> None:
    source, backend = opened(method="tree", stop_below=0.0, width=2, depth=3)
    drafter = source.new()
    drafter.begin([1, 2, 3], DraftSettings())
    draft = drafter.propose(32)
    assert draft is not None
    assert backend.steps == 3
    right = greedily([1, 2, 3], 4)
    drafter.observe(Observation(right, draft.tree, [0, 0, 0, 0]))
    backend.rows.clear()
    drafter.propose(1)
    assert backend.rows == [2]  # the model had read two of the four


def test_what_cannot_be_among_the_likeliest_is_not_followed() -> None:
    def logits(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return np.log(np.array([0.5, 0.4, 0.1], np.float32))

    source, backend = opened(logits, vocab=3, method="tree", stop_below=0.0, width=2, depth=2)
    drafter = source.new()
    drafter.begin([0, 1, 2], DraftSettings())
    draft = drafter.propose(2)
    assert draft is not None
    assert draft.tree.tokens.tolist() == [2, 0, 1]
    assert backend.rows == [3, 1]  # below the second one all is less likely than itself


def test_draws_follow_the_seed() -> None:
    source, _ = opened(method="rsd_s", stop_below=0.0)
    drafter = source.new()

    def drawn(seed: int) -> list[int]:
        drafter.begin([1, 2, 3], DraftSettings(law=softmax, seed=seed))
        draft = drafter.propose(6)
        assert draft is not None
        return [*draft.tree.tokens.tolist()]

    first = [drawn(seed) for seed in range(10)]
    assert [drawn(seed) for seed in range(10)] == first
    assert len({tuple(tokens) for tokens in first}) > 5


@pytest.mark.parametrize("budget", range(1, 9))
def test_a_tree_holds_the_likeliest_paths(budget: int) -> None:
    """Against all paths of three tokens, enumerated."""
    draft = proposal(budget, method="tree", stop_below=0.0, width=8, depth=3)
    assert draft is not None
    paths: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        for path in list(paths):
            law = softmax(TARGET((1, 2, 3, *path))).probabilities
            paths |= {(*path, token): paths[path] * p for token, p in enumerate(law)}
    del paths[()]
    best = sorted(paths, key=lambda path: -paths[path])[:budget]
    wanted = {path for path in best if paths[path] >= 0.03}
    tree = draft.tree
    found = {tuple(tree.tokens[tree.mask[node]].tolist()[1:]): node for node in range(1, len(tree))}
    assert set(found) == wanted
    for path, node in found.items():
        chance = paths[path] / paths.get(path[:-1], 1.0)
        assert abs(GRADES[draft.grades[node]] - chance) < 0.2


def test_a_path_ends_where_the_model_is_unsure() -> None:
    """What follows a path is not asked where the path is unlikely; the token itself is offered."""
    flat = proposal(logits=hashed(VOCAB, markov=0.0, scale=0.1), method="chain")
    assert flat is not None
    assert len(flat.tree) == 2
    sure = proposal(logits=hashed(VOCAB, scale=40.0), method="chain")
    assert sure is not None
    assert len(sure.tree) == 9
    assert proposal(logits=hashed(64, markov=0.0, scale=0.01), vocab=64, method="chain") is None


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(budget=st.integers(1, 12), width=st.integers(1, 4), depth=st.integers(1, 5))
def test_budgets_are_kept(method: str, budget: int, width: int, depth: int) -> None:
    for law in (False, True):
        draft = proposal(
            budget, law, method=method, width=width, depth=depth, stop_below=0.0, nodes=3
        )
        assert draft is not None
        assert 1 < len(draft.tree) <= budget + 1
        assert draft.tree.depth.max() <= depth
        drawn = sum(entry.count for entry in draft.laws.values())
        assert drawn == (min(len(draft.tree) - 1, 3) if law and method != "tree" else 0)
        assert all(0 <= grade < len(GRADES) for grade in draft.grades[1:])


@pytest.mark.parametrize("method", ["chain", "rsd_c", "rsd_s"])
def test_grades_of_drawn_nodes_do_not_depend_on_what_was_drawn(method: str) -> None:
    """Only on the place among siblings and on the law of the root."""
    source, _ = opened(near, method=method, stop_below=0.0)
    drafter = source.new()
    grades: dict[int, set[int]] = {}
    for seed in range(30):
        drafter.begin([1, 2, 3], DraftSettings(law=softmax, seed=seed))
        draft = drafter.propose(6)
        assert draft is not None
        for node in draft.laws:
            for rank, child in enumerate(draft.tree.children(node)):
                grades.setdefault(rank, set()).add(draft.grades[child])
    assert all(len(found) == 1 for found in grades.values())
    assert method == "chain" or len(grades) > 1


def test_laws_are_those_of_the_answer() -> None:
    """Asked after every path that was drawn, with all tokens up to there."""
    asked: list[list[int]] = []

    def law(logits: NDArray[np.float32], tokens: Sequence[int]) -> Distribution:
        assert np.array_equal(logits, TARGET(tuple(tokens)))
        asked.append(list(tokens))
        return softmax(logits)

    for method in ("chain", "rsd_c", "rsd_s", "tree"):
        source, _ = opened(method=method, stop_below=0.0)
        drafter = source.new()
        drafter.begin([1, 2, 3], DraftSettings(law=law))
        drafter.propose(6)
        assert asked[0] == [1, 2, 3]
        assert len(asked) > 2
        asked.clear()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_proposed_beyond_the_context_of_the_draft_model(method: str) -> None:
    """A target with a longer one goes on without it."""
    for law in (None, softmax):
        source, backend = opened(context=8, method=method, stop_below=0.0)
        drafter = source.new()
        for length in range(1, 12):
            drafter.begin([1] * length, DraftSettings(law=law))
            backend.rows.clear()
            draft = drafter.propose(6)  # the toy backend refuses positions beyond the context
            assert max(backend.rows[1:], default=0) <= max(8 - length, 0)
            assert (draft is None) == (length > 8)
            if draft is not None:
                assert draft.tree.depth.max() <= 9 - length
    source, _ = opened(context=20, method=method)
    config = GenerationConfig(max_new_tokens=60, num_draft_tokens=6)
    tokens, _ = decode(TARGET, [1, 2, 3], config, [source])
    assert tokens == decode(TARGET, [1, 2, 3], config)[0]


def test_tokens_the_draft_model_does_not_know_leave_it_silent() -> None:
    source, backend = opened(hashed(8), vocab=8)
    drafter = source.new()
    drafter.begin([1, 12, 3], DraftSettings())
    assert drafter.propose(4) is None
    assert backend.steps == 0
    drafter.begin([1, 2, 3], DraftSettings())
    assert drafter.propose(4) is not None


def test_a_failing_model_says_so_and_can_be_asked_again() -> None:
    source, backend = opened()
    drafter = source.new()
    drafter.begin([1, 2, 3], DraftSettings())
    drafter.propose(4)

    def fail(step: int, cancel: object) -> None:
        raise BackendError("the device is gone")

    works, backend.before_step = backend.before_step, fail
    drafter.observe(Observation([4], Tree.chain([3]), [0]))
    with pytest.raises(BackendError, match="gone"):
        drafter.propose(4)
    backend.before_step = works
    draft = drafter.propose(4)
    assert draft is not None
    assert draft.tree.tokens[1] == greedily([1, 2, 3, 4], 1)[0]


def test_conversations_share_the_model_and_have_caches_of_their_own() -> None:
    source, _ = opened()
    assert source.costly
    assert source.nbytes() == 0
    first, second = source.new(), source.new()
    first.begin([1, 2, 3], DraftSettings())
    second.begin([4, 5], DraftSettings())
    drafts = [drafter.propose(4) for drafter in (first, second, first)]
    assert all(drafts)
    assert drafts[0].tree.tokens.tolist() == drafts[2].tree.tokens.tolist()  # type: ignore[union-attr]
    held = source.nbytes()
    assert held > 0
    del first
    assert source.nbytes() == held // 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "needs the option 'model'"),
        ({"model": "x", "metod": "tree"}, OptionError, "did you mean 'method'"),
        ({"model": "x", "method": "beam"}, OptionError, "one of auto, chain, tree, rsd_c, rsd_s"),
        ({"model": "x", "depth": 0}, OptionError, "between 1 and 32"),
        ({"model": "x"}, OptionError, "cannot be done here"),
    ],
)
def test_options_are_checked(
    options: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_small_model(DrafterContext(VOCAB, 96), options)


@pytest.mark.parametrize(
    ("method", "greedy", "drawn"),
    [
        ("auto", "tree", "chain"),
        ("chain", "chain", "chain"),
        ("tree", "tree", "tree"),
        ("rsd_c", "tree", "rsd_c"),
        ("rsd_s", "tree", "rsd_s"),
    ],
)
def test_the_method_suits_the_answer(method: str, greedy: str, drawn: str) -> None:
    options = SmallModelOptions("x", method)
    assert options.of_answer(False) == greedy
    assert options.of_answer(True) == drawn

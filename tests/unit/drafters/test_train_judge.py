"""A judge learns which words a text could go on with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.topics import TOPICS, talk, topics_checkpoint

torch = pytest.importorskip("torch")

from quickdraft.drafters.train.data import Corpus, Document  # noqa: E402
from quickdraft.drafters.train.judge import JudgeModule, prepare_judge  # noqa: E402
from quickdraft.drafters.train.kinds import DraftTraining, Request  # noqa: E402
from quickdraft.drafters.train.loop import train  # noqa: E402
from quickdraft.drafters.tree import Tree  # noqa: E402
from quickdraft.errors import OptionError  # noqa: E402
from quickdraft.export.pipeline import export_checkpoint  # noqa: E402
from quickdraft.export.trained import Target, write_trained  # noqa: E402
from quickdraft.runtime.backends.opening import open_backend  # noqa: E402
from quickdraft.runtime.judge import JudgeOfBundle  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # of matrices this small, threads mostly wait for each other

WORDS = range(TOPICS[0].start, TOPICS[1].stop)


def corpus(count: int, seed: int) -> Corpus:
    documents = tuple(Document(talk(16, seed + n), 6, n) for n in range(count))
    return Corpus(documents, 320, f"{seed}")


def prepared(**options: Any) -> DraftTraining:
    target = Target.of(topics_checkpoint())
    sizes = {"width": 16, "near": 0.0, "common": len(WORDS), "length": 64, "dtype": "float32"}
    given: Mapping[str, Any] = {**sizes, **options}
    cpu = torch.device("cpu")
    return prepare_judge(Request(target, corpus(80, 0), corpus(20, 1000), given, 0, cpu))


@functools.cache
def trained() -> tuple[DraftTraining, Mapping[str, float]]:
    training = prepared()
    options = training.loop(steps=150, rate=0.03, device="cpu", evaluations=1)
    outcome = train(training.trainee, options)
    return training, outcome.history.held_out[-1].figures


def test_it_tells_right_words_from_wrong_ones() -> None:
    """Half of the wrong words are of the text's own topic, and cannot be told."""
    before = prepared().trainee.evaluate()
    assert before["caught"] in (0.0, 1.0), "it knows nothing"
    _, figures = trained()
    assert figures["kept"] > 0.9
    assert 0.35 < figures["caught"] < 0.65
    assert trained()[0].trainee.evaluate() == figures, "the mistakes are the same every time"


def test_the_bundle_judges_as_the_training_did(tmp_path: Path) -> None:
    training, _ = trained()
    write_trained(
        tmp_path / "judge.safetensors",
        kind="judge",
        target=topics_checkpoint().source.fingerprint,
        settings=training.settings,
        tensors=training.tensors(),
        card={},
    )
    manifest = export_checkpoint(
        topics_checkpoint(), tmp_path / "b", weights="fp32", formats=("reference",),
        trained=[tmp_path / "judge.safetensors"],
    )  # fmt: skip
    target = open_backend(tmp_path / "b", manifest, "reference", None).backend
    judge = JudgeOfBundle(tmp_path / "b", manifest, target, None).get()
    for topic, other in (TOPICS, TOPICS[::-1]):
        cache = target.new_cache()
        target.step(Tree.chain([*topic][:8]), cache)
        cache.commit(range(8))
        tree = Tree(np.array([topic[9], topic[3], other[2], other[5]]), np.array([-1, 0, 0, 0]))
        fine = judge.verdicts(tree, target.step(tree, cache), range(4))
        assert fine[:2].min() > 0.5 > fine[2:].max()


def test_mistakes_of_a_batch() -> None:
    """One a document, in its answer and not its first token; only what stands before it counts."""
    training = prepared(near=0.5)
    module = training.trainee.module
    assert isinstance(module, JudgeModule)
    batch = training.trainee.batch(0)
    marked, again = module._mark(batch, 5), module._mark(batch, 5)
    assert torch.equal(marked.tokens, again.tokens)
    assert not torch.equal(marked.tokens, module._mark(batch, 6).tokens)
    changed = marked.tokens != batch["tokens"]
    assert torch.equal(changed, marked.wrong)
    for row, documents in enumerate(batch["documents"].numpy()):
        for number in range(1, documents.max() + 1):
            answer = np.flatnonzero((documents == number) & batch["answer"].numpy()[row])
            (at,) = np.flatnonzero((documents == number) & marked.wrong.numpy()[row])
            assert at in answer[1:]
            right = np.flatnonzero((documents == number) & marked.right.numpy()[row])
            assert right.tolist() == [place for place in answer if place < at]


def test_near_mistakes_are_unlikely_words_of_the_target() -> None:
    module = prepared(near=1.0, unlikely=0.01).trainee.module
    assert isinstance(module, JudgeModule)
    batch = prepared().trainee.batch(0)
    marked = module._mark(batch, 3)
    with torch.no_grad():
        stream = module._states(batch)[module._states.last]
        law = torch.softmax(module._output(features=stream).logits, -1)
    rows = torch.nn.functional.pad(marked.wrong[:, 1:], (0, 1))
    chances = law[rows].gather(1, marked.tokens[marked.wrong][:, None])
    assert chances.max() < 0.01


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="near"):
        prepared(near=2)

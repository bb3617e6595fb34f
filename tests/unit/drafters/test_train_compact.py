"""Training of a compact draft: it learns a language that its target's tables do not hold."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tiny.language import language_checkpoint  # noqa: E402

from quickdraft.drafters.train.compact import CompactModule, CompactTrainee, prepare_compact  # noqa: E402
from quickdraft.drafters.train.data import Corpus, Document  # noqa: E402
from quickdraft.drafters.train.kinds import DraftTraining, Request  # noqa: E402
from quickdraft.drafters.train.loop import LoopOptions, train  # noqa: E402
from quickdraft.errors import CheckpointError, OptionError  # noqa: E402
from quickdraft.export.checkpoints.base import WeightMap  # noqa: E402
from quickdraft.export.heads.compact import CompactSettings, compact_part  # noqa: E402
from quickdraft.export.trained import Target, write_trained  # noqa: E402
from quickdraft.export.weights import dense_weight  # noqa: E402

pytestmark = pytest.mark.torch
WORDS = np.arange(40, 48)
OPTIONS = {
    "width": 64,
    "head_dim": 32,
    "mlp_width": 128,
    "window": 16,
    "vocab_size": 8,
    "rows": 8,
    "length": 64,
    "dtype": "float32",
}


def sums(count: int, seed: int) -> Corpus:
    """Every word is the sum of the two before it, in an arithmetic of eight words."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        said = rng.integers(0, 8, 2).tolist()
        while len(said) < 30:
            said.append((said[-1] + said[-2] + 1) % 8)
        tokens = WORDS[said].astype(np.int32)
        documents.append(Document(tokens, 2, int(rng.integers(0, 2**63))))
    return Corpus(tuple(documents), 320, str(seed))


def prepared(held_out: Corpus | None = None, seed: int = 0, **options: object) -> DraftTraining:
    target = Target.of(language_checkpoint())
    request = Request(
        target, sums(60, 0), held_out or sums(12, 1), OPTIONS | options, seed, torch.device("cpu")
    )
    return prepare_compact(request)


def run(training: DraftTraining, steps: int) -> tuple[CompactTrainee, dict[str, float]]:
    options = LoopOptions(steps=steps, rate=4e-3, device="cpu", evaluations=1)
    outcome = train(training.trainee, options)
    trainee = training.trainee
    assert isinstance(trainee, CompactTrainee)
    return trainee, dict(outcome.history.held_out[-1].figures)


def test_it_learns_what_depends_on_two_words() -> None:
    training = prepared()
    before = training.trainee.evaluate()
    assert before["accepted"] < 0.4
    _, figures = run(training, 120)
    assert figures["accepted"] > 0.95
    assert figures["tokens_per_step"] > 4
    assert figures["covered"] == 1


def test_what_it_learnt_is_what_is_written() -> None:
    training = prepared()
    trainee, _ = run(training, 5)
    settings = CompactSettings.of(training.settings)
    arrays = training.tensors()
    assert arrays["tokens"].tolist() == WORDS.tolist()
    weights = WeightMap({name: dense_weight(name, values) for name, values in arrays.items()})
    part = compact_part(Target.of(language_checkpoint()), settings, weights)
    from quickdraft.export.emitters.torch import TorchModel

    tokens = torch.from_numpy(sums(1, 3).documents[0].tokens[None].astype(np.int64))
    with torch.no_grad():
        expected = trainee.module.draft(tokens).logits
        assert torch.equal(TorchModel(part.build)(tokens).logits, expected)


def test_hits_are_those_of_reading_word_by_word() -> None:
    training = prepared(held_out=sums(5, 2))
    trainee, _ = run(training, 20)
    module: CompactModule = trainee.module
    batch = next(trainee._held_out.all_batches())
    with torch.no_grad():
        judged = module.judge(batch)
    found = 0
    for row in range(len(batch["tokens"])):
        for number in range(1, int(batch["documents"][row].max()) + 1):
            here = batch["documents"][row] == number
            tokens = batch["tokens"][row][here]
            with torch.no_grad():
                said = module.draft(tokens[None]).logits[0].argmax(-1)
            right = torch.from_numpy(WORDS)[said[:-1]] == tokens[1:]
            assert judged.hits[row][here][1:].tolist() == right.tolist()
            found += 1
    assert found == 5


def test_tokens_it_cannot_draft_are_not_asked_for() -> None:
    training = prepared(vocab_size=6)
    _, figures = run(training, 60)
    assert 0.6 < figures["covered"] < 0.95
    assert figures["accepted"] <= figures["covered"]


def test_the_target_s_distribution_can_be_learnt() -> None:
    training = prepared(distil=1.0, vocab_size=300, prompt_weight=1.0)
    teacher = training.trainee.module._teacher
    batch = training.trainee.batch(0)
    trainee, _ = run(training, 60)

    def distance() -> float:
        module = trainee.module
        asked, _, _ = module._asked(batch)
        said = torch.log_softmax(module._logits(batch, asked), -1)
        return float(module._divergence(batch, asked, said).mean())

    with torch.no_grad():
        learnt = distance()
        trainee.module.draft.load_state_dict(
            prepared(distil=1.0, vocab_size=300).trainee.module.draft.state_dict()
        )
        assert learnt < 0.3 * distance()
    assert teacher is trainee.module._teacher
    assert not [name for name, _ in trainee.module.named_parameters() if "lm_head" in name]


def written(file: Path, training: DraftTraining, kind: str = "compact") -> Path:
    write_trained(
        file,
        kind=kind,
        target="any",
        settings=training.settings,
        tensors=training.tensors(),
        card={"recipe": training.recipe},
    )
    return file


def test_it_goes_on_from_another_draft(tmp_path: Path) -> None:
    first = prepared()
    _, figures = run(first, 120)
    file = written(tmp_path / "first", first)
    shapeless = {name: value for name, value in OPTIONS.items() if name in ("rows", "length")}
    target = Target.of(language_checkpoint())
    options = {**shapeless, "start": str(file), "vocab_size": 20}
    request = Request(target, sums(60, 0), sums(12, 1), options, 5, torch.device("cpu"))
    second = prepare_compact(request)
    assert second.settings == {**first.settings, "vocab_size": 20}
    assert second.options["width"] == 64
    assert second.options["started"]["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert first.recipe in second.recipe
    before = second.trainee.evaluate()
    # Twelve words more that nobody says, and int8, are all that is new.
    assert before["accepted"] == pytest.approx(figures["accepted"], abs=0.1)
    assert before["accepted"] > 0.85
    untrained = prepared(seed=5).trainee.evaluate()
    assert untrained["accepted"] < 0.4
    tokens = second.tensors()["tokens"].tolist()
    assert set(WORDS.tolist()) < set(tokens)
    assert len(tokens) == 20


def test_what_it_does_not_go_on_from(tmp_path: Path) -> None:
    file = written(tmp_path / "first", prepared())
    with pytest.raises(OptionError, match="width of drafter compact is 32"):
        prepared(start=str(file), width=32)
    with pytest.raises(OptionError, match="of kind 'medusa'"):
        prepared(start=str(written(tmp_path / "other", prepared(), "medusa")))
    with pytest.raises(CheckpointError, match="is not a file"):
        prepared(start=str(tmp_path / "nothing"))
    wide = Target.of(language_checkpoint(hidden_size=64))
    options = {**OPTIONS, "start": str(file)}
    request = Request(wide, sums(60, 0), sums(12, 1), options, 0, torch.device("cpu"))
    with pytest.raises(OptionError, match="a model of another shape"):
        prepare_compact(request)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_prompts_count_as_they_are_told_to(weight: float) -> None:
    training = prepared(prompt_weight=weight)
    module = training.trainee.module
    batch = training.trainee.batch(0)
    asked, wanted, answer = module._asked(batch)
    assert len(wanted) == int(asked.sum())
    assert bool(answer.all()) is (weight == 0)

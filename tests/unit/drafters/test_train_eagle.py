"""The eagle head learns a tiny language, and drafts it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.folders import lasting_folder
from tiny.followers import followers_checkpoint, text

torch = pytest.importorskip("torch")

from quickdraft.drafters.train.data import Corpus, Document  # noqa: E402
from quickdraft.drafters.train.eagle import EagleModule, prepare_eagle  # noqa: E402
from quickdraft.drafters.train.kinds import DraftTraining, Request  # noqa: E402
from quickdraft.drafters.train.loop import train  # noqa: E402
from quickdraft.errors import OptionError  # noqa: E402
from quickdraft.export.pipeline import export_checkpoint  # noqa: E402
from quickdraft.export.trained import Target, write_trained  # noqa: E402
from quickdraft.runtime.drafting import DraftingSetup  # noqa: E402
from quickdraft.runtime.model import Model  # noqa: E402

pytestmark = pytest.mark.torch

SIZES = {"hidden_states": "0,2", "vocab_size": 24, "mlp_width": 32, "length": 64, "keep": 16}


def corpus(count: int, seed: int) -> Corpus:
    documents = tuple(Document(text(60, seed + n), 4, n) for n in range(count))
    return Corpus(documents, 320, f"{seed}")


def prepared(**options: Any) -> DraftTraining:
    given: Mapping[str, Any] = {**SIZES, "dtype": "float32", **options}
    cpu = torch.device("cpu")
    target = Target.of(followers_checkpoint())
    return prepare_eagle(Request(target, corpus(40, 0), corpus(6, 1000), given, 0, cpu))


@functools.cache
def trained() -> tuple[DraftTraining, Mapping[str, float]]:
    """A training that is done, and its last figures."""
    training = prepared(sampling_width=16)
    options = training.loop(steps=80, rate=0.02, device="cpu", evaluations=1)
    outcome = train(training.trainee, options)
    assert outcome.finished
    return training, outcome.history.held_out[-1].figures


@functools.cache
def bundle() -> Path:
    folder = lasting_folder("eagle-")
    training, _ = trained()
    write_trained(
        folder / "head.safetensors",
        kind="eagle",
        target=followers_checkpoint().source.fingerprint,
        settings=training.settings,
        tensors=training.tensors(),
        card={"recipe": training.recipe},
    )
    export_checkpoint(
        followers_checkpoint(),
        folder / "bundle",
        weights="fp32",
        formats=("reference",),
        trained=[folder / "head.safetensors"],
    )
    return folder / "bundle"


def test_every_step_learns_what_there_is_to_know() -> None:
    """What follows a word is decided by that word, which the head reads at every step."""
    _, figures = trained()
    for step in (1, 2, 3):
        assert figures[f"agree.{step}"] > 0.95
    # Words are the likelier follower at a rate of 0.6.
    assert figures["tokens_per_step"] == pytest.approx(1 + 0.6 + 0.36 + 0.216, abs=0.3)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "drawn"])
def test_it_drafts_the_language(options: dict[str, Any]) -> None:
    from quickdraft.bundle import open_bundle

    opened = open_bundle(bundle())
    setup = DraftingSetup("eagle", store=False)
    prompt = text(12, 77).tolist()
    with Model.open(
        opened.folder, manifest=opened.manifest, backend="reference", drafting=setup
    ) as model:
        asked = {"max_new_tokens": 60, "ignore_eos": True, **options}
        plain = model.generate(prompt, num_draft_tokens=0, **asked)
        drafted = model.generate(prompt, num_draft_tokens=6, **asked)
        assert drafted.token_ids == plain.token_ids
        # It follows paths of 0.6 and 0.4 as long as they are likely: two or three words.
        # At this temperature many words come that it never read.
        assert len(drafted.steps) <= 60 / (1.2 if options else 3)


def test_states_of_the_target_are_kept_and_the_same() -> None:
    kept, fresh = prepared(noise=0), prepared(noise=0, keep=0)
    for number in (0, 0, 1):
        batch = kept.trainee.batch(number)
        (loss, figures), (other, same) = kept.trainee.module(batch), fresh.trainee.module(batch)
        assert float(loss.detach()) == pytest.approx(float(other.detach()), rel=1e-3)
        assert set(figures) == set(same) == {"agree.1", "agree.2", "agree.3"}


def test_later_steps_see_what_the_runtime_would_show_them() -> None:
    """The logits of a step, against rows run one by one: the target's states up to a row, then the
    head's own."""
    training = prepared(test_steps=2, noise=0)
    module = training.trainee.module
    assert isinstance(module, EagleModule)
    batch = training.trainee.batch(0)
    with torch.no_grad():
        run, every = module.steps_of(batch)
        told = module.features(run.states)[..., :-32]
        row = 7
        assert run.rows[0, row] == 3 + row  # the first word of the answer is token 4
        t = int(run.rows[0, row])
        tokens, past, width = batch["tokens"], None, told.shape[-1]
        state = torch.zeros(1, 1, 32)
        for step, said in enumerate(every):
            if step == 0:
                read = tokens[:1, 1 : t + 2]
                features = torch.cat([told[:1, : t + 1], torch.zeros(1, t + 1, 32)], -1)
            else:
                read = tokens[:1, t + 1 + step : t + 2 + step]
                features = torch.cat([torch.zeros(1, 1, width), state], -1)
            output = module.head(read, features=features, past=past, hidden_states=(1,))
            past = output.present if past is None else past.join(output.present)
            state = output.hidden_states[1][:, -1:]
            assert torch.allclose(said.logits[0, row], output.logits[0, -1], atol=1e-4)


def test_rows_that_count() -> None:
    """Only words of answers, and only within their document."""
    module = prepared(test_steps=1).trainee.module
    documents = tuple(Document(text(10, n), 6, n) for n in range(2))
    tokens = torch.tensor(np.concatenate([d.tokens for d in documents]))[None].long()
    batch = {
        "tokens": tokens,
        "positions": torch.arange(10).repeat(2)[None],
        "documents": torch.tensor([1, 2]).repeat_interleave(10)[None],
        "answer": (torch.arange(20) % 10 >= 6)[None],
    }
    assert isinstance(module, EagleModule)
    run, _ = module.steps_of(batch)
    # Row t reads token t + 1, the first word of the answer at least, and says token t + 2.
    assert run.rows[run.counts[0]].tolist() == [5, 6, 7, 15, 16, 17]
    assert run.rows[run.counts[1]].tolist() == [5, 6, 15, 16]


def test_it_goes_on_from_a_trained_head() -> None:
    file = str(bundle().parent / "head.safetensors")
    again = prepared(sampling_width=16, start=file)
    figures = again.trainee.evaluate()
    assert figures["agree.1"] > 0.95
    learnt, _ = trained()
    assert again.tensors()["tokens"].tolist() == learnt.tensors()["tokens"].tolist()
    with pytest.raises(OptionError, match="same shape"):
        prepared(sampling_width=8, start=file)


@pytest.mark.parametrize("given", ["", "1,x", "3", "0,1,2,3,4", "-1"])
def test_streams_that_are_not_there(given: str) -> None:
    with pytest.raises(OptionError, match="hidden_states"):
        prepared(hidden_states=given)

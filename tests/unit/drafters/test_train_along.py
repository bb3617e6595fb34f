"""Heads that read along learn a tiny language, and draft it."""

from __future__ import annotations

from typing import Any

import pytest
from tiny.followers import LIKELY, text

torch = pytest.importorskip("torch")

from tiny.trained_heads import prepared, trained, trained_bundle  # noqa: E402

from quickdraft.bundle import open_bundle  # noqa: E402
from quickdraft.drafters.train.falcon import FalconModule  # noqa: E402
from quickdraft.runtime.drafting import DraftingSetup  # noqa: E402
from quickdraft.runtime.model import Model  # noqa: E402

pytestmark = pytest.mark.torch

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "fspad": ("eagle", {"sampling_width": 16, "two_outputs": True, "align": 1.0}),
    "falcon": ("falcon", {}),
    "chimera": ("chimera", {"heads": 3}),
    "clover": ("clover", {"heads": 3, "align": 0.5}),
}
STEPS, RATE = 120, 0.02
# What is said of the first token after a row that the head has read, and of every one.
LEAST = {
    "fspad": (0.95, 0.95),
    "clover": (0.95, 0.95),
    "chimera": (0.95, 0.95),
    "falcon": (0.95, LIKELY - 0.12),
}
# Tokens per step of a greedy and of a drawn answer.
SPEED = {"fspad": (3.0, 1.2), "clover": (3.0, 1.2), "chimera": (3.0, 1.2), "falcon": (2.0, 1.2)}


@pytest.mark.parametrize("name", RUNS)
def test_they_learn_what_there_is_to_know(name: str) -> None:
    """What follows a word is decided by that word. A block of falcon's is said at once: of its
    second word the head knows only the word before the first, and guesses which one came."""
    kind, options = RUNS[name]
    before = prepared(kind, **options).trainee.evaluate()
    _, figures = trained(kind, STEPS, RATE, **options)
    first, every = LEAST[name]
    assert figures["agree.1"] > first
    assert before["agree.1"] < 0.3
    steps = sum(figure.startswith("agree.") for figure in figures)
    assert steps == (4 if name == "falcon" else 3)
    for step in range(1, steps + 1):
        assert figures[f"agree.{step}"] > every
    if name == "falcon":
        assert figures["agree.3"] > 0.88, "the second block has read the first"
        assert figures["agree.2"] == pytest.approx(LIKELY, abs=0.12)
    assert figures["tokens_per_step"] > 1 + LIKELY


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", RUNS)
def test_they_draft_the_language(name: str, options: dict[str, Any]) -> None:
    kind, given = RUNS[name]
    opened = open_bundle(trained_bundle(kind, STEPS, RATE, **given))
    prompt, setup = text(12, 77).tolist(), DraftingSetup(kind, store=False)
    with Model.open(
        opened.folder, manifest=opened.manifest, backend="reference", drafting=setup
    ) as model:
        asked = {"max_new_tokens": 60, "ignore_eos": True, **options}
        plain = model.generate(prompt, num_draft_tokens=0, **asked)
        drafted = model.generate(prompt, num_draft_tokens=8, **asked)
        assert drafted.token_ids == plain.token_ids
        assert len(plain.token_ids) / len(drafted.steps) > SPEED[name][bool(options)]


def test_blocks_see_what_the_runtime_would_show_them() -> None:
    """Falcon's logits of two blocks, against rows run one by one."""
    training = prepared("falcon", noise=0, block=2, blocks=2)
    module = training.trainee.module
    assert isinstance(module, FalconModule)
    module.eval()
    batch = training.trainee.batch(0)
    with torch.no_grad():
        run, every = module.steps_of(batch)
        said = [each.logits for each in every]
        row = 7
        t = int(run.rows[0, row])
        told, tokens = module.features(run.states), batch["tokens"]
        width = told.shape[-1] - 32
        asked = torch.tensor([t, 2 * t + 1])
        output = module.head(
            tokens[:1, 1 : t + 2], features=told[:1, : t + 1], rows=asked, hidden_states=(1, 2)
        )
        assert torch.allclose(said[0][0, row], output.logits[0, 0], atol=1e-4)
        assert torch.allclose(said[1][0, row], output.logits[0, 1], atol=1e-4)
        own = torch.stack([output.hidden_states[k][0, -1] for k in (1, 2)])
        features = torch.cat([torch.zeros(2, width), own], -1)[None]
        again = module.head(
            tokens[:1, t + 2 : t + 4], features=features, past=output.present,
            rows=torch.tensor([1, 3]),
        )  # fmt: skip
        assert torch.allclose(said[2][0, row], again.logits[0, 0], atol=1e-4)
        assert torch.allclose(said[3][0, row], again.logits[0, 1], atol=1e-4)


def test_glanced_blocks_read_the_target() -> None:
    """With a glance at every block that was said wrong, an untrained head reads no state of its
    own; without, it reads nothing else."""
    for glance in (0.0, 1.0):
        module = prepared("falcon", noise=0, glance=glance).trainee.module
        assert isinstance(module, FalconModule)
        batch = prepared("falcon").trainee.batch(0)
        seen = []
        read = module._read
        module._read = lambda *given, read=read, seen=seen: seen.append(read(*given)) or seen[-1]  # type: ignore[method-assign]
        with torch.no_grad():
            list(module.steps_of(batch)[1])
        (features,) = seen
        from_target = features[..., :-32].abs().sum(-1) > 0
        from_itself = features[..., -32:].abs().sum(-1) > 0
        assert not (from_target & from_itself).any()
        assert from_target.float().mean() > 0.5 if glance else not from_target.any()


def test_a_state_is_held_against_the_targets() -> None:
    """Alignment is part of the loss, and learnt: states come near."""
    plain = prepared("eagle", noise=0, two_outputs=True)
    batch = plain.trainee.batch(0)
    aligned = prepared("eagle", noise=0, two_outputs=True, align=2.0)
    (low, _), (high, _) = (each.trainee.module(batch) for each in (plain, aligned))
    learnt, _ = trained("eagle", STEPS, RATE, two_outputs=True, align=2.0, noise=0)
    after: Any = learnt.trainee.module
    with torch.no_grad():
        run, every = after.steps_of(batch)
        distances = [
            float(after._distance(run, step, said.state)[run.counts[step]].mean())
            for step, said in enumerate(every)
        ]
    apart = float((high - low).detach()) / 2
    assert apart > 0.05
    assert max(distances) < 0.5 * apart

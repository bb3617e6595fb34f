"""The benchmark measures what it says, seen through a backend that counts and a made-up clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.models import write_tiny_model

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.runtime.backends.base import CancelToken, StepOutput, Trees
from quickdraft.runtime.benchmark import (
    Measurement,
    decode_seconds,
    measure,
    measure_text,
    prefill_seconds,
    random_tokens,
)
from quickdraft.runtime.model import Model
from quickdraft.types import Guarantee, ModelSpec

SPEC = ModelSpec("tiny", 1, 8, 50, 600, (1,), (1,), 8, (None,))


class CountingBackend:
    """Takes notes of every step, and a second per row."""

    name = "counting"
    flavour = "portable"
    spec = SPEC
    guarantee: Guarantee = "bit_identical"
    top = 0
    device = "CPU"
    isa = None
    kv_type = "f32"
    trees: Trees = "exact"

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, list[int] | None]] = []
        self.caches = 0
        self.now = 0.0

    def new_cache(self) -> KvCache:
        self.caches += 1
        return ContiguousCache(SPEC)

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        assert not full_logits, "no test looks at logits"
        wanted = None if rows is None else rows.tolist()
        self.steps.append((len(tree), cache.length, wanted))
        cache.stage(len(tree))
        self.now += len(tree)
        return StepOutput(np.zeros((1, SPEC.vocab_size), np.float32))

    def close(self) -> None: ...


def test_prefill_runs_in_chunks_and_wants_the_last_row() -> None:
    backend = CountingBackend()
    tokens = random_tokens(50, 300)
    seconds = prefill_seconds(backend, tokens, chunk=128, clock=lambda: backend.now)
    assert seconds == 300
    assert backend.steps == [(128, 0, [127]), (128, 128, [127]), (44, 256, [43])]


def test_decode_runs_one_row_per_step_from_an_empty_cache() -> None:
    backend = CountingBackend()
    assert decode_seconds(backend, random_tokens(50, 3), clock=lambda: backend.now) == 3
    assert backend.steps == [(1, 0, None), (1, 1, None), (1, 2, None)]


def test_every_repetition_starts_anew_after_a_warm_up() -> None:
    backend = CountingBackend()
    tests = list(measure(backend, prompts=(4, 8), decode=(2,), repetitions=3))
    assert [t.test for t in tests] == ["pp4", "pp8", "tg2"]
    assert [t.tokens for t in tests] == [4, 8, 2]
    assert all(len(t.seconds) == 3 and min(t.seconds) > 0 for t in tests)
    assert backend.caches == 3 * (1 + 3)
    assert len(backend.steps) == (1 + 3) * (1 + 1 + 2)


def test_tokens_are_the_same_every_time_and_in_the_vocabulary() -> None:
    tokens = random_tokens(50, 512)
    assert (tokens == random_tokens(50, 512)).all()
    assert (tokens[:100] == random_tokens(50, 100)).all()
    assert tokens.min() >= 0
    assert tokens.max() < 50


def test_statistics() -> None:
    m = Measurement("tg6", 6, (1.0, 2.0, 3.0))
    assert m.rates == (6.0, 3.0, 2.0)
    assert m.mean == pytest.approx(11 / 3)
    assert m.deviation == pytest.approx(float(np.std([6, 3, 2], ddof=1)))
    assert m.slowest == 2.0
    assert Measurement("tg6", 6, (2.0,)).deviation == 0.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repetitions": 0}, "repetitions is 0"),
        ({"prompts": (601,)}, "prompt test of 601 tokens .* 1 to 600"),
        ({"decode": (0,)}, "decode test of 0 tokens"),
        ({"decode": (-5,)}, "decode test of -5 tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    options: dict[str, object], says: str
) -> None:
    backend = CountingBackend()
    with pytest.raises(OptionError, match=says):
        list(measure(backend, **options))  # type: ignore[arg-type]
    assert not backend.steps


def test_text_is_decoded_with_and_without_a_drafter(tmp_path: Path) -> None:
    manifest = write_tiny_model(tmp_path / "b", formats=("reference",))
    bundle = open_bundle(tmp_path / "b")
    with Model.open(bundle.folder, manifest=manifest) as model:
        plain = measure_text(model, "ab" * 20, 12, "none", 2)
        drafted = measure_text(model, "ab" * 20, 12, "prompt_lookup", 2)
        assert (plain.test, drafted.test) == ("text12 none", "text12 prompt_lookup")
        assert plain.tokens == drafted.tokens == 11
        assert plain.tokens_per_step == 1.0
        assert plain.acceptance is None
        assert len(plain.seconds) == 2
        assert (drafted.tokens_per_step or 0) >= 1.0
        with pytest.raises(OptionError, match="at least 2"):
            measure_text(model, "ab", 1, "none")
        with pytest.raises(OptionError, match="prompt_lookup"):
            measure_text(model, "ab", 4, "prompt_lokup")

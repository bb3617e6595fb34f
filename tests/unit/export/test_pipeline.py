"""The pipeline: what it reports, and what it counts."""

from __future__ import annotations

import math
from pathlib import Path

from tiny.checkpoint import tiny_checkpoint

from quickdraft.export.pipeline import export_checkpoint


def test_progress_follows_the_weights_that_are_loaded(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    checkpoint = tiny_checkpoint()
    export_checkpoint(
        checkpoint,
        tmp_path / "bundle",
        formats=["onnx", "reference"],
        progress=lambda *step: seen.append(step),
    )
    emitted = [step for step in seen if step[0] == "emit"]
    used = len(checkpoint.weights.used)
    assert {step[0] for step in seen} == {"emit", "write"}
    # The count falls where the second format begins.
    second = next(i for i in range(1, len(emitted)) if emitted[i][1] < emitted[i - 1][1])
    for steps in (emitted[:second], emitted[second:]):
        counts = [done for _, done, _ in steps]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (1, used)
        assert {total for _, _, total in steps} == {used}


def test_parameters_are_those_of_the_target(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle", formats=["reference"])
    every = sum(math.prod(weight.shape) for weight in checkpoint.weights.values())
    assert manifest.model.num_parameters == every > 0

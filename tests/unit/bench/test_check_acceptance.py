"""The acceptance table is computed from result files as the issue words it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "bench" / "check_acceptance.py"


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """bench/check_acceptance.py as a module."""
    spec = importlib.util.spec_from_file_location("check_acceptance", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_acceptance"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_acceptance"]


def engine(t1: float, t8: float, t16: float, prefill: float, rss: float | None) -> dict[str, Any]:
    return {
        "T": {"1": t1, "8": t8, "16": t16}, "prefill": {"1024": prefill},
        "rss_mb": rss, "kv_bytes": 10_000_000,
    }  # fmt: skip


def curve(context: int, ours: dict[str, Any]) -> dict[str, Any]:
    peers = {"a": engine(50, 200, 90, 900, None), "b": engine(40, 100, 300, 800, None)}
    return {
        "model": "Qwen2.5.gguf", "context": context, "bandwidth_gbs": 50.0,
        "engines": {"quickdraft": ours, **peers},
    }  # fmt: skip


def test_figures(script: ModuleType, tmp_path: Path) -> None:
    result = {
        "weights_bytes": 1_000_000_000,
        "step_bytes": 900_000_000,
        "curves": [
            curve(256, engine(20, 30, 60, 400, 1300)), curve(4096, engine(26, 1, 1, 400, 1200)),
        ],
    }  # fmt: skip
    (tmp_path / "curve.json").write_text(json.dumps(result))
    start = {"model": "smollm2-135m", "load_s": 0.25, "first_token_s": 1.2}
    (tmp_path / "startup.json").write_text(json.dumps(start))
    scores = {"quickdraft": 10.04, "quickdraft+fp32": 10.0, "quickdraft+kv-f32": 10.0}
    (tmp_path / "perplexity-qwen.json").write_text(json.dumps({"perplexity": scores}))
    lines = {(line.model, line.figure): line for line in script.check(sorted(tmp_path.iterdir()))}
    expected = {
        "T(1) / best peer's": (0.5, "pass"),
        "T(1) / (bytes / bandwidth)": (20 / 18, "pass"),
        "T(8) / T(1)": (1.5, "pass"),
        "T(16) / T(1)": (3.0, "FAIL"),
        "T(8) / best peer's": (0.3, "pass"),
        "T(16) / best peer's": (60 / 90, "FAIL"),
        "prefill 1024 / best peer's": (0.5, "pass"),
        "T(1) at 4096 / at 256": (1.3, "pass"),
        "peak MB beyond weights and KV, context 256": (290, "FAIL"),
        "peak MB beyond weights and KV, context 4096": (190, "pass"),
        "perplexity / of float32": (1.004, "pass"),
    }
    for figure, (value, verdict) in expected.items():
        line = lines["qwen", figure]
        assert (line.value, line.verdict) == (pytest.approx(value), verdict), figure
    assert lines["qwen", "perplexity, int8 KV / float32 KV"].verdict == "missing"
    assert lines["smollm2", "load(), s"].verdict == "pass"
    assert lines["smollm2", "first token, s"].verdict == "FAIL"


def test_a_result_must_say_its_model(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match="qwen or smollm2"):
        list(script.check([tmp_path / "x.json"]))

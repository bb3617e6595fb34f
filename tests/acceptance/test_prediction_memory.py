"""The memory plan with a predictor and a refresh, beside what a process of its own really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models_fixture import gguf_path
from tiny.process import quickdraft

pytestmark = [
    pytest.mark.models,
    pytest.mark.torch,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="the system must say what is resident"),
]
FACTOR = 1.3
"""How far the plan may lie from the most that was resident, either way."""
ANSWER = """
import json, sys
from pathlib import Path
import numpy, onnxruntime, tokenizers
from quickdraft import load
from quickdraft.runtime.model_memory import plan_for

def resident():
    # Pages of a file that two sessions map are there once, and count once in this alone.
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))

before, prompt, seen = resident(), list(range(100, 100 + int(sys.argv[3]))), []
with load(sys.argv[1], drafter="none", prefill=sys.argv[2], store=False) as model:
    options = {"max_new_tokens": 64, "temperature": 0.0, "ignore_eos": True}
    look = lambda text: seen.append(resident() - before)
    result = model.generate(prompt, callback=look, **options)
    assert result.prefill == sys.argv[2], result.prefill
    needed = plan_for(model, len(prompt) + 64).needed
    print(json.dumps({"planned": needed, "resident": max(seen)}))
"""


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a predictor that needs no fit."""
    folder = tmp_path_factory.mktemp("memory")
    text = folder / "text.txt"
    text.write_text("\n".join(map(str, range(8000))), encoding="utf-8")
    gguf, made, out = gguf_path("smollm2-135m"), folder / "p.safetensors", folder / "bundle"
    fit = ["--method", "none", "--tokens", 256, "--length", 32, "--held-out", 2, "--measure", 2]
    done = quickdraft("train", "predictor", gguf, "--data", text, *fit, "-o", made)
    assert done.returncode == 0, done.stderr
    done = quickdraft("export", gguf, "--trained", made, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("prefill", ["exact", "predicted", "predicted+refresh"])
@pytest.mark.parametrize("tokens", [256, 2048])
def test_the_plan_is_near_what_is_resident(predicted: Path, prefill: str, tokens: int) -> None:
    command = [sys.executable, "-c", ANSWER, str(predicted), prefill, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{prefill}, {tokens} tokens: {found}")
    assert found["planned"] / FACTOR < found["resident"] < found["planned"] * FACTOR, found

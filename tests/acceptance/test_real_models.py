"""The main job on the two real models, as users meet it; figures are printed with `-s`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models_fixture import gguf_path
from tiny.process import quickdraft
from tiny.prompts import questions

from quickdraft import load
from quickdraft.models.aliases import ALIASES

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]

SMALL, CODER = "smollm2-135m", "qwen2.5-coder-1.5b"
EXPORT_LIMITS = {SMALL: (30, 1.2e9), CODER: (180, 4e9)}
"""Seconds, and bytes of memory at its peak."""

Ask = Callable[[str, str], dict[str, Any]]

EXPORT = """
import resource, sys, time
from pathlib import Path
started = time.perf_counter()
from quickdraft.export.pipeline import export_model
export_model(Path(sys.argv[1]), Path(sys.argv[2]))
assert 'torch' not in sys.modules
status = Path('/proc/self/status')
if status.exists():  # getrusage counts the parent as well, from before the exec
    peak = 1024 * int(status.read_text().split('VmHWM:')[1].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - started, peak)
"""

# What a program from a model may do: little, and not for long.
CAGE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
names = {}
exec(sys.stdin.read(), names)
print([bool(names['is_prime'](n)) for n in (1, 2, 9, 97, 7919)])
"""


@pytest.fixture(scope="module", params=EXPORT_LIMITS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, its bundle made by the present sources, and what making it took."""
    alias = request.param
    out = tmp_path_factory.mktemp("bundles") / alias
    command = [sys.executable, "-c", EXPORT, str(gguf_path(alias)), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak = map(float, done.stdout.split())
    return alias, out, seconds, peak


def test_export_is_quick_small_and_needs_no_torch(exported: Any) -> None:
    alias, _, seconds, peak = exported
    print(f"\n{alias}: exported in {seconds:.1f} s with {peak / 1e9:.2f} GB at most")
    most_seconds, most_bytes = EXPORT_LIMITS[alias]
    assert seconds < most_seconds
    assert peak < most_bytes


def test_drafted_answers_are_the_plain_ones_token_for_token(exported: Any) -> None:
    alias, bundle, *_ = exported
    answers: dict[str, list[tuple[int, ...]]] = {}
    drafted = accepted = 0
    for drafter in ("none", "prompt_lookup"):
        started = time.perf_counter()
        with load(bundle, drafter=drafter) as model:
            # A fixed number: what is planned depends on how busy the machine is.
            count = 0 if drafter == "none" else 5
            results = [
                model.chat(
                    [{"role": "user", "content": text}],
                    temperature=0,
                    max_new_tokens=48,
                    num_draft_tokens=count,
                )
                for text in questions(50 if alias == SMALL else 6)
            ]
        answers[drafter] = [result.token_ids for result in results]
        drafted = sum(result.timings.draft_n for result in results)
        accepted = sum(result.timings.draft_n_accepted for result in results)
        print(f"\n{alias}: {drafter} {time.perf_counter() - started:.1f} s", end="")
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    print(f"; {same} of {len(answers['none'])} equal, {accepted} of {drafted} drafts accepted")
    assert accepted > 0
    assert answers["prompt_lookup"] == answers["none"]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Gives the object that `quickdraft run --json` prints, from a cache that has checkpoints but
    no bundles: one made by older sources would answer for them."""

    def ask(alias: str, question: str) -> dict[str, Any]:
        file = tmp_path / "checkpoints" / alias / ALIASES[alias].file
        file.parent.mkdir(parents=True)
        file.symlink_to(gguf_path(alias))
        cache = {"QUICKDRAFT_CACHE": str(tmp_path)}
        pulled = quickdraft("pull", alias, env=cache)
        assert pulled.returncode == 0, pulled.stderr
        done = quickdraft("run", alias, question, "--temperature", 0, "--json", env=cache)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return ask


def test_the_small_model_knows_paris_and_prints_what_is_documented(ask: Ask) -> None:
    answer = ask(SMALL, "What is the capital of France?")
    assert "Paris" in answer["text"]
    assert answer["model"] == SMALL
    assert list(answer) == [
        *("text", "token_ids", "finish_reason", "model", "backend", "flavour", "device"),
        *("guarantee", "kv_cache", "isa", "degraded", "simulated", "prefill", "prediction"),
        *("source", "timings", "drafting", "placement"),
    ]
    assert list(answer["timings"]) == [
        *("load_ms", "ttft_ms", "prompt_n", "prompt_ms", "cached_n", "predicted_n"),
        *("predicted_ms", "predicted_per_second", "steps", "draft_n", "draft_n_accepted"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="the cage is made of POSIX resource limits")
def test_the_coder_writes_code_that_runs(ask: Ask, tmp_path: Path) -> None:
    text = ask(CODER, "Write a Python function is_prime(n). Only code.")["text"]
    block = re.search(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CAGE],
        input=block[1] if block else text,
        capture_output=True,
        text=True,
        timeout=20,
        env={},
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[False, True, False, True, True]"], text + done.stderr

"""`quickdraft bench speculation` on a tiny model, beside peers that decode nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny.process import call

from quickdraft.commands import bench_speculation
from quickdraft.commands.speculation_report import (
    LEAST_TOKENS,
    by_depth,
    by_drafter,
    category_figures,
    draw,
    groups,
    render,
)
from quickdraft.hashes import cache_root
from quickdraft.runtime.metrics import StepRecord
from quickdraft.runtime.speculation_bench import Decoded, Samples, random_prompt
from quickdraft.runtime.suites import Item

FAKE = Path(__file__).parents[2] / "tiny" / "fake_peer.py"
SMALL = ("--prompts", "2", "--tokens", "12", "--rounds", "1", "--threads", "1", "--ignore-eos")
RANDOM = (*SMALL, "--categories", "random")
FIGURES = {
    "plain_tps", "spec_tps", "ratio", "tokens_per_step", "identical", "worst_prompt_ratio",
    "acceptance_by_depth", "drafters", "verify_ms", "draft_ms",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_random_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdraft.runtime.suites.RANDOM_TOKENS", 20)


def install(folder: Path, name: str, behaviour: str = "answers") -> None:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(FAKE), behaviour]
    told = {
        "command": command,
        "convert": [sys.executable, "-c", "import os, sys; os.makedirs(sys.argv[2])"],
    }
    (folder / f"{name}.json").write_text(json.dumps(told))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two questions, and a conversation of four turns."""
    questions = [{"question_id": n, "category": "qa", "turns": ["ab"]} for n in (1, 2)]
    chats = [{"question_id": n, "category": "stem", "turns": ["a", "b"]} for n in (3, 4)]
    for name, rows in (("spec_bench", questions), ("mt_bench", chats)):
        file = tmp_path / "data" / name / "question.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_json_is_the_document(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "speculation.json"
    done = call(
        "bench", "speculation", tiny_bundle, *SMALL, "--categories", "qa,chat,random,noise",
        "--data", data, "--json", "--out", out, "--sweep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    kept = json.loads(out.read_text())
    assert result | {"date": ""} == kept | {"date": ""}
    assert {"model", "categories", "peers", "commit", "machine", "config"} <= set(result)
    assert list(result["categories"]) == ["qa", "chat", "random", "noise"]
    fixed = [f"fixed {n}" for n in (2, 4, 8, 16)]
    assert list(result["settings"]) == ["plain", "auto", *fixed]
    for name, found in result["categories"].items():
        assert set(found) >= FIGURES
        assert found["prompts"] == (1 if name == "chat" else 2)
        turns = 4 if name == "chat" else found["prompts"]
        assert found["tokens"] == 11 * turns
        assert found["identical"]
        assert list(found["settings"]) == ["plain", *fixed]
        assert all(setting["identical"] for setting in found["settings"].values())
        assert found["ratio"] == pytest.approx(found["spec_tps"] / found["plain_tps"], rel=1e-3)
    assert result["peers"] == {}
    assert str(tmp_path) not in out.read_text()
    assert not (cache_root() / "drafting").exists(), "the user's store was touched"


def test_tables(tiny_bundle: Path) -> None:
    done = call("bench", "speculation", tiny_bundle, *RANDOM, "--draft-tokens", "3")
    assert done.returncode == 0, done.stderr
    title, _, head, line, *_ = done.stdout.splitlines()
    assert title == "tiny, tokens per second"
    assert head.split()[:5] == ["category", "plain", "drafted", "ratio", "worst"]
    assert line.split()[0] == "random"
    assert line.split()[-1] == "yes"
    assert "drafter auto, best of 1 rounds, learning from prompt to prompt" in done.stdout
    assert "peers" not in done.stdout
    assert "fixed numbers" not in done.stdout


def test_peers_in_all_modes_or_some(tiny_gguf: Path, tmp_path: Path) -> None:
    install(tmp_path / "peers", "llama.cpp")
    install(tmp_path / "peers", "transformers")
    arguments = (tiny_gguf, *RANDOM, "--json", "--peers", "llama.cpp,transformers+float32")
    where = ("--peers-dir", tmp_path / "peers")
    done = call("bench", "speculation", *arguments, *where, "--categories", "random,noise")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # They decode one token in 20 ms or 10 ms. Noise is not theirs to be asked for.
    plain, ngram = {"random": 50.0}, {"random": 100.0}
    assert result["peers"] == {
        "llama.cpp/plain": plain, "llama.cpp/ngram": ngram,
        "transformers+float32/plain": plain, "transformers+float32/ngram": ngram,
    }  # fmt: skip
    assert result["facts"]["transformers+float32/ngram"]["setting"] == ["float32"]
    assert "peers in their best modes, tokens per second" in render(result)
    done = call("bench", "speculation", *arguments, *where, "--peer-modes", "ngram")
    assert list(json.loads(done.stdout)["peers"]) == [
        "llama.cpp/ngram",
        "transformers+float32/ngram",
    ]
    done = call("bench", "speculation", *arguments, *where, "--peer-modes", "magic")
    assert done.returncode == 2
    assert "none of llama.cpp, transformers+float32 has magic" in done.stderr


def test_a_peer_that_dies(tiny_gguf: Path, tmp_path: Path) -> None:
    install(tmp_path, "llama.cpp", "dies")
    peers = ("--peers", "llama.cpp", "--peers-dir", tmp_path)
    done = call("bench", "speculation", tiny_gguf, *RANDOM, *peers)
    assert done.returncode == 1
    assert "llama.cpp ended with exit code 1:\nout of ideas" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("cold", [False, True])
def test_drafting_begins_empty_in_every_round(
    cold: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    unpatched = bench_speculation._opened

    def counted(*arguments: Any) -> Any:
        opened.append(arguments[-1])
        return unpatched(*arguments)

    monkeypatch.setattr(bench_speculation, "_opened", counted)
    line = (tiny_bundle, *RANDOM, "--rounds", "3", "--json", *["--cold"] * cold)
    done = call("bench", "speculation", *line)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rounds"], result["cold"]) == (3, cold)
    # Once a round; if nothing is to be kept, also once a prompt.
    assert len(opened) == 3 + cold * 3 * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rounds", "0"], "rounds is 0"),
        (["--prompts", "0"], "prompts is 0"),
        (["--tokens", "1"], "tokens is 1; it must be between 2 and 50000"),
        (["--tokens", "99999"], "tokens is 99999; it must be between 2 and 50000"),
        (["--categories", "poems"], "there is no category 'poems'"),
        (["--categories", ""], "nothing to measure"),
        (["--categories", "qa"], "name one with --data or QUICKDRAFT_DATA"),
        (["--data", "/no/such/folder"], "--data"),
        (["--draft-tokens", "-1"], "num_draft_tokens is -1"),
        (["--drafter", "none"], "there would be nothing to compare"),
        (["--drafter", "magic"], "magic"),
        (["--top-p", "0"], "top_p is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--plot", "plot.svg"], "does not end in .png"),
        (["--peers", "llama"], "available: llama.cpp, onnxruntime-genai, openvino-genai, transf"),
        (["--peers", "llama.cpp", "--peers-dir", "nowhere"], "llama.cpp is not installed"),
        (["--peers", "llama.cpp", "--temperature", "0.8"], "leave --temperature at 0"),
    ],
)
def test_bad_options(
    arguments: list[str], says: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUICKDRAFT_DATA", raising=False)
    monkeypatch.setattr(
        "quickdraft.runtime.speculation_bench.measure_speculation", lambda *_: pytest.fail("ran")
    )
    done = call("bench", "speculation", tiny_bundle, *RANDOM, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout


def test_sampled_answers(tiny_bundle: Path) -> None:
    line = (tiny_bundle, *RANDOM, "--temperature", "0.8", "--top-p", "0.95", "--json")
    done = call("bench", "speculation", *line)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["config"]["temperature"], result["config"]["top_p"]) == (0.8, 0.95)
    # Model-free drafters are deterministic: the same random numbers choose the same tokens.
    assert result["categories"]["random"]["identical"]


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("complete", [0, 1, 3])
def test_ctrl_c_keeps_complete_prompts(complete: int, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "speculation.json"
    # In a process of its own, told to interrupt itself when a prompt begins.
    script = (
        "import os, signal, sys, quickdraft.runtime.speculation_bench as bench\n"
        "from quickdraft.cli import main\n"
        "begun, converse = [], bench._converse\n"
        "def counted(*arguments):\n"
        "    begun.append(1)\n"
        f"    if len(begun) > {complete}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return converse(*arguments)\n"
        "bench._converse = counted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    line = ["bench", "speculation", str(tiny_bundle), *RANDOM, "--rounds", "2", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert out.exists() == bool(complete)
    if complete:
        result = json.loads(out.read_text())
        assert result["interrupted"]
        assert result["rounds"] == (1 if complete == 3 else 0)
        assert result["categories"]["random"]["prompts"] == min(complete, 2)
        assert f"interrupted after {result['rounds']} complete rounds" in done.stdout
    else:
        assert not done.stdout


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plot(tiny_gguf: Path, tmp_path: Path) -> None:
    install(tmp_path / "peers", "llama.cpp")
    plot = tmp_path / "plots" / "speculation.png"
    peers = ("--peers", "llama.cpp", "--peers-dir", tmp_path / "peers")
    done = call("bench", "speculation", tiny_gguf, *RANDOM, *peers, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")


def step(depth: int, accepted: int, **rest: Any) -> StepRecord:
    times = {"draft_s": 0.001, "verify_s": 0.01, "sample_s": 0.0}
    return StepRecord(depth, accepted, accepted + 1, depth + 1, depth=depth, **times, **rest)


def test_acceptance_by_depth_and_drafter() -> None:
    steps = [
        step(3, 2, by_drafter={"a": (3, 2)}, draft_s_by={"a": 0.001, "b": 0.003}),
        step(1, 1, by_drafter={"a": (1, 1), "b": (1, 1)}),
        step(1, 0),
        step(0, 0),
    ]
    assert by_depth(steps) == [round(2 / 3, 4), 1.0, 0.0]
    assert by_depth([]) == []
    assert by_drafter(steps) == {
        "a": {"drafted": 4, "accepted": 3, "acceptance": 0.75, "draft_ms": 0.25},
        "b": {"drafted": 1, "accepted": 1, "acceptance": 1.0, "draft_ms": 0.75},
    }


def answers(*seconds: float, ids: tuple[int, ...] = tuple(range(11))) -> Iterator[Any]:
    """One answer per round."""
    return ((Decoded(ids, len(ids) - 1, 0.1, spent, (step(4, 4),) * 2),) for spent in seconds)


def test_figures_of_a_category() -> None:
    samples = Samples()
    rounds = zip(answers(1.0, 2.0), answers(0.5, 0.8), answers(0.25, 0.3), strict=True)
    for plain, auto, fixed in rounds:
        samples.add("c", Item("first"), {"plain": plain, "auto": auto, "fixed 2": fixed}, 9)
    other = zip(answers(1.0), answers(2.0, ids=(*range(10), 99)), answers(1.0), strict=True)
    for plain, auto, fixed in other:
        samples.add("c", Item("second"), {"plain": plain, "auto": auto, "fixed 2": fixed}, 9)
    short = {"plain": next(answers(1.0, ids=(1, 2))), "auto": next(answers(50.0, ids=(1, 2)))}
    samples.add("c", Item("third"), short | {"fixed 2": short["plain"]}, 9)
    found = category_figures("c", samples, ("plain", "auto", "fixed 2"))
    assert found["plain_tps"] == 7.0  # 10, 10 and 1 tokens in 1 s each
    assert found["spec_tps"] == 0.4  # in 0.5 s, 2 s and 50 s
    assert found["ratio"] == round(0.4 / 7.0, 4)
    assert [answer["ratio"] for answer in found["answers"]] == [2.0, 0.5, None]
    assert found["worst_prompt_ratio"] == 0.5
    assert not found["identical"]
    assert [answer["identical"] for answer in found["answers"]] == [True, False, True]
    assert found["settings"]["fixed 2"] == {"tps": 9.333, "identical": True}
    assert found["of_best_setting"] == round(0.4 / 9.333, 4)
    assert (found["tokens_per_step"], found["verify_ms"], found["draft_ms"]) == (5.0, 10.0, 1.0)
    assert 1 < LEAST_TOKENS <= 10


def test_a_round_that_differs_is_not_identical() -> None:
    samples = Samples()
    for ids in ((1, 2, 3), (1, 2, 4)):
        turns = next(answers(1.0, ids=ids))
        samples.add("c", Item("i"), {"plain": turns, "auto": turns}, 3)
    assert not samples.identical("c", "i", "auto")


def test_groups_are_of_whole_benchmarks() -> None:
    code = {"humaneval": {"ratio": 2.0}, "mbpp": {"ratio": 3.0}}
    assert groups(code | {"qa": {"ratio": 9.0}}) == {"code": {"ratio": 2.5}}
    assert groups(code | {"mbpp": {"ratio": None}}) == {}


def test_ratios_to_the_best_peer(tmp_path: Path) -> None:
    category = {
        "plain_tps": 50.0, "spec_tps": 90.0, "ratio": 1.8, "worst_prompt_ratio": None,
        "tokens_per_step": 2.5, "acceptance": None, "verify_ms": 20.0, "draft_ms": 0.2,
        "identical": False,
    }  # fmt: skip
    result = {
        "model": "m", "categories": {"qa": category, "noise": category}, "weights": "int4",
        "settings": {"plain": {}, "auto": {}}, "groups": {"code": {"ratio": 2.0}}, "threads": 2,
        "drafter": "auto", "rounds": 2, "cold": True, "interrupted": False,
        "peers": {"a/plain": {"qa": 30.0}, "a/ngram": {"qa": 45.0}, "b/plain": {"qa": 10.0}},
    }  # fmt: skip
    text = render(result)
    lines = [line.split() for line in text.splitlines()]
    assert ["qa", "50.0", "90.0", "1.80", "2.50", "20.00", "0.200", "NO"] in lines
    assert ["category", "a", "mode", "b", "mode", "ours", "to", "best"] in lines
    assert ["qa", "45.0", "ngram", "10.0", "plain", "90.0", "2.00"] in lines
    assert ["noise", "90.0"] in lines
    assert "code: mean ratio 2.00" in text
    assert "nothing learnt is kept" in text
    if find_spec("matplotlib") is not None:
        assert draw(result).startswith(b"\x89PNG")


def test_random_prompts_are_always_the_same() -> None:
    prompt = random_prompt(Item("random/1", random_tokens=50), 1000)
    assert prompt == random_prompt(Item("random/1", random_tokens=50), 1000)
    assert prompt != random_prompt(Item("random/2", random_tokens=50), 1000)
    assert len(set(prompt)) > 30
    assert max(prompt) < 1000

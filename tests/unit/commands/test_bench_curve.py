"""`quickdraft bench curve` on a tiny model, beside peers that measure nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny.process import call

from quickdraft.commands import bench_curve, result_files
from quickdraft.commands.curve_report import render

FAKE = Path(__file__).parents[2] / "tiny" / "fake_peer.py"
SMALL = ("--context", "8", "--rows", "1,4", "--prefill", "16", "--rounds", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdraft.device_profiles.bandwidth.BYTES", 1 << 20)
    monkeypatch.setattr("quickdraft.device_profiles.bandwidth.read_bandwidth", lambda threads: 10.0)


def install(
    folder: Path, name: str, behaviour: str = "answers", convert: str = "os.makedirs(sys.argv[2])"
) -> None:
    """Describe a fake peer. convert: what its converter does; its arguments are FILE and FOLDER."""
    folder.mkdir(exist_ok=True)
    told = {
        "command": [sys.executable, str(FAKE), behaviour],
        "convert": [sys.executable, "-c", f"import os, sys; {convert}"],
    }
    (folder / f"{name}.json").write_text(json.dumps(told))


def test_json_is_the_document(tiny_gguf: Path, tmp_path: Path) -> None:
    install(tmp_path / "peers", "openvino-genai")
    out = tmp_path / "out" / "curve.json"
    done = call(
        "bench", "curve", tiny_gguf, *SMALL, "--context", "12", "--json", "--out", out,
        "--peers", "openvino-genai,openvino-genai+f16", "--peers-dir", tmp_path / "peers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert {"date", "version", "commit", "command", "machine", "versions"} <= set(result)
    assert (result["threads"], result["rounds"], result["interrupted"]) == (1, 1, False)
    assert 0 < result["step_bytes"] <= result["weights_bytes"]
    assert [curve["context"] for curve in result["curves"]] == [8, 12]
    for curve in result["curves"]:
        assert list(curve) == ["model", "context", "bandwidth_gbs", "engines"]
        assert curve["model"] == "small.gguf"
        assert list(curve["engines"]) == [
            "quickdraft", "openvino-genai", "openvino-genai+f16",
        ]  # fmt: skip
        for engine in curve["engines"].values():
            assert list(engine["T"]) == list(engine["T_median"]) == ["1", "4"]
            assert list(engine["prefill"]) == ["16"]
            assert engine["rss_mb"] > 0
        ours, theirs, other = curve["engines"].values()
        assert [theirs["facts"]["setting"], other["facts"]["setting"]] == [[], ["f16"]]
        assert ours["kv_bytes"] > 0
        assert ours["facts"]["backend"]
        assert theirs["T"] == {"1": 0.001, "4": 0.004}
        assert theirs["rss_mb"] == 5.0
    assert str(tmp_path) not in out.read_text()


def test_table_has_ratios(tiny_bundle: Path) -> None:
    done = call("bench", "curve", tiny_bundle, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "to best peer" not in done.stdout
    title, _, head, *lines = done.stdout.splitlines()
    assert title == "tiny, context 8, in ms"
    assert head.split() == ["test", "quickdraft", "to", "T(1)"]
    assert [line.split()[0] for line in lines[:4]] == ["T(1)", "T(4)", "prefill", "peak"]
    assert "minimum of 1 rounds, 1 threads" in done.stdout


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        ("cpu", 0, "tiny, context 8"),
        ("simulated:npu-pim", 2, "has the curve of its profile"),
        ("tpu", 2, "no device 'tpu'"),
    ],
)
def test_a_device_is_chosen_as_elsewhere(
    tiny_bundle: Path, device: str, code: int, said: str
) -> None:
    done = call("bench", "curve", tiny_bundle, *SMALL, "--device", device)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


def figures(t: dict[str, float], prefill: dict[str, float], rss: float) -> dict[str, Any]:
    return {"T": t, "prefill": prefill, "rss_mb": rss}


def test_ratios_are_against_the_best_peer_of_each_test() -> None:
    curve = {
        "model": "m",
        "context": 256,
        "bandwidth_gbs": 50.0,
        "engines": {
            "quickdraft": figures({"1": 25.0, "8": 40.0}, {"128": 100.0}, 1000.4),
            "a": figures({"1": 50.0, "8": 200.0}, {"128": 400.0}, 1.0),
            "b": figures({"1": 100.0, "8": 100.0}, {"128": 200.0}, 1.0),
        },
    }
    result = {
        "curves": [curve], "interrupted": True, "rounds": 2, "threads": 2, "weights": "gguf",
        "step_bytes": 1_000_000_000,
    }  # fmt: skip
    lines = render(result).splitlines()
    assert lines[3].split() == ["T(1)", "25.00", "50.00", "100.00", "0.50", "1.00"]
    assert lines[4].split() == ["T(8)", "40.00", "200.00", "100.00", "0.40", "1.60"]
    assert lines[5].split() == ["prefill", "128", "100.00", "400.00", "200.00", "0.50"]
    assert lines[6].split() == ["peak", "MB", "1000", "1", "1"]
    assert "1000 MB of weights a step at 50.0 GB/s: 20.00 ms at the least; T(1) is 1.25" in lines[8]
    assert lines[-1] == "interrupted after 2 complete rounds"


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plot(tiny_bundle: Path, tmp_path: Path) -> None:
    done = call("bench", "curve", tiny_bundle, *SMALL, "--plot", tmp_path / "curve.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_without_matplotlib_nothing_is_measured(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_curve, "_measure", lambda *_: pytest.fail("measured"))
    done = call("bench", "curve", tiny_bundle, *SMALL, "--plot", tmp_path / "curve.png")
    assert done.returncode == 2
    assert "pip install 'quickdraft[bench]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rounds", "0"], "rounds is 0"),
        (["--rows", ""], "nothing to measure"),
        (["--rows", "1,x"], "--rows"),
        (["--rows", "0"], "rows is 0"),
        (["--context", "-1"], "context is -1"),
        (["--context", "1000000"], "context 1000000"),
        (["--prefill", "1000000"], "prefill 1000000"),
        (["--threads", "0"], "threads is 0"),
        (["--plot", "curve.svg"], "does not end in .png"),
        (["--peers", "llama"], "there is no peer 'llama'; available: llama.cpp"),
        (["--peers", "llama.cpp", "--peers-dir", "nowhere"], "llama.cpp is not installed"),
        (["--checkpoint", "/no/such/file"], "--checkpoint"),
    ],
)
def test_bad_options(
    arguments: list[str], says: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_curve, "_measure", lambda *_: pytest.fail("measured"))
    done = call("bench", "curve", tiny_bundle, *SMALL, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout


def test_peers_need_the_file_of_the_bundle(
    tiny_bundle: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    install(tmp_path / "peers", "llama.cpp")
    with_peer = (*SMALL, "--peers", "llama.cpp", "--peers-dir", tmp_path / "peers")
    done = call("bench", "curve", tiny_bundle, *with_peer)
    assert done.returncode == 2
    assert "name the one it was exported from with --checkpoint" in done.stderr
    done = call("bench", "curve", tiny_bundle, *with_peer, "--checkpoint", tiny_gguf)
    assert done.returncode == 2
    assert f"was not exported from {tiny_gguf}" in done.stderr


@pytest.mark.parametrize(
    ("told", "says"),
    [("{", "is not what install.py writes"), ('{"command": [], "convert": null}', "list of words")],
)
def test_bad_descriptions(told: str, says: str, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "llama.cpp.json").write_text(told)
    arguments = (*SMALL, "--peers", "llama.cpp", "--peers-dir", tmp_path)
    done = call("bench", "curve", tiny_gguf, *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_peers_that_fail(tiny_gguf: Path, tmp_path: Path) -> None:
    peers = ("--peers", "openvino-genai", "--peers-dir", tmp_path)
    install(tmp_path, "openvino-genai", convert="sys.exit('no such layer')")
    done = call("bench", "curve", tiny_gguf, *SMALL, *peers)
    assert done.returncode == 1
    assert "openvino-genai could not convert small.gguf:\nno such layer" in done.stderr
    install(tmp_path, "openvino-genai", "dies")
    done = call("bench", "curve", tiny_gguf, *SMALL, *peers)
    assert done.returncode == 1
    assert "openvino-genai ended with exit code 1:\nout of ideas" in done.stderr
    assert not done.stdout


def test_a_model_is_converted_once(tiny_gguf: Path, tmp_path: Path) -> None:
    arguments = (tiny_gguf, *SMALL, "--peers", "openvino-genai", "--peers-dir", tmp_path)
    install(tmp_path, "openvino-genai")
    done = call("bench", "curve", *arguments)
    assert done.returncode == 0, done.stderr
    assert [path.parent.parent.name for path in tmp_path.glob("models/*/openvino-genai")]
    install(tmp_path, "openvino-genai", convert="sys.exit('again')")
    assert call("bench", "curve", *arguments).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("rounds", [0, 1])
def test_ctrl_c_keeps_complete_rounds(rounds: int, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve.json"
    # In a process of its own, told to interrupt itself when the bandwidth is read again.
    script = (
        "import os, signal, sys, quickdraft.device_profiles.bandwidth as bandwidth\n"
        "from quickdraft.cli import main\n"
        "calls = []\n"
        "def read(threads):\n"
        "    calls.append(1)\n"
        f"    if len(calls) > {rounds}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return 10.0\n"
        "bandwidth.read_bandwidth = read\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    line = ["bench", "curve", str(tiny_bundle), *SMALL, "--rounds", "3", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert out.exists() == bool(rounds)
    if rounds:
        result = json.loads(out.read_text())
        assert result["interrupted"]
        assert result["rounds"] == 1
        assert "interrupted after 1 complete rounds" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["curve.json"] * rounds

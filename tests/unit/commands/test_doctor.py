"""`quickdraft doctor`, on this machine and on made-up ones."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny.process import call, quickdraft

from quickdraft import __version__
from quickdraft.commands import doctor
from quickdraft.device_profiles import machine
from quickdraft.runtime import native

CPUINFO = """\
processor	: 0
model name	: Some Processor
physical id	: 0
core id		: 0
flags		: fpu sse4_2 avx2 avx512_vnni

processor	: 1
model name	: Some Processor
physical id	: 0
core id		: 0
flags		: fpu sse4_2 avx2 avx512_vnni

processor	: 2
model name	: Some Processor
physical id	: 0
core id		: 1
flags		: fpu sse4_2 avx2 avx512_vnni
"""


def test_report_in_json() -> None:
    done = quickdraft("doctor", "--json", env={"HF_HUB_OFFLINE": "1"})
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["quickdraft"] == __version__
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["onnxruntime"]["works"] is True
    assert "CPUExecutionProvider" in report["onnxruntime"]["providers"]
    assert report["packages"]["numpy"]
    assert "onnxruntime" in report["backends"]
    assert report["cache"]["writable"] is True
    assert report["hub"]["offline"]["HF_HUB_OFFLINE"] == "1"


def test_report_in_words() -> None:
    done = call("doctor")
    assert done.returncode == 0
    names = [line.split("  ")[0] for line in done.stdout.splitlines()]
    for name in ("quickdraft", "ONNX Runtime", "features", "cores", "memory", "cache", "hub"):
        assert name in names
    assert "works" in done.stdout


@pytest.mark.native
def test_the_native_library_and_its_instruction_set() -> None:
    report = json.loads(call("doctor", "--json").stdout)["native"]
    assert Path(report["library"]).is_file()
    assert report["isa"] in report["runnable"]
    assert report["problem"] is None
    assert report["library"] in call("doctor").stdout


def test_without_a_native_library_it_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "library_path", lambda: None)
    done = call("doctor")
    assert done.returncode == 0
    assert "not used: this installation has no native library" in done.stdout
    assert "instruction set" not in done.stdout


def test_without_onnxruntime_it_names_the_extra_and_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = doctor.util.find_spec
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(
        doctor.util, "find_spec", lambda name: None if name == "onnxruntime" else genuine(name)
    )
    done = call("doctor")
    assert done.returncode == 1
    assert "pip install 'quickdraft[onnx]'" in done.stdout
    assert "does not work: not importable" in done.stdout


def test_an_onnxruntime_that_computes_nonsense_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, *_: object) -> list[object]:
            return [np.ones(1, np.float32)]

    broken = SimpleNamespace(
        __spec__=object(), get_available_providers=lambda: [], InferenceSession=Session
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", broken)
    report = json.loads(call("doctor", "--json").stdout)
    assert report["onnxruntime"]["works"] is False
    assert "[1.0]" in report["onnxruntime"]["problem"]


def test_a_cache_that_cannot_be_written_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("QUICKDRAFT_CACHE", str(tmp_path / "file" / "cache"))
    assert "NOT WRITABLE" in call("doctor").stdout


def test_cores_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine, "_read", lambda path: CPUINFO)
    assert machine.physical_cores() == 2
    assert machine.cpu_name() == "Some Processor"
    assert machine.cpu_features() == ["sse4_2", "avx2", "avx512_vnni"]


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 0\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_a_container_may_use_its_share(
    files: dict[str, str], processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    read = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    monkeypatch.setattr(machine, "_read", lambda path: read.get(path, ""))
    assert machine.usable_processors() == processors


def test_memory_is_read_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(
        machine, "_read", lambda path: "MemTotal:  2048 kB\nMemAvailable:  1024 kB\nHugePages: 0\n"
    )
    assert machine.memory() == (2 << 20, 1 << 20)


def test_a_mac_is_asked_by_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "machdep.cpu.brand_string": "Apple M9",
        "hw.physicalcpu": "10",
        "hw.memsize": "1024",
        "hw.optional.arm.FEAT_I8MM": "1",
        "hw.optional.arm.FEAT_BF16": "0",
    }
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_sysctl", known.get)
    assert machine.cpu_name() == "Apple M9"
    assert machine.physical_cores() == 10
    assert machine.cpu_features() == ["i8mm"]
    assert machine.memory() == (1024, None)


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine, "_read", lambda path: "")
    assert machine.physical_cores() is None
    assert machine.cpu_features() is None
    assert machine.memory() == (None, None)
    assert call("doctor").returncode == 0

"""Profiles: data that are checked, key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdraft.device_profiles.profile import (
    FOLDER,
    matching,
    parse_profile,
    profile_named,
    profiles,
)
from quickdraft.errors import DeviceError

GOOD = """
schema_version = 1
name = "a-device"
title = "A device"
kind = "npu"
[detect]
[run]
backends = ["openvino:NPU"]
flavour = "static"
weights = "int4"
kv_cache = "f16"
[static]
widths = [1, 4]
prefill_chunk = 16
cache_length = 64
[memory]
bandwidth_gb_s = { value = 10, source = "a page" }
"""
REQUIRED = {
    "x86-avx2", "x86-avx512", "arm-v8.2", "raspberry-pi-5", "snapdragon-x-npu", "ryzen-ai-npu",
    "npu-pim", *(f"core-ultra-{n}-{kind}" for n in (1, 2, 3) for kind in ("cpu", "gpu", "npu")),
    *(f"apple-m{n}-{kind}" for n in (1, 2, 3, 4) for kind in ("cpu", "gpu", "ane")),
}  # fmt: skip


def test_every_profile_is_sound_and_in_a_file_of_its_name() -> None:
    assert set(profiles()) >= REQUIRED
    assert set(profiles()) == {path.stem for path in FOLDER.glob("*.toml")}


def test_a_profile_is_read() -> None:
    profile = parse_profile(GOOD.encode(), "here")
    assert profile.memory.bandwidth_gb_s is not None
    assert (profile.memory.bandwidth_gb_s.value, profile.memory.share) == (10.0, 0.9)
    assert profile.static is not None
    assert profile.static.widths == (1, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name =", "nam =", "unknown key 'nam'; did you mean 'name'"),
        ('kind = "npu"', "", "lacks the key 'kind'"),
        ('kind = "npu"', 'kind = "tpu"', "must be one of 'cpu', 'gpu', 'npu'"),
        ("schema_version = 1", "schema_version = 9", "schema_version is 9"),
        ("value = 10", "value = -1", "-1.0 is not above 0"),
        ("value = 10", "value = nan", "must be a number"),
        ("value = 10", "value = true", "must be a number"),
        ('source = "a page"', 'source = " "', "needs a source"),
        ('source = "a page"', "", "."),
        ("widths = [1, 4]", "widths = [4, 1]", "must begin with 1 and rise"),
        ("widths = [1, 4]", "widths = [2, 4]", "must begin with 1"),
        ("prefill_chunk = 16", "prefill_chunk = 2", "must be wider"),
        ("[detect]", "[detect]\nprocessor = '('", "no regular expression"),
        ("[detect]", "[detect]\nrank = 101", "between 0 and 100"),
        ("[memory]", "[memory]\nshare = 0", "above 0 and at most 1"),
        ('["openvino:NPU"]', "[]", "backends is empty"),
        ('["openvino:NPU"]', '["open vino"]', "is not `backend`"),
        ('flavour = "static"', 'flavour = "portable"', "belongs to the flavour"),
        ('name = "a-device"', 'name = "../x"', "use a-z"),
        ("schema_version", "= 1\nschema_version", "is not TOML"),
    ],
)
def test_what_a_profile_cannot_say(old: str, new: str, message: str) -> None:
    with pytest.raises(DeviceError, match="here is no device profile") as caught:
        parse_profile(GOOD.replace(old, new, 1).encode(), "here")
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff", b"a=" + b"[" * 20_000, b"#" * (1 << 17)])
def test_hostile_files_end_in_an_error(data: bytes) -> None:
    with pytest.raises(DeviceError):
        parse_profile(data, "here")


def test_names_and_files(tmp_path: Path) -> None:
    assert profile_named("npu-pim").buyable is False
    with pytest.raises(DeviceError, match="did you mean 'raspberry-pi-5'"):
        profile_named("raspberry-pi5")
    (tmp_path / "mine.toml").write_text(GOOD, encoding="utf-8")
    assert profile_named(str(tmp_path / "mine.toml")).name == "a-device"
    with pytest.raises(DeviceError, match="cannot be read"):
        profile_named(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("kind", "machine", "name"),
    [
        ("cpu", ("linux", "x86_64", "AMD EPYC", ["avx2", "fma"]), "x86-avx2"),
        ("cpu", ("linux", "x86_64", "AMD EPYC", ["avx2", "fma", "avx512f", "avx512bw", "avx512vl"]),
         "x86-avx512"),
        ("cpu", ("linux", "arm64", "Raspberry Pi 5 Model B Rev 1.0", ["asimddp"]),
         "raspberry-pi-5"),
        ("cpu", ("linux", "arm64", "Neoverse-N1", ["asimddp"]), "arm-v8.2"),
        ("cpu", ("darwin", "arm64", "Apple M4 Pro", ["dotprod"]), "apple-m4-cpu"),
        ("npu", ("darwin", "arm64", "Apple M1", []), "apple-m1-ane"),
        ("npu", ("windows", "x86_64", "Intel(R) Core(TM) Ultra 7 155H", []), "core-ultra-1-npu"),
        ("npu", ("linux", "x86_64", "Intel(R) Core(TM) Ultra 7 268V", []), "core-ultra-2-npu"),
        ("gpu", ("linux", "x86_64", "Intel(R) Core(TM) Ultra X9 388H", []), "core-ultra-3-gpu"),
        ("npu", ("windows", "arm64", "Snapdragon(R) X Elite - X1E80100", []), "snapdragon-x-npu"),
        ("npu", ("linux", "x86_64", "AMD Ryzen AI 9 HX 370", []), "ryzen-ai-npu"),
        ("npu", ("linux", "x86_64", "AMD EPYC", []), None),
        ("cpu", ("linux", "riscv64", "SiFive", []), None),
    ],
)  # fmt: skip
def test_machines_are_known(kind: str, machine: tuple[str, str, str, list[str]], name: str) -> None:
    found = matching(kind, *machine)
    assert (found[0].name if found else None) == name

"""`quickdraft device` and `bench device`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny.models import write_tiny_model

from quickdraft.cli import main
from quickdraft.commands import device_report
from quickdraft.commands.bench_device import device as bench_device
from quickdraft.errors import BackendError, InputError, OptionError
from quickdraft.runtime import device_bench

SHORT = ("--no-starts", "--rounds", "1", "--tokens", "4", "--only", "creative writing")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "tiny"
    write_tiny_model(folder, max_position_embeddings=4096)
    return folder


@pytest.fixture(scope="module")
def reports(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report of this machine, and one of a simulated device."""
    folder, found = tmp_path_factory.mktemp("reports"), []
    for name in ("auto", "simulated:apple-m4-ane"):
        found.append(folder / f"{len(found)}.json")
        arguments = [str(model), "--device", name, *SHORT, "--out", str(found[-1])]
        done = CliRunner().invoke(bench_device, arguments)
        assert done.exit_code == 0, done.output
        assert ("SIMULATED" in done.output) == (name != "auto")
    return found


def test_devices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "list", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["npu-pim"]["can_simulate"]
    assert not found["npu-pim"]["here"]
    assert main(["device", "list"]) == 0
    assert "SIMULATED" in capsys.readouterr().out


def test_a_device_is_shown_with_its_plan(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["device", "show", "snapdragon-x-npu"]) == 0
    text = capsys.readouterr().out
    assert "136 GB/s" in text
    assert "not this machine" in text
    wanted = ["device", "show", "--model", str(model), "--context", "64", "--json"]
    assert main(wanted) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["plan"]["context"] == 64
    assert shown["plan"]["fits"]
    assert main(["device", "show", "--model", str(model), "--context", "5000"]) == 2
    assert "this model holds 1 to 4096" in capsys.readouterr().err
    assert main(["device", "show", "--context", "64"]) == 2


def test_a_device_elsewhere_is_planned_as_its_profile_has_it(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    shown = ["device", "show", "core-ultra-2-npu", "--model", str(model), "--json"]
    assert main(shown) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["graphs"], plan["kv_type"], plan["context"]) == (5, "f32", 4064)
    assert plan["budget"] == int(0.9 * (16 << 30))
    assert main([*shown[:-1], "--context", "4090"]) == 2
    assert "core-ultra-2-npu holds 4064 tokens" in capsys.readouterr().err


def test_an_absent_device_ends_a_run(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["run", str(model), "hi", "--device", "apple-m1-ane", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "DeviceError"
    assert "not this machine" in error["message"]


def test_a_report_has_everything(reports: list[Path]) -> None:
    real, simulated = (json.loads(path.read_text("utf-8")) for path in reports)
    for report in (real, simulated):
        figures = report["classes"]["creative writing"]
        assert figures["prompts"] == 2
        assert figures["identical"] is report["quality"]["identical"] is True
        assert figures["plain"]["rate"] > 0
        assert report["overall"]["plain"]["ttft_ms"] > 0
        assert report["quality"]["perplexity"] > 1
        assert report["memory"]["needed"] > 0
        assert report["energy"]["meter"] or report["energy"]["note"]
        assert report["versions"]["python"]
    assert not real["device"]["simulated"]
    assert real["runs_on"] == "CPU"
    assert f"{real['backend']}:CPU, " in device_report.markdown(real)
    assert simulated["runs_on"] == "simulated:apple-m4-ane"
    assert simulated["device"] == {
        "name": "simulated:apple-m4-ane",
        "title": "Apple M4, Neural Engine",
        "simulated": True,
        "timed_as": {
            "weights": "int4",
            "kv_cache": "f16",
            "rows": [1, 4, 8, 16, 64],
            "tops": 38,
            "bandwidth_gb_s": 120,
        },
        "why": simulated["device"]["why"],
        "form": simulated["device"]["form"],
    }
    told = device_report.markdown(simulated)
    assert "weights int4, keys and values f16 |" in told
    assert "| timed as | steps of 1, 4, 8, 16, 64 rows, 38 TOPS, 120 GB/s |" in told
    assert f"| computed by | {simulated['backend']}, " in told
    assert real["device"]["timed_as"] is None
    for report in (real, simulated):
        form = report["device"]["form"]
        assert form["weights"] == {"value": "fp32", "why": "as the bundle has them"}
        assert form["kv_cache"]["value"] == report["kv_cache"]
    assert simulated["memory"]["kv_type"] == "f16"  # of the profile, not of what computed here
    assert simulated["memory"]["budget"] != real["memory"]["budget"]
    assert simulated["energy"]["meter"] is None
    assert real["quality"]["perplexity"] == simulated["quality"]["perplexity"]


def test_a_start_that_takes_too_long_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_bench, "START_SECONDS", 0.01)
    with pytest.raises(BackendError, match=r"said nothing for 0.01 s .* --no-starts"):
        device_bench.measure_start(model, (), {}, cold=False)


def test_reports_are_compared(reports: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, text, both = (tmp_path / name for name in ("a.html", "a.md", "a.json"))
    arguments = [f"--merge={path}" for path in reports]
    arguments += [f"--out={path}" for path in (page, text, both)]
    done = CliRunner().invoke(bench_device, arguments)
    assert done.exit_code == 0, done.output
    assert text.read_text("utf-8") == done.stdout
    assert "Apple M4, Neural Engine (SIMULATED)" in done.stdout
    shown = page.read_text("utf-8")
    assert shown.count("data:image/png;base64,") == 3
    assert "SIMULATED" in shown
    again = CliRunner().invoke(bench_device, [f"--merge={both}", f"--merge={reports[0]}"])
    rows = again.stdout.split("##")[0].splitlines()
    assert sum("tiny (fp32)" in row for row in rows) == 2
    assert sum("(SIMULATED) | tiny (int4) |" in row for row in rows) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a MODEL to measure"),
        (["m", "--out", "x.txt"], "does not end in"),
        (["m", "--tokens", "1"], "at least 2"),
        (["m", "--rounds", "0"], "at least 1"),
        (["m", "--only", "poems"], "no class 'poems'"),
        (["m", "--device", "tpu"], "no device 'tpu'"),
    ],
)
def test_bad_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "device", *arguments]) == 2
    assert message in capsys.readouterr().err


def changed(report: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**report, **values}


def test_other_work_does_not_compare(reports: list[Path]) -> None:
    report = device_report.read_report(reports[0])
    with pytest.raises(OptionError, match="differ in tokens"):
        device_report.compare([report, changed(report, tokens=9)])
    noted = device_report.compare([report, changed(report, model="<b>|other")])
    assert any("model differs" in note for note in noted["notes"])
    assert "<b>\\|other" in device_report.markdown(noted)
    page = device_report.page(noted)
    assert "<b>" not in page
    assert "&lt;b&gt;|other" in page


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{}", "is no report"),
        (b"[]", "is no report"),
        (b"{", "is not JSON"),
        (b'{"kind": "quickdraft device report", "schema_version": 9}', "schema_version 9"),
        (b'{"kind": "quickdraft device report", "schema_version": 1}', "lacks device"),
    ],
)
def test_what_is_no_report(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        device_report.read_report(tmp_path / "r.json")

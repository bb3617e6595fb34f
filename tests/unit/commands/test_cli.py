"""The frame of the command line: finding commands, and turning failures into messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from tiny.process import PROGRAM, quickdraft

from quickdraft import cli, errors
from quickdraft.commands.options import common_options

CommandLine = list[str]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `quickdraft doctor` raise what it is given."""

    def plant(error: BaseException) -> None:
        @click.command()
        @common_options
        def doctor(as_json: bool) -> None:
            raise error

        monkeypatch.setattr("quickdraft.commands.doctor.doctor", doctor)

    return plant


def _help_seconds() -> float:
    start = time.perf_counter()
    assert quickdraft("--help").returncode == 0
    return time.perf_counter() - start


def test_help_is_quick_and_light() -> None:
    assert any(_help_seconds() < 0.150 for _ in range(10))  # a busy machine gets more tries
    script = "import sys; from quickdraft.cli import main; main(['--help']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    loaded = set(shown.splitlines()[-1].split())
    assert "click" in loaded
    assert not loaded & {"numpy", "rich", "onnxruntime", "tokenizers", "huggingface_hub", "jinja2"}
    assert {name for name in loaded if name.startswith("quickdraft.commands.")} == {
        "quickdraft.commands.output"
    }


def test_help_lists_every_command_with_the_words_of_its_own_help() -> None:
    page = quickdraft("--help").stdout
    for name, (_, line) in cli.COMMANDS.items():
        assert line in page
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        assert (command.help or "").split("\n")[0] == line
        assert command.name in {name, f"{name}-models"}
        assert {"as_json"} <= {parameter.name for parameter in command.params}


def test_every_command_prints_its_help() -> None:
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0


def test_version() -> None:
    from quickdraft import __version__

    assert quickdraft("--version").stdout == f"quickdraft {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["frobnicate"], "There are: run, transcribe, chat"),
        (["list", "--jsn"], "--json"),
        (["run"], "Missing argument 'MODEL'"),
        (["--nonsense"], "--nonsense"),
        (["export", "x"], "--out"),
    ],
)
def test_bad_use_is_exit_code_2(
    arguments: CommandLine, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert says in err
    assert err.startswith("error: ")
    assert "--help" in err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert "Commands:" in out + err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.QuickdraftError("it broke"), 1),
        (errors.DownloadError("it broke"), 1),
        (errors.BackendError("it broke"), 1),
        (errors.InputError("it broke"), 2),
        (errors.BundleError("it broke"), 2),
        (errors.MissingExtra("onnxruntime", "onnx"), 2),
        (errors.Cancelled("it broke"), 130),
    ],
)
def test_our_errors_are_a_line_and_their_exit_code(
    error: errors.QuickdraftError,
    code: int,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    assert cli.main(["doctor"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {error}\n")
    assert cli.main(["doctor", "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"type": type(error).__name__, "message": str(error)}}
    assert err == f"error: {error}\n"


def test_the_missing_extra_is_named(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(errors.MissingExtra("onnxruntime", "onnx"))
    assert cli.main(["doctor"]) == 2
    assert "pip install 'quickdraft[onnx]'" in capsys.readouterr().err


def test_an_interrupt_is_130_and_silent(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130
    out, err = capsys.readouterr()
    assert (out.strip(), err.strip()) == ("", "")


def test_what_the_system_refuses_is_one_line(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(OSError(28, "No space left on device", "model.onnx"))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "error: model.onnx: No space left on device\n"


def test_a_defect_says_how_to_report_it(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ZeroDivisionError("division by zero"))
    assert cli.main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: division by zero" in err
    assert "--debug" in err
    assert "Traceback" not in err
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "--debug"])


def test_debug_shows_where_our_errors_come_from(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(errors.InputError("it broke"))
    assert cli.main(["--debug", "doctor"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_prompt_that_reads_like_an_option_is_a_prompt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", "/no/such/bundle", "--", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")


def test_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*PROGRAM, "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no full device")
def test_a_full_disk_is_one_line() -> None:
    for arguments in (["--version"], ["doctor"], ["list", "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors in a shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str) -> None:
    line = f'"{sys.executable}" -m quickdraft --version {closed}'
    assert subprocess.run(["sh", "-c", line], capture_output=True, timeout=60).returncode == 0
    line = f'"{sys.executable}" -m quickdraft run /no/such/bundle hello {closed}'
    assert subprocess.run(["sh", "-c", line], capture_output=True, timeout=60).returncode == 2


@pytest.mark.parametrize("locale", ["C", "POSIX", "xx_XX.UTF-8", "de_DE.ISO-8859-1"])
def test_text_survives_any_locale(locale: str) -> None:
    env = {"LC_ALL": locale, "LANG": locale, "PYTHONIOENCODING": ""}
    done = quickdraft("show", "東京", env=env)
    assert done.returncode == 2
    assert "東京" in done.stderr


def test_utf8_even_where_python_would_write_latin1() -> None:
    env = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    assert "東京" in quickdraft("show", "東京", env=env).stderr


def test_no_colour_without_a_terminal() -> None:
    done = quickdraft("lst", env={"FORCE_COLOR": "", "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout + done.stderr


def test_read_only_home_is_no_obstacle(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert quickdraft("--version", env={"HOME": str(tmp_path)}).returncode == 0
    assert quickdraft("list", env={"HOME": str(tmp_path)}).returncode == 0

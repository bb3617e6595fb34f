"""`quickdraft chat` on a tiny model: through pipes, and at a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny.models import write_tiny_model
from tiny.process import PROGRAM, call

UNIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals or terminals of Unix")


def test_a_line_is_a_turn_and_turns_are_remembered(tiny_bundle: Path) -> None:
    done = call("chat", tiny_bundle, "-n", 4, "--json", input="one\n\ntwo\n/show messages\n")
    assert done.returncode == 0
    assert done.stderr == ""
    first, second, shown = map(json.loads, done.stdout.splitlines())
    assert shown["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": second["text"]},
    ]
    assert first["timings"]["cached_n"] == 0
    assert second["timings"]["cached_n"] > 0


def test_a_pipe_gets_answers_and_no_prompts(tiny_bundle: Path) -> None:
    done = call("chat", tiny_bundle, "-n", 4, input="one\ntwo")
    assert done.returncode == 0
    assert done.stderr == ""
    assert ">>>" not in done.stdout
    assert len(done.stdout.split("\n")) >= 3


def test_a_full_context_names_the_way_out(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "small", max_position_embeddings=128)
    words = "word " * 100
    done = call("chat", tmp_path / "small", "-n", 2, input=f"{words}\n/clear\nhi\n")
    assert done.returncode == 2
    assert "the model holds" in done.stderr
    assert done.stderr.splitlines()[0].endswith("/clear starts anew")
    assert done.stdout.strip()


def test_bye_ends_and_nothing_after_it_is_read(tiny_bundle: Path) -> None:
    done = call("chat", tiny_bundle, "-n", 2, "--json", input="one\n/bye\ntwo\n")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1


def test_quotes_make_one_turn_of_several_lines(tiny_bundle: Path) -> None:
    text = '"""one\n/bye\n"""\n/show messages\n'
    done = call("chat", tiny_bundle, "-n", 2, "--json", input=text)
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["messages"][0] == {"role": "user", "content": "one\n/bye"}


def test_set_changes_options_and_the_system_message(tiny_bundle: Path) -> None:
    lines = [
        "one",
        "/set max_new_tokens 3",
        '/set stop_strings ["x", "y"]',
        "/set seed 5",
        "/show config",
        "/set system Be brief.",
        "two",
        "/show messages",
        "/show stats",
        "/show model",
    ]
    done = call("chat", tiny_bundle, "-n", 4, "--ignore-eos", "--json", input="\n".join(lines))
    assert done.returncode == 0
    first, config, second, messages, stats, model = map(json.loads, done.stdout.splitlines())
    assert len(first["token_ids"]) == 4
    assert len(second["token_ids"]) == 3
    assert config["config"]["max_new_tokens"] == 3
    assert config["config"]["stop_strings"] == ["x", "y"]
    assert config["config"]["seed"] == 5
    assert [m["role"] for m in messages["messages"]] == ["system", "user", "assistant"]
    assert messages["messages"][0]["content"] == "Be brief."
    assert stats["stats"] == second["timings"]
    assert model["model"]["family"] == "llama"


def test_clear_forgets_turns_and_keeps_the_system_message(tiny_bundle: Path) -> None:
    done = call(
        "chat", tiny_bundle, "-n", 2, "--system", "S", "--json", input="one\n/clear\n/show messages"
    )
    assert json.loads(done.stdout.splitlines()[-1])["messages"] == [
        {"role": "system", "content": "S"}
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set temperature hot", "temperature is 'hot'"),
        ("/set temperature -1", "temperature is -1"),
        ("/set temperature NaN", "temperature is nan"),
        ("/set temperature", "/set takes a name and a value"),
        ("/set", "/set takes a name and a value"),
        ("/set seed " + "[" * 100_000, "seed is"),
        ('/set logit_bias {"99999": 1}', "logit_bias names token 99999"),
        ("/show everything", "config, stats, messages, model"),
        ("/cler", "did you mean /clear?"),
        ("/usr/bin is what?", "three quotes"),
        ("/quit", "/help lists them"),
        ("x" * 500_000, "100000"),
    ],
)
def test_a_bad_line_is_reported_and_the_chat_goes_on(
    line: str, says: str, tiny_bundle: Path
) -> None:
    done = call("chat", tiny_bundle, "-n", 2, "--json", input=f"{line}\nhello\n")
    error, answer = map(json.loads, done.stdout.splitlines())
    assert says in error["error"]["message"]
    assert says in done.stderr
    assert answer["timings"]["predicted_n"] == 2
    assert done.returncode == 2


def test_a_line_that_is_not_utf8_is_reported_and_the_chat_goes_on(tiny_bundle: Path) -> None:
    done = call("chat", tiny_bundle, "-n", 2, "--json", input=b"caf\xe9\nhello\n")
    error, answer = map(json.loads, done.stdout.splitlines())
    assert "byte 0xe9" in error["error"]["message"]
    assert answer["finish_reason"] == "length"
    assert done.returncode == 2


def test_closed_standard_input_is_an_empty_chat(tiny_bundle: Path) -> None:
    line = " ".join([f'"{PROGRAM[0]}"', *PROGRAM[1:], f'chat "{tiny_bundle}" <&-'])
    assert subprocess.run(["sh", "-c", line], capture_output=True, timeout=60).returncode == 0


def test_a_model_without_template_cannot_chat(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "plain", chat=False, formats=("reference",))
    done = call("chat", tmp_path / "plain", input="hello\n")
    assert done.returncode == 2
    assert "no chat template" in done.stderr
    assert call("run", tmp_path / "plain", "hello", "-n", 2).returncode == 0
    done = call("run", tmp_path / "plain", "hello", "--system", "x")
    assert done.returncode == 2
    assert "--system" in done.stderr


@UNIX
def test_interrupt_stops_the_answer_and_the_next_turn_is_answered(tiny_bundle: Path) -> None:
    line = [*PROGRAM, "chat", str(tiny_bundle), "-n", "90000", "--ignore-eos"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"one\n/set max_new_tokens 5\ntwo\n/show messages\n")
        child.stdin.close()
        child.stdin = None
        child.stdout.read(20)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert b"(stopped)" in err
    assert b"Traceback" not in err
    assert b"user: one" in out
    assert b"user: two" in out


class Terminal:
    """A program at a terminal of its own, typed at and read as a person would."""

    def __init__(self, *arguments: str, columns: int = 80, env: dict[str, str] | None = None):
        import fcntl
        import pty
        import struct
        import termios

        self.seen = b""
        self.status: int | None = None
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ.update({"TERM": "xterm", **(env or {})})
            os.execv(PROGRAM[0], [*PROGRAM, *arguments])
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        if "\x03" in text:  # Python loses a SIGINT between the prompt and the wait for a key
            time.sleep(0.2)
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str, seconds: float = 20) -> str:
        """Read on until a pattern shows; what was read up to its end, which is then forgotten."""
        import select

        until = time.monotonic() + seconds
        while not (match := re.search(pattern.encode(), self.seen)):
            ready, _, _ = select.select([self._fd], [], [], until - time.monotonic())
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self._fd, 65536)
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text.decode(errors="replace")

    def exit_code(self) -> int:
        """Wait for the end."""
        import select

        until = time.monotonic() + 20
        try:
            while True:
                ready, _, _ = select.select([self._fd], [], [], until - time.monotonic())
                assert ready, f"still running after {self.seen!r}"
                if not (chunk := os.read(self._fd, 65536)):
                    break
                self.seen += chunk
        except OSError:  # Linux says so when the other end is closed
            pass
        _, status = os.waitpid(self._pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def close(self) -> None:
        if self.status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal(tiny_bundle: Path, tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(
        "chat", str(tiny_bundle), "-n", "8", env={"XDG_STATE_HOME": str(tmp_path / "state")}
    )
    yield made
    made.close()


@UNIX
def test_a_person_types_and_leaves_with_bye(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(">>> ")
    terminal.type("hello\n")
    terminal.wait_for(">>> ")
    terminal.type("/help\n")
    terminal.wait_for("Ctrl-C stops an answer")
    terminal.wait_for(">>> ")
    terminal.type("/bye\n")
    assert terminal.exit_code() == 0
    history = tmp_path / "state" / "quickdraft" / "chat_history"
    assert history.read_text().splitlines() == ["hello", "/help", "/bye"]
    assert history.stat().st_mode & 0o077 == 0


@UNIX
def test_a_person_is_told_that_an_answer_was_cut_off(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("/set ignore_eos true\n")
    terminal.wait_for(">>> ")
    terminal.type("hello\n")
    terminal.wait_for("cut off: max_new_tokens is 8")
    terminal.wait_for(">>> ")
    terminal.type("/bye\n")
    assert terminal.exit_code() == 0


@UNIX
def test_control_d_leaves(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


@UNIX
def test_control_c_at_the_prompt_warns_once(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("half a line\x03")
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for(">>> ")
    terminal.type("/show config\n")
    terminal.wait_for("max_new_tokens +8")
    terminal.wait_for(">>> ")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for(">>> ")
    terminal.type("\x03")
    assert terminal.exit_code() == 130
    assert b"Traceback" not in terminal.seen


@UNIX
def test_control_c_stops_an_answer_at_the_terminal(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("/set ignore_eos true\n")
    terminal.wait_for(">>> ")
    for _ in range(2):
        terminal.type("/set max_new_tokens 90000\n")
        terminal.wait_for(">>> ")
        terminal.type("hello\n")
        terminal.wait_for("hello\r\n.{40}")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        terminal.wait_for(">>> ")
        terminal.type("/set max_new_tokens 3\n")
        terminal.wait_for(">>> ")
        terminal.type("again\n")
        terminal.wait_for(">>> ")
    terminal.type("/bye\n")
    assert terminal.exit_code() == 0


@UNIX
@pytest.mark.parametrize("term", ["xterm", "dumb", "no-such-terminal"])
def test_a_terminal_of_ten_columns_and_no_home(
    term: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below this")
    made = Terminal(
        "chat", str(tiny_bundle), "-n", "4", columns=10,
        env={"XDG_STATE_HOME": str(blocked), "TERM": term},
    )  # fmt: skip
    try:
        made.wait_for(">>> ")
        made.type("a line that is longer than the terminal is wide\n")
        made.wait_for(">>> ")
        made.type("/bye\n")
        assert made.exit_code() == 0
        assert b"Traceback" not in made.seen
    finally:
        made.close()


@UNIX
def test_no_colour_where_it_is_not_wanted(tiny_bundle: Path, tmp_path: Path) -> None:
    made = Terminal("run", str(tiny_bundle), "hello", "--top-p", "5", env={"NO_COLOR": "1"})
    assert made.exit_code() == 2
    assert made.seen.startswith(b"error: ")
    made.close()
    made = Terminal("run", str(tiny_bundle), "hello", "--top-p", "5", env={"NO_COLOR": ""})
    assert made.exit_code() == 2
    assert made.seen.startswith(b"\x1b[31m")
    made.close()

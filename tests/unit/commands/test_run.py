"""`quickdraft run` on a tiny model: options, standard input, JSON, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny.models import write_tiny_model
from tiny.process import PROGRAM, call, quickdraft

from quickdraft.bundle import open_bundle
from quickdraft.cli import main
from quickdraft.commands import run as command
from quickdraft.commands.options import GENERATION
from quickdraft.runtime.model import Model

# Options on the command line, and what they are in a GenerationConfig.
OPTIONS: list[tuple[list[str], dict[str, Any]]] = [
    (["-n", "3"], {"max_new_tokens": 3}),
    (["--max-new-tokens", "3"], {"max_new_tokens": 3}),
    (["--min-new-tokens", "2"], {"min_new_tokens": 2}),
    (["--temperature", "0.5"], {"temperature": 0.5}),
    (["--temp", "0.5"], {"temperature": 0.5}),
    (["--top-k", "7"], {"top_k": 7}),
    (["--top-p", "0.9"], {"top_p": 0.9}),
    (["--min-p", "0.1"], {"min_p": 0.1}),
    (["--typical-p", "0.8"], {"typical_p": 0.8}),
    (["--repetition-penalty", "1.1"], {"repetition_penalty": 1.1}),
    (["--presence-penalty", "-0.5"], {"presence_penalty": -0.5}),
    (["--frequency-penalty", "0.5"], {"frequency_penalty": 0.5}),
    (["--no-repeat-ngram-size", "3"], {"no_repeat_ngram_size": 3}),
    (["--logit-bias", "5=-100", "--logit-bias", "6=1.5"], {"logit_bias": {5: -100.0, 6: 1.5}}),
    (["--seed", "11"], {"seed": 11}),
    (["--stop", "a", "--stop", "b c"], {"stop_strings": ("a", "b c")}),
    (["--logprobs", "2", "--json"], {"logprobs": 2}),
    (["--acceptance", "typical"], {"acceptance": "typical"}),
    (["--draft-tokens", "3"], {"num_draft_tokens": 3}),
    (["--max-time", "9.5"], {"max_time": 9.5}),
    (["--ignore-eos"], {"ignore_eos": True}),
    ([], {}),
]

# Bad values, and the option the message names.
BAD: list[tuple[list[str], str]] = [
    (["-n", "0"], "max_new_tokens is 0"),
    (["-n", "-1"], "max_new_tokens is -1"),
    (["-n", str(2**63)], "max_new_tokens"),
    (["-n", "many"], "--max-new-tokens"),
    (["--min-new-tokens", "9", "-n", "3"], "min_new_tokens is 9"),
    (["--temperature", "nan"], "temperature is nan"),
    (["--temperature", "-1"], "temperature is -1"),
    (["--temperature", "1e30"], "temperature is 1e+30"),
    (["--temperature", "hot"], "--temperature"),
    (["--top-k", "-1"], "top_k is -1"),
    (["--top-p", "0"], "top_p is 0"),
    (["--top-p", "1.0000001"], "top_p is 1.0000001"),
    (["--min-p", "2"], "min_p is 2"),
    (["--typical-p", "0"], "typical_p is 0"),
    (["--repetition-penalty", "0"], "repetition_penalty is 0"),
    (["--presence-penalty", "inf"], "presence_penalty is inf"),
    (["--frequency-penalty", "-101"], "frequency_penalty is -101"),
    (["--no-repeat-ngram-size", "-3"], "no_repeat_ngram_size is -3"),
    (["--logit-bias", "5"], "--logit-bias: '5'"),
    (["--logit-bias", "x=1"], "--logit-bias: 'x=1'"),
    (["--logit-bias", "5=1", "--logit-bias", "5=2"], "--logit-bias names token 5 twice"),
    (["--logit-bias", "5=1e308"], "logit_bias of token 5"),
    (["--logit-bias", "-5=1"], "logit_bias"),
    (["--logit-bias", "99999=1"], "logit_bias names token 99999"),
    (["--seed", str(2**70)], "seed is"),
    (["--seed", "-1"], "seed is -1"),
    (["--stop", ""], "stop_strings holds ''"),
    ([word for _ in range(17) for word in ("--stop", "x")], "stop_strings has 17"),
    (["--logprobs", "21", "--json"], "logprobs is 21"),
    (["--logprobs", "2"], "--logprobs"),
    (["--max-time", "0"], "max_time is 0"),
    (["--threads", "0"], "threads is 0"),
    (["--threads", "-1"], "threads is -1"),
    (["--threads", "1000000"], "threads is 1000000; it must be between 1 and 1024"),
    (["--threads", "two"], "--threads"),
    (["--drafter", "prompt_lokup"], "did you mean 'prompt_lookup'"),
    (["--backend", "onnxruntim"], "did you mean 'onnxruntime'"),
    (["--acceptance", "lenient"], "--acceptance"),
    (["--acceptance", "judge"], "train draft --kind judge"),
    (["--acceptance", "judge", "--judge-threshold", "1.1"], "judge_threshold is 1.1"),
    (["--judge-threshold", "0.7"], "--judge-threshold 0.7 is for the judge"),
    (["--acceptance", "typical", "--judge-threshold", "0.7"], "give --acceptance judge with it"),
    (["--raw", "--system", "x"], "--system"),
    (["--temprature", "1"], "--temperature"),
]


@pytest.fixture
def seen(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collects what the command asks of the model."""
    calls: list[dict[str, Any]] = []
    genuine = Model.stream_chat

    def stream_chat(self: Model, messages: Any, config: Any = None, **rest: Any) -> Any:
        given = {k: v for k, v in rest.items() if k not in {"session", "cancel"}}
        calls.append({"messages": messages, "given": given})
        return genuine(self, messages, config, **rest)

    monkeypatch.setattr(Model, "stream_chat", stream_chat)
    return calls


@pytest.mark.parametrize(("arguments", "expected"), OPTIONS, ids=lambda v: " ".join(v))
def test_options_reach_the_model_and_nothing_else_does(
    arguments: list[str],
    expected: dict[str, Any],
    tiny_bundle: Path,
    seen: list[dict[str, Any]],
) -> None:
    length = [] if {"-n", "--max-new-tokens"} & set(arguments) else ["-n", "4"]
    assert main(["run", str(tiny_bundle), "hello", *arguments, *length]) == 0
    (call,) = seen
    expected = expected if not length else {"max_new_tokens": 4, **expected}
    assert call["given"] == expected
    assert call["messages"] == [{"role": "user", "content": "hello"}]


def test_every_generation_option_is_tried() -> None:
    tried = {name for _, expected in OPTIONS for name in expected}
    assert tried | {"judge_threshold"} == {field for field, *_ in GENERATION} | {"ignore_eos"}


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda v: str(v)[:40])
def test_bad_values_are_exit_code_2_and_name_the_option(
    arguments: list[str], says: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny_bundle), "hello", *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert "Traceback" not in err
    if "--json" not in arguments:
        assert not out


@pytest.mark.parametrize("value", ["0", "-1", "1000000", "two"])
def test_threads_of_the_environment_are_checked_too(
    value: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner(env={"QUICKDRAFT_THREADS": value}).invoke(
        command.run, [str(tiny_bundle), "hello"]
    )
    assert result.exit_code != 0
    assert "hreads" in f"{result.output}{result.exception}"


@pytest.mark.parametrize(
    ("words", "data", "prompt"),
    [
        (["hello"], "", "hello"),
        (["hello", "there"], "", "hello there"),
        ([], "from a pipe\n", "from a pipe"),
        (["Summarise:"], "a\nb\n", "Summarise:\n\na\nb"),
        ([], "naïve 東京", "naïve 東京"),
    ],
)
def test_the_prompt_is_arguments_and_standard_input(
    words: list[str],
    data: str,
    prompt: str,
    tiny_bundle: Path,
    seen: list[dict[str, Any]],
) -> None:
    arguments = [str(tiny_bundle), *words, "-n", "2", "--system", "Be brief."]
    assert CliRunner().invoke(command.run, arguments, input=data).exit_code == 0
    assert seen[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt},
    ]


def test_json_is_one_object(tiny_bundle: Path) -> None:
    done = quickdraft("run", tiny_bundle, "hello", "-n", 8, "--ignore-eos", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "text", "token_ids", "finish_reason", "model", "backend", "flavour", "device",
        "guarantee", "kv_cache", "isa", "degraded", "simulated", "prefill", "prediction", "source",
        "timings", "drafting", "placement",
    ]  # fmt: skip
    assert {
        "load_ms", "ttft_ms", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms",
        "predicted_per_second", "steps", "draft_n", "draft_n_accepted",
    } <= set(answer["timings"])  # fmt: skip
    assert len(answer["token_ids"]) == answer["timings"]["predicted_n"] == 8
    assert answer["finish_reason"] == "length"
    assert answer["timings"]["load_ms"] > 0
    text = call("run", tiny_bundle, "hello", "-n", 8, "--ignore-eos").stdout
    assert text.rstrip("\n") == answer["text"].rstrip("\n")


def test_errors_are_json_too(tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, "hello", "--top-p", 2, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "OptionError"
    assert done.stderr == f"error: {error['message']}\n"


def test_piped_output_is_the_answer_alone(tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, "-n", 8, input="hello")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.endswith("\n")
    assert "\x1b[" not in done.stdout


def test_verbose_prints_statistics_on_standard_error(tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, "hello", "-n", 8, "-v", "--ignore-eos")
    plain = call("run", tiny_bundle, "hello", "-n", 8, "--ignore-eos")
    assert done.stdout == plain.stdout
    words = [line.split()[0] for line in done.stderr.splitlines()]
    expected = "load first prompt answer drafts backend cache end device form"
    assert words == expected.split()
    assert "8 tokens" in done.stderr


def test_raw_leaves_the_template_out(tiny_bundle: Path) -> None:
    arguments = ("run", tiny_bundle, "hello", "-n", 1, "--json")
    chat = json.loads(call(*arguments).stdout)
    raw = json.loads(call(*arguments, "--raw").stdout)
    assert raw["timings"]["prompt_n"] < chat["timings"]["prompt_n"]
    with Model.open(tiny_bundle, manifest=open_bundle(tiny_bundle).manifest) as model:
        assert raw["timings"]["prompt_n"] == len(model.tokenize("hello"))


@pytest.mark.parametrize("data", ["", "\n"])
def test_no_prompt_is_bad_use(data: str, tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, input=data)
    assert done.returncode == 2
    assert "no prompt" in done.stderr


def test_input_that_is_not_utf8_is_refused(tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, input=b"caf\xe9")
    assert done.returncode == 2
    assert "byte 0xe9 at offset 3" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are text there")
def test_argument_that_is_not_utf8_is_refused(tiny_bundle: Path) -> None:
    line = [*map(os.fsencode, PROGRAM), b"run", bytes(tiny_bundle), b"caf\xe9"]
    done = subprocess.run(line, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"not valid UTF-8" in done.stderr


def test_prompts_of_any_size_end_in_an_answer_or_a_message(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "small", formats=("reference",))
    for size in (26_000, 2_000_000):
        done = call("run", tmp_path / "small", "-n", 2, input="x" * size)
        assert done.returncode == 2
        assert "512" in done.stderr
        assert len(done.stderr) < 500
    done = call("run", tmp_path / "small", "-n", 2, input="\0" * 50)
    assert done.returncode == 0


def test_a_closed_pipe_ends_quietly(tiny_bundle: Path) -> None:
    line = [*PROGRAM, "run", str(tiny_bundle), "hello"]
    with subprocess.Popen(
        [*line, "-n", "50000", "--ignore-eos"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(10)
        child.stdout.close()
        assert child.wait(30) == 1
        assert child.stderr.read() == b""


@contextmanager
def answering(bundle: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of a long answer."""
    line = [*PROGRAM, "run", str(bundle), "hello", "--ignore-eos"]
    with subprocess.Popen(
        [*line, "-n", "90000", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        yield child
        child.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_keeps_what_was_said_and_is_130(tiny_bundle: Path) -> None:
    with answering(tiny_bundle, "--verbose") as child:
        assert child.stdout is not None
        first = child.stdout.read(20)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert child.returncode == 130
        assert len(first) == 20
        assert out.endswith(b"\n")
        assert b"Traceback" not in err
        assert b"end      cancelled" in err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_a_second_interrupt_does_not_wait(tiny_bundle: Path) -> None:
    with answering(tiny_bundle) as child:
        assert child.stdout is not None
        child.stdout.read(20)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 130
        assert b"Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_while_loading_is_130(tiny_bundle: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from quickdraft import cli\n"
        "from quickdraft.runtime.model import Model\n"
        "Model.open = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.exit(cli.main(['run', {str(tiny_bundle)!r}, 'hello']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupted_json_is_still_an_object(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Model.stream_chat

    def stream_chat(self: Model, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, chunk in enumerate(genuine(self, *arguments, **options)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield chunk

    monkeypatch.setattr(Model, "stream_chat", stream_chat)
    done = call("run", tiny_bundle, "hello", "-n", 90_000, "--ignore-eos", "--json")
    assert done.returncode == 130
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "cancelled"
    assert 0 < len(answer["token_ids"]) < 90_000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_the_engine_the_extra_is_named(tiny_bundle: Path) -> None:
    script = (
        "import sys\n"
        "from quickdraft.cli import main\n"
        "sys.modules['onnxruntime'] = None\n"
        f"sys.exit(main(['run', {str(tiny_bundle)!r}, 'hello', '--backend', 'onnxruntime']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"pip install 'quickdraft[onnx]'" in done.stderr


def test_several_files_have_an_answer_each(tiny_bundle: Path, tmp_path: Path) -> None:
    files = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for file, text in zip(files, ("a b c", "d e f"), strict=True):
        file.write_text(text)
    asked = ["run", tiny_bundle, "--raw", "-n", "5", "--drafter", "none", "before"]
    alone = [json.loads(call(*asked, "--json", "--input", file).stdout) for file in files]
    batch = call(*asked, "--json", "--input", files[0], "--input", files[1])
    assert batch.returncode == 0, batch.stderr
    lines = [json.loads(line) for line in batch.stdout.splitlines()]
    assert [line["file"] for line in lines] == list(map(str, files))
    assert [line["token_ids"] for line in lines] == [each["token_ids"] for each in alone]
    assert "file" not in alone[0]
    plain = call(*asked, "--input", files[0], "--input", files[1]).stdout
    titled = [f"{file}:\n{each['text']}" for file, each in zip(files, alone, strict=True)]
    assert plain == "".join(text if text.endswith("\n") else text + "\n" for text in titled)


def test_a_file_without_text_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    good, empty = tmp_path / "good.txt", tmp_path / "empty.txt"
    good.write_text("words")
    empty.write_text("\n")
    done = call("run", tiny_bundle, "-n", 2, "--input", good, "--input", empty)
    assert done.returncode == 2
    assert done.stdout.startswith(f"{good}:\n")
    assert str(empty) not in done.stdout
    assert f"{empty} holds no text" in done.stderr

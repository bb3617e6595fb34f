"""llama.cpp's own drafting, which only its server has: one server process per mode.

The server is built by install.py from the sources that llama-cpp-python brings along, so both are
the same llama.cpp. Modes are its `--spec-type` with its own defaults, and `ngram-simple-short`,
which looks up 3 tokens to draft 10 (the defaults, 12 and 48, seldom find anything in short texts).
"""

from __future__ import annotations

import atexit
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODES: dict[str, list[str]] = {
    "ngram-simple": ["--spec-type", "ngram-simple"],
    "ngram-simple-short": [
        *("--spec-type", "ngram-simple"),
        *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "10"),
    ],
    "ngram-map-k": ["--spec-type", "ngram-map-k"],
    "ngram-map-k4v": ["--spec-type", "ngram-map-k4v"],
    "ngram-mod": ["--spec-type", "ngram-mod"],
    "ngram-cache": ["--spec-type", "ngram-cache"],
}
DRAFT = "draft"
LEAST_CONTEXT = 4096
PATIENCE_S = 300.0


def server_path() -> Path | None:
    """The server beside this interpreter; None if it was not built."""
    name = "llama-server.exe" if sys.platform == "win32" else "llama-server"
    path = Path(sys.executable).with_name(name)
    return path if path.exists() else None


class LlamaServer:
    """A server of one mode, started when it is asked first, restarted for longer contexts."""

    def __init__(self, binary: Path, model: str, threads: int, mode: list[str]) -> None:
        self._command = [
            *(str(binary), "--model", model, "--threads", str(threads)),
            *("--threads-batch", str(threads), "--parallel", "1", "--host", "127.0.0.1"),
            *("--offline", "--log-disable", *mode),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._context = 0
        self._port = 0
        atexit.register(self._stop)

    def generate(self, prompt: list[int], count: int) -> dict[str, Any]:
        """See serve.py. The server's own clock starts at the first token."""
        if len(prompt) + count > self._context:
            self._start(max(LEAST_CONTEXT, len(prompt) + count))
        told = self._post(
            "/completion",
            {
                "prompt": prompt,
                "n_predict": count,
                "temperature": 0,
                "samplers": ["top_k"],
                "top_k": 1,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
            },
        )
        times = told["timings"]
        return {
            "ids": told["tokens"],
            "prefill_s": times["prompt_ms"] / 1e3,
            "decode_s": times["predicted_ms"] / 1e3,
            "decoded": times["predicted_n"] - 1,
        }

    def _start(self, context: int) -> None:
        self._stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [*self._command, "--ctx-size", str(context), "--port", str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        self._context = context
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise SystemExit(f"llama-server ended with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise SystemExit("llama-server does not answer")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise SystemExit(f"llama-server answered {response.status}: {text[:300]}")
        return json.loads(text)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Servers:
    """The servers of all modes over one model."""

    def __init__(self, model: str, threads: int, draft_model: str | None = None) -> None:
        modes = dict(MODES)
        if draft_model is not None:
            modes[DRAFT] = ["--spec-type", "draft-simple", "--spec-draft-model", draft_model]
        binary = server_path()
        self._servers = (
            {name: LlamaServer(binary, model, threads, mode) for name, mode in modes.items()}
            if binary is not None
            else {}
        )

    @property
    def modes(self) -> list[str]:
        """What can be asked for; nothing where the server was not built."""
        return list(self._servers)

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        return self._servers[request["mode"]].generate(request["prompt"], request["tokens"])

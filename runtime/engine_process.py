"""An inference engine in a process of its own, asked one thing at a time.

One JSON request a line in, one JSON answer a line out; the first line is facts about the engine.
Ours is `quickdraft.runtime.curve_worker`; those of other engines, and the requests, are in
bench/peers of the repository (serve.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from quickdraft.errors import BackendError

_SHOWN_LINES = 5
_PATIENCE = 10.0


class EngineProcess:
    """Use it as a context manager, or call `close`.

    Ctrl-C does not reach the process: who asked decides what becomes of it.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Start it and wait for its facts.

        Raises:
            BackendError: it cannot be started, or ended at once; with its last words.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise BackendError(f"{name}: {command[0]}: {error.strerror or error}") from error
        try:
            self.facts: dict[str, Any] = self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            BackendError: the process ended, or said something else than JSON.
        """
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise BackendError(f"{self.name} answered {line[:80]!r}, which is not a JSON object")
        return answer

    def _ended(self) -> BackendError:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return BackendError(f"{self.name} closed its end of the conversation")
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        words = "\n".join(said[-_SHOWN_LINES:]) or "it said nothing"
        return BackendError(f"{self.name} ended with exit code {code}:\n{words}")

    def close(self) -> None:
        """End the process and those it started, whatever they do at the moment."""
        with contextlib.suppress(OSError):
            if os.name == "posix" and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

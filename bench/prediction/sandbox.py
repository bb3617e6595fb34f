"""Run a program that a model wrote, and see whether it ends well.

It runs in a process of its own with little time and memory; where `unshare` may be used, without
network and in its own space of process ids. An audit hook refuses files opened for writing, other
processes, sockets and foreign libraries. That keeps accidents in, and is no wall against malice.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

SECONDS = 10
BYTES = 1 << 30
PASSED = 77
"""The exit code of a program that ran to its end: one that calls exit() itself has another."""

_GUARD = f"""
import os, sys
program = compile(sys.stdin.read(), "answer", "exec")
harmless = {{"os.listdir", "os.scandir", "os.walk"}}
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def refuse(event, arguments):
    kind = event.partition(".")[0]
    if kind in ("os", "shutil", "subprocess", "socket", "ctypes", "pty", "signal"):
        if event not in harmless:
            raise PermissionError(event)
    if event == "open" and arguments[2] & writing:
        raise PermissionError(event)

leave = os._exit
sys.addaudithook(refuse)
exec(program, {{"__name__": "__main__"}})
leave({PASSED})
"""


def passes(program: str) -> bool:
    """Whether a Python program runs to its end without an error, within the limits."""
    command = [*_isolation(), sys.executable, "-I", "-c", _GUARD]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            preexec_fn=_limit,
        )
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return process.returncode == PASSED


def isolation() -> str:
    """How programs are kept apart, in words."""
    return "no network, own process ids" if _isolation() else "audit hook and limits only"


@functools.cache
def _isolation() -> tuple[str, ...]:
    """What a command begins with; nothing where that is not allowed here."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    spaces = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    tried = subprocess.run([unshare, *spaces, sys.executable, "-c", ""], capture_output=True)
    return () if tried.returncode else (unshare, *spaces)


def _limit() -> None:
    """In the new process, before the program: none of this can be raised again."""
    limits = {
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_AS: BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))

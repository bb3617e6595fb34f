"""What every benchmark shares: peer processes, facts about the run, result files."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
RESULTS = Path(__file__).resolve().parent / "results"


class Peer:
    """An engine in a process of its own, asked one thing at a time (bench/peers/serve.py)."""

    def __init__(self, script: str, python: str, model: str, threads: int) -> None:
        command = [python, str(PEERS / script), model, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PEERS
        )
        self.facts = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        if self._process.stdin is None:
            raise RuntimeError("the peer has no standard input")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError("the peer has no standard output")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a peer ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def read_bandwidth(threads: int) -> float:
    """Sequential read bandwidth in GB/s: the best of several sums over 512 MiB."""
    from concurrent.futures import ThreadPoolExecutor

    data = np.ones(1 << 26, np.float64)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, data.nbytes / (time.perf_counter() - started) / 1e9)
    return round(best, 1)


def machine() -> dict[str, Any]:
    """Processor, cores and system."""
    model = platform.processor()
    flags: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = [f for f in value.split() if f.startswith(("avx", "amx"))]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "flags": flags,
    }


def commit() -> str:
    """The commit of the working tree, marked if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    dirty = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
    )
    return head.stdout.strip()[:12] + ("+changes" if dirty.stdout.strip() else "")


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json` with everything needed to run it again."""
    RESULTS.mkdir(exist_ok=True)
    # Folders are private to a machine; the names of files and models are enough.
    arguments = [re.sub(r"[^\s=:]*/", "", argument) for argument in sys.argv]
    document = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": " ".join(arguments),
        "machine": machine(),
        "python": platform.python_version(),
        **figures,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path

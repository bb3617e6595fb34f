"""What every benchmark shares: peer processes, facts about the run, result files."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from quickdraft.runtime.engine_process import EngineProcess

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
RESULTS = Path(__file__).resolve().parent / "results"


def start_peer(script: str, python: str, model: str, threads: int, *rest: str) -> EngineProcess:
    """An engine in a process of its own, asked one thing at a time (bench/peers/serve.py)."""
    return EngineProcess(script, [python, str(PEERS / script), model, str(threads), *rest])


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


def circumstances() -> dict[str, Any]:
    """Everything needed to run a measurement again."""
    # Folders are private to a machine; the names of files and models are enough.
    arguments = [re.sub(r"[^\s=:]*/", "", argument) for argument in sys.argv]
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": " ".join(arguments),
        "machine": machine(),
        "python": platform.python_version(),
    }


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json` with the circumstances."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(circumstances() | figures, indent=1) + "\n")
    return path

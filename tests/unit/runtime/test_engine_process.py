"""An engine in a process of its own ends with everything it started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from quickdraft.runtime.engine_process import EngineProcess

# Starts a process that would live on, says its id, and waits.
PARENT = """
import json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(json.dumps({"child": child.pid}), flush=True)
sys.stdin.read()
"""


def runs(process: int) -> bool:
    """Whether a process exists and has not ended (an ended one may wait for its parent)."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_what_an_engine_started_ends_with_it() -> None:
    with EngineProcess("parent", [sys.executable, "-c", PARENT]) as engine:
        child = engine.facts["child"]
        assert runs(child)
    deadline = time.monotonic() + 10
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)

"""Energy, where a meter can be read: RAPL on Linux, powermetrics on macOS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Protocol

POWERCAP = Path("/sys/class/powercap")
MILLISECONDS = 250
"""Between two readings of powermetrics."""

_POWER = re.compile(r"^Combined Power[^:]*: (\d+) mW", re.MULTILINE)


class Meter(Protocol):
    """Counts energy from when it was opened."""

    name: str

    def joules(self) -> float:
        """So far, of the whole machine's processor: other programs count as well."""

    def close(self) -> None:
        """Stop counting."""


def open_meter(root: Path = POWERCAP) -> tuple[Meter | None, str]:
    """A meter that can be read, or None; and its name, or why there is none. root: of RAPL."""
    if sys.platform == "darwin":
        return _open_powermetrics()
    zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    packages = [zone for zone in zones if zone.name.count(":") == 1]
    if not packages:
        return None, f"no meter: the system has no RAPL under {root}"
    try:
        meter = Rapl(packages)
    except (OSError, ValueError) as error:
        return None, f"no meter: RAPL is there and cannot be read ({error}); root may read it"
    return meter, meter.name


class Rapl:
    """Counters of the kernel, one a processor package, in microjoules; they wrap around, at most
    once between two readings."""

    name = "RAPL, processor packages"

    def __init__(self, zones: list[Path]) -> None:
        """zones: folders with `energy_uj` and `max_energy_range_uj`.

        Raises:
            OSError, ValueError: one cannot be read.
        """
        self._zones = [
            (zone / "energy_uj", _number(zone / "max_energy_range_uj")) for zone in zones
        ]
        self._last = [_number(counter) for counter, _ in self._zones]
        self._microjoules = 0

    def joules(self) -> float:
        """See Meter."""
        for index, (counter, span) in enumerate(self._zones):
            value = _number(counter)
            self._microjoules += (value - self._last[index]) % (span + 1)
            self._last[index] = value
        return self._microjoules / 1e6

    def close(self) -> None:
        """Nothing is held open."""


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _open_powermetrics() -> tuple[Meter | None, str]:
    command = shutil.which("powermetrics")
    if command is None:
        return None, "no meter: there is no powermetrics"
    if sys.platform == "win32" or os.geteuid() != 0:
        return None, "no meter: powermetrics needs root"
    arguments = [command, "--samplers", "cpu_power", "-i", str(MILLISECONDS)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    meter = Powermetrics(process)
    return meter, meter.name


class Powermetrics:
    """Power of CPU, GPU and Neural Engine as powermetrics reports it, times the time it held."""

    name = "powermetrics, CPU + GPU + ANE"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """process: a running powermetrics."""
        self._process = process
        self._joules = 0.0
        self._watts = 0.0
        self._since = time.perf_counter()
        self._lock = threading.Lock()
        if process.stdout is not None:
            threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            found = _POWER.match(line)
            if found is not None:
                with self._lock:
                    self._add()
                    self._watts = int(found[1]) / 1e3

    def _add(self) -> None:
        now = time.perf_counter()
        self._joules += self._watts * (now - self._since)
        self._since = now

    def joules(self) -> float:
        """See Meter."""
        with self._lock:
            self._add()
            return self._joules

    def close(self) -> None:
        """End powermetrics."""
        self._process.terminate()
        self._process.wait(timeout=5)

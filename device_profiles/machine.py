"""Facts of this machine, read from the system without third-party packages.

Every function returns None where the system does not say; nothing here raises.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Features that the kernels of inference engines look for, separated by spaces.
FEATURES = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 "
    "amx_tile amx_int8 amx_bf16 asimd asimdhp asimddp i8mm bf16 sve sve2 sme"
)
_APPLE = {"dotprod": "FEAT_DotProd", "i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16", "sme": "FEAT_SME"}


def cpu_name() -> str | None:
    """The name of the processor."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string")
    if sys.platform == "win32":
        return _windows_cpu_name() or platform.processor() or None
    fields = _cpuinfo()
    for core in fields:
        if "model name" in core:
            return core["model name"]
    return platform.processor() or None


def board() -> str | None:
    """The name of a board whose firmware tells it, such as a Raspberry Pi."""
    return _read("/proc/device-tree/model").rstrip("\0\n") or None


def architecture() -> str:
    """`x86_64` or `arm64`, or what the system calls anything else."""
    found = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(found, found)


def system() -> str:
    """`linux`, `darwin` or `windows`."""
    return platform.system().lower()


def cpu_features() -> list[str] | None:
    """Those of FEATURES that the processor has, in the system's spelling."""
    if sys.platform == "darwin":
        return [name for name, key in _APPLE.items() if _sysctl(f"hw.optional.arm.{key}") == "1"]
    for core in _cpuinfo():
        flags = core.get("flags") or core.get("Features")
        if flags is not None:
            present = set(flags.split())
            return [name for name in FEATURES.split() if name in present]
    return None


def physical_cores() -> int | None:
    """Cores, each counted once however many threads it runs."""
    if sys.platform == "darwin":
        count = _sysctl("hw.physicalcpu")
        return int(count) if count else None
    cores = {
        (core["physical id"], core["core id"])
        for core in _cpuinfo()
        if "physical id" in core and "core id" in core
    }
    return len(cores) or None


def usable_processors() -> int | None:
    """Hardware threads this process may run on, no more than a container's share of time fills: who
    waits for work on more is stopped by the system in the midst of a step."""
    if hasattr(os, "sched_getaffinity"):
        allowed: int | None = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count()
    share = _container_share()
    return min(allowed, share) if allowed and share else allowed


def _container_share() -> int | None:
    """Processors that the control group's limit is worth, rounded up."""
    words = _read("/sys/fs/cgroup/cpu.max").split()
    if not words:  # version 1
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [_read(f"/sys/fs/cgroup/cpu/{name}").strip() for name in names]
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None  # "max", or -1: no limit
    return max(1, -(-int(words[0]) // int(words[1])))


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all, and free for new work."""
    if sys.platform == "darwin":
        total = _sysctl("hw.memsize")
        return (int(total) if total else None), None
    if sys.platform == "win32":
        return _windows_memory()
    fields = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    return fields.get("MemTotal"), fields.get("MemAvailable")


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_memory() -> None:
    """Let the system have memory that was freed and is still held for later; where that can be
    asked for."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest parent that exists.

    Tried, with a file that has no name: permissions do not tell of disks mounted read-only.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _cpuinfo() -> list[dict[str, str]]:
    """One mapping per processor of /proc/cpuinfo."""
    blocks = _read("/proc/cpuinfo").strip().split("\n\n")
    pairs = [[line.partition(":") for line in block.splitlines()] for block in blocks]
    return [{name.strip(): value.strip() for name, _, value in block} for block in pairs]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _windows_cpu_name() -> str | None:
    """The name that the registry has; `platform` knows the family only."""
    if sys.platform != "win32":
        return None
    import winreg

    place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    except OSError:
        return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API; sizes in bytes."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", "total_page_file")),
        *((name, ctypes.c_uint64) for name in ("available_page_file", "total_virtual")),
        *((name, ctypes.c_uint64) for name in ("available_virtual", "available_extended")),
    )


def _windows_memory() -> tuple[int | None, int | None]:
    status = _MemoryStatus(ctypes.sizeof(_MemoryStatus))
    try:
        kernel: Any = vars(ctypes)["windll"].kernel32  # there is none elsewhere
        if kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
            return int(status.total), int(status.available)
    except (KeyError, AttributeError, OSError):
        pass
    return None, None


def _sysctl(name: str) -> str | None:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

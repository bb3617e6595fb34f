"""What every test gets: helpers on the path, no network, its own model cache.

Tests marked `models` are the exception: they fetch real models into the user's cache.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_STARTED = pytest.StashKey[float]()
_CACHES = pytest.StashKey[Path]()
SECONDS_ALLOWED = 300
"""What the default lane may take on two cores."""


def _is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine."""
    if not isinstance(address, tuple):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] == "localhost"


def _guarded(connect: Any) -> Any:
    def refuse_outside(self: socket.socket, address: Any) -> Any:
        if not _is_local(address):
            pytest.fail(f"a test tried to reach {address}; mark it `models` or give it a stub")
        return connect(self, address)

    return refuse_outside


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Close the network and set a fresh cache around a test and all fixtures made for it.

    A fixture would come too late: those of wider scope are set up before it.
    """
    if item.get_closest_marker("models"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))
        patch.setenv("QUICKDRAFT_CACHE", str(item.config.stash[_CACHES] / uuid.uuid4().hex))
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the native library where quickdraft was installed without it."""
    if item.get_closest_marker("native"):
        from quickdraft.runtime.native import library_path

        if library_path() is None:
            pytest.skip("quickdraft is installed without its native library")


@pytest.fixture(scope="session", autouse=True)
def _remove_caches(pytestconfig: pytest.Config) -> Generator[None]:
    yield
    shutil.rmtree(pytestconfig.stash[_CACHES], ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Note the start, and where the caches of the tests go."""
    config.stash[_STARTED] = time.monotonic()
    config.stash[_CACHES] = Path(tempfile.gettempdir()) / f"quickdraft-tests-{uuid.uuid4().hex}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how long the default lane took, and complain when it outgrows its budget."""
    seconds = time.monotonic() - config.stash[_STARTED]
    line = f"{seconds:.1f} s of {SECONDS_ALLOWED} s allowed for the default lane"
    if "not slow" in (config.option.markexpr or ""):
        terminalreporter.write_line(line, yellow=seconds > SECONDS_ALLOWED)

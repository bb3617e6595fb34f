"""Other engines to measure beside ours: where they are, and the models they open.

bench/peers/install.py of the repository installs them: <folder>/<name>.json says how to run one
("command", then MODEL and THREADS), and how to make what it opens of a .gguf file ("convert", then
FILE and FOLDER; null if it opens the file itself). Converted models are kept beside, by the
fingerprint of the file.

A name may carry a setting, `openvino-genai+f16`, which the engine gets after THREADS: so an engine
can be measured in several, as if it were several engines.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraft.errors import BackendError, InputError, OptionError

PEERS = ("llama.cpp", "onnxruntime-genai", "openvino-genai")
_SHOWN_LINES = 5
_FINGERPRINT_DIGITS = 12


@dataclass(frozen=True)
class Peer:
    """An installed engine: the commands that run it and that convert a checkpoint for it.

    name: as it was asked for, setting included.
    """

    name: str
    command: tuple[str, ...]
    convert: tuple[str, ...] | None

    @property
    def engine(self) -> str:
        """The name without the setting."""
        return self.name.partition("+")[0]

    @property
    def setting(self) -> list[str]:
        """What stands behind the plus sign, if something does."""
        return [self.name.partition("+")[2]] if "+" in self.name else []


def find_peers(names: tuple[str, ...], folder: Path) -> list[Peer]:
    """The peers of these names, in order.

    Raises:
        OptionError: one is unknown, or is not installed.
        InputError: its description cannot be read.
    """
    return [_find(name, folder) for name in names]


def _find(name: str, folder: Path) -> Peer:
    engine = name.partition("+")[0]
    if engine not in PEERS:
        raise OptionError(f"--peers: there is no peer {name!r}; available: {', '.join(PEERS)}")
    file = folder / f"{engine}.json"
    if not file.is_file():
        raise OptionError(
            f"--peers: {engine} is not installed in {folder}; install it with "
            f"'python bench/peers/install.py {engine}' in a checkout of quickdraft, or name "
            "another folder with --peers-dir"
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        command, convert = _words(told["command"]), told["convert"]
        return Peer(name, command, None if convert is None else _words(convert))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{file} is not what install.py writes: {error!r}"
        raise InputError(f"{problem}; install {engine} again") from None


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise TypeError("a command must be a list of words")
    return tuple(value)


def peer_model(peer: Peer, checkpoint: Path, fingerprint: str, folder: Path) -> Path:
    """What the peer opens for a .gguf file; converted once.

    Raises:
        BackendError: its converter failed; with its last words.
    """
    if peer.convert is None:
        return checkpoint
    converted = folder / "models" / fingerprint[:_FINGERPRINT_DIGITS] / peer.engine
    if not converted.exists():
        converted.parent.mkdir(parents=True, exist_ok=True)
        command = [*peer.convert, str(checkpoint), str(converted)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or not converted.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            words = "\n".join(said[-_SHOWN_LINES:])
            raise BackendError(f"{peer.name} could not convert {checkpoint.name}:\n{words}")
    return converted

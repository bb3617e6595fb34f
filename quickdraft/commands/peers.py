"""Other engines to measure beside ours: where they are, and the models they open.

bench/peers/install.py of the repository installs them: <folder>/<name>.json says how to run one
("command", then MODEL and THREADS), and how to make what it opens of a .gguf file ("convert", then
FILE and FOLDER; null if it opens the file itself). Converted models are kept beside, by the
fingerprint of the file.

A name may carry a setting, `openvino-genai+f16`, which the engine gets after THREADS: so an engine
can be measured in several, as if it were several engines.
"""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.errors import BackendError, InputError, OptionError
from quickdraft.hashes import cache_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quickdraft.manifest import Manifest
    from quickdraft.types import Progress

    Command = Callable[..., Any]

STEPPING = ("llama.cpp", "onnxruntime-genai", "openvino-genai")
"""Engines that can be measured step by step."""
GENERATING = (*STEPPING, "transformers")
"""Engines that can be asked for whole answers."""
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


@dataclass(frozen=True)
class PeerChoice:
    """What was asked for. known: engines the command can measure. folder: where they are
    installed. checkpoint: the .gguf file of the model, None to find it by the model's name."""

    names: tuple[str, ...]
    known: tuple[str, ...]
    folder: Path
    checkpoint: Path | None


def peer_options(known: tuple[str, ...]) -> Callable[[Command], Command]:
    """`--peers`, `--peers-dir` and `--checkpoint`, gathered in the parameter `peers`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gather(
            *args: Any,
            peers: tuple[str, ...],
            peers_dir: Path | None,
            checkpoint: Path | None,
            **params: Any,
        ) -> Any:
            chosen = PeerChoice(peers, known, peers_dir or cache_root() / "peers", checkpoint)
            return command(*args, peers=chosen, **params)

        wrapped = click.option(
            "--checkpoint", type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="The .gguf file a bundle was exported from, for --peers.",
        )(gather)  # fmt: skip
        wrapped = click.option(
            "--peers-dir", type=click.Path(path_type=Path, file_okay=False),
            envvar="QUICKDRAFT_PEERS",
            help="Where bench/peers/install.py put them.  [default: peers in the cache]",
        )(wrapped)  # fmt: skip
        return click.option(
            "--peers", default="", callback=name_list, metavar="NAME,...",
            help=f"Engines measured beside ours: {', '.join(known)}.",
        )(wrapped)  # fmt: skip

    return decorate


def peer_commands(
    model: str,
    manifest: Manifest,
    chosen: PeerChoice,
    loading: Mapping[str, Any],
    progress: Progress,
) -> dict[str, list[str]]:
    """The command line of every peer by name; converts the model for those that need it.

    manifest: of the model's bundle. loading: options of the model, `threads` among them.

    Raises:
        OptionError: a peer is unknown or not installed, or the model's .gguf file is not known.
        InputError, BackendError: as `find_peers` and `peer_model`.
    """
    from quickdraft.models.resolve import find_checkpoint, fingerprint

    found = find_peers(chosen)
    if not found:
        return {}
    offline = bool(loading.get("offline"))
    file = chosen.checkpoint or find_checkpoint(model, progress=progress, offline=offline)
    if file is None or file.suffix.lower() != ".gguf":
        raise OptionError(
            f"--peers are measured on the .gguf file of a model, and {model} is none; name the "
            "one it was exported from with --checkpoint"
        )
    identity = fingerprint(file)
    if identity != manifest.source.fingerprint:
        raise OptionError(f"--checkpoint: {model} was not exported from {file}")
    commands = {}
    for number, peer in enumerate(found):
        progress("convert", number, len(found))
        opened = peer_model(peer, file, identity, chosen.folder)
        threads = str(loading["threads"])
        commands[peer.name] = [*peer.command, str(opened), threads, *peer.setting]
    progress("convert", len(found), len(found))
    return commands


def name_list(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """A click callback: `a,b` as names, in order, without repeats."""
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def find_peers(chosen: PeerChoice) -> list[Peer]:
    """The peers of these names, in order.

    Raises:
        OptionError: one is unknown, or is not installed.
        InputError: its description cannot be read.
    """
    return [_find(name, chosen) for name in chosen.names]


def _find(name: str, chosen: PeerChoice) -> Peer:
    engine, folder = name.partition("+")[0], chosen.folder
    if engine not in chosen.known:
        raise OptionError(
            f"--peers: there is no peer {name!r}; available: {', '.join(chosen.known)}"
        )
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

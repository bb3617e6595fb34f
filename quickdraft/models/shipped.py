"""The drafts that come with this package, and the models they are for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "drafts"
"""One file a draft, with a card in it, made by `quickdraft train draft` (see export.trained)."""


def shipped_drafts(fingerprint: str, folder: Path = FOLDER) -> tuple[Path, ...]:
    """Files of the drafts for a checkpoint, by name. fingerprint: its sha256, hex."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return ()  # at every start: what follows takes time to import
    from quickdraft.export.trained import read_trained

    return tuple(file for file in files if read_trained(file).target == fingerprint)


def with_shipped(
    checkpoint: Path, trained: Sequence[Path], folder: Path = FOLDER
) -> tuple[Path, ...]:
    """Files of trained parts for a checkpoint: those given, then the shipped drafts whose kind is
    not among them.

    Raises:
        CheckpointError: the checkpoint or a file cannot be read.
    """
    return (*trained, *left_out(checkpoint, trained, folder))


def left_out(checkpoint: Path, trained: Sequence[Path], folder: Path = FOLDER) -> tuple[Path, ...]:
    """The shipped drafts for a checkpoint whose kind is not among trained parts.

    Raises:
        CheckpointError: the checkpoint or a file cannot be read.
    """
    from quickdraft.export.trained import read_trained
    from quickdraft.models.resolve import fingerprint

    kinds = {read_trained(file).kind for file in trained}
    drafts = shipped_drafts(fingerprint(checkpoint), folder)
    return tuple(file for file in drafts if read_trained(file).kind not in kinds)

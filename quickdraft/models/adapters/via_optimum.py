"""Export of families that we do not define: optimum does it, in a process of its own.

What comes out runs through the adapter: any decoder that transformers has, with chains of drafts
only. No code of a checkpoint runs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import quickdraft
from quickdraft.bundle import BundleWriter
from quickdraft.errors import AdapterError, CheckpointError, MissingExtra, OptionError
from quickdraft.export.checkpoints.model_card import read_licence
from quickdraft.manifest import EXPORT_REVISION, Manifest
from quickdraft.models.adapters.optimum import adapt_optimum
from quickdraft.models.admission import Provenance
from quickdraft.types import Progress

_TASK = "text-generation-with-past"
_PACKAGE = "optimum-onnx"


def export_via_optimum(
    checkpoint: Path,
    out: Path,
    *,
    provenance: Provenance | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a checkpoint folder to the bundle folder `out` with optimum, all or nothing.

    progress: stage `optimum`, of unknown length, then `verify`.

    Raises:
        OptionError: the checkpoint is no folder, or `out` is taken. MissingExtra: optimum-onnx is
            not installed. CheckpointError: optimum refuses the checkpoint.
        AdapterError: what it made is of a kind that no adapter opens. StorageError.
    """
    if not checkpoint.is_dir():
        raise OptionError(
            f"{checkpoint} is a file, and optimum reads checkpoint folders of Hugging Face only; "
            "leave out --via"
        )
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint} has no config.json; is it a checkpoint folder?")
    require_optimum()
    with BundleWriter(out, overwrite=overwrite) as writer:
        if progress is not None:
            progress("optimum", 0, 0)
        _run(checkpoint, writer.root)
        try:
            made = adapt_optimum(writer.root, progress).manifest
        except AdapterError as error:  # the folder has another name by then, or none
            raise AdapterError(str(error).replace(str(writer.root), str(checkpoint))) from error
        for path in sorted(writer.root.rglob("*")):
            if path.is_file() and path.relative_to(writer.root).as_posix() not in made.files:
                path.unlink()
        for name in made.files:
            writer.add(name)
        source = replace(
            made.source,
            name=provenance.name if provenance else checkpoint.resolve().name,
            revision=provenance.revision if provenance else None,
            licence=provenance.licence if provenance else read_licence(checkpoint),
        )
        versions = {"quickdraft": quickdraft.__version__, "export": EXPORT_REVISION}
        versions[_PACKAGE] = importlib.metadata.version(_PACKAGE)
        return writer.finish(replace(made, source=source, written_by=versions))


def require_optimum() -> None:
    """Look for optimum without importing it, which takes seconds.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        found = importlib.util.find_spec("optimum.exporters.onnx")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise MissingExtra(_PACKAGE, "optimum")


def _run(checkpoint: Path, folder: Path) -> None:
    """Let optimum write an export into a folder.

    Raises:
        CheckpointError: it did not; the message ends with its last words.
    """
    # -P: a file in the current folder must not stand in for optimum or a module of it.
    command = [sys.executable, "-P", "-m", "optimum.exporters.onnx", "--task", _TASK]
    arguments = ["--model", str(checkpoint.absolute()), "--no-post-process", str(folder)]
    done = subprocess.run(
        [*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise CheckpointError(f"optimum cannot export {checkpoint}: {lines[-1].strip()[:500]}")

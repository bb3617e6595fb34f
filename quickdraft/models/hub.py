"""Checkpoints on the Hugging Face hub: `owner/name`, `owner/name@revision`, `owner/name:file.gguf`.

All transfer is huggingface_hub's: its cache, its tokens, its settings (HF_HOME, HF_HUB_OFFLINE...).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraft.errors import DownloadError, ModelNotFound, QuickdraftError
from quickdraft.hashes import storage_error
from quickdraft.models.admission import Provenance
from quickdraft.types import Progress

PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.spm",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
"""What a checkpoint folder is made of; weights in other formats stay where they are."""

MODEL_CARD = "README.md"
"""Fetched for the licence it states; no part of the checkpoint, so it may change."""

# Subfolders hold other formats; `consolidated` holds the same weights a second time.
_IGNORED = ("*/*", "consolidated*")

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
    r"(?::(?P<file>[\w][\w./ -]*\.gguf))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """A name on the hub. file: the one `.gguf` file wanted, or None for a checkpoint folder."""

    repo: str
    revision: str | None
    file: str | None


def parse_hub_name(name: str) -> HubName | None:
    """Take a name apart, or None if it cannot be a name on the hub."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        return None
    return HubName(match["repo"], match["revision"], match["file"])


def fetch(name: HubName, *, progress: Progress | None = None, offline: bool = False) -> Path:
    """The checkpoint folder or `.gguf` file of a repository, in huggingface_hub's cache.

    progress: stage `fetch`, in files.

    Raises:
        ModelNotFound: there is no such repository, revision or file, or nothing we can read.
        DownloadError: it is gated, or cannot be reached.
        StorageError: it cannot be written.
    """
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.utils

    with _quiet_bars(huggingface_hub), _translated(name, offline):
        folder = Path(
            huggingface_hub.snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=[*((name.file,) if name.file else PATTERNS), MODEL_CARD],
                ignore_patterns=None if name.file else list(_IGNORED),
                local_files_only=offline,
                library_name="quickdraft",
                tqdm_class=_reporter(progress),
            )
        )
    wanted = folder / (name.file or "config.json")
    if not wanted.is_file():
        hint = "" if name.file else f"; if it holds GGUF files, name one: {name.repo}:FILE.gguf"
        raise ModelNotFound(f"{name.repo} has no {wanted.relative_to(folder).as_posix()}{hint}")
    return wanted if name.file else folder


def provenance(name: HubName, checkpoint: Path) -> Provenance:
    """Where the checkpoint that `fetch` gave is from: repository, commit, stated licence."""
    from quickdraft.export.checkpoints.model_card import read_licence

    snapshot = checkpoint.parents[len(Path(name.file).parts) - 1] if name.file else checkpoint
    commit = snapshot.name if re.fullmatch("[0-9a-f]{40}", snapshot.name) else None
    source = f"{name.repo}:{name.file}" if name.file else name.repo
    return Provenance(source, commit, read_licence(snapshot))


def _reporter(progress: Progress | None) -> type[Any]:
    """A class in the form of tqdm, which is what huggingface_hub reports files to."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]  # public, but not in its __all__

    class Reporter(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self._done = 0

        def __iter__(self) -> Iterator[Any]:
            for item in super().__iter__():
                yield item
                self.update()

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if progress is not None:
                progress("fetch", self._done, int(self.total or 0))

    return Reporter


@contextmanager
def _quiet_bars(huggingface_hub: Any) -> Iterator[None]:
    """Switch off the bars of single files, which would draw over ours."""
    utils = huggingface_hub.utils
    if utils.are_progress_bars_disabled() or huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS:
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _translated(name: HubName, offline: bool) -> Iterator[None]:
    from huggingface_hub import errors

    # The bases are the errors of its HTTP client, which changed between versions and whose errors
    # of transport are not always OSErrors.
    clients: tuple[Any, ...] = errors.HfHubHTTPError.__bases__
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *clients)
    try:
        yield
    except failures as error:
        raise _our_error(error, name, offline) from error


def _our_error(error: Exception, name: HubName, offline: bool) -> QuickdraftError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{name.repo} is gated: accept its terms on its page, then log in with: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{name.repo} has no revision {name.revision!r}")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = "was not asked (offline)" if offline else f"cannot be reached: {_first_line(error)}"
        return DownloadError(
            f"{name.repo} is not in the cache (nor a file or folder here), and the hub {why}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"the hub has no model {name.repo!r}, or it is private, and there is no such file or "
            "folder here: check the name, or log in with: hf auth login"
        )
    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{name.repo!r} cannot be a name on the hub: {_first_line(error)}")
    # A failed write has an errno and a file; errors of transport are OSErrors as well.
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return storage_error(error, str(error.filename))
    return DownloadError(f"{name.repo} could not be fetched: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

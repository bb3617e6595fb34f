"""Every error a user can meet.

    QuickdraftError                 something failed                            exit code 1
    ├── InputError                  what was given is wrong                     exit code 2
    │   ├── OptionError             an option has a value it cannot have
    │   ├── DeviceError             a device is absent, unknown or too small
    │   ├── ModelNotFound           a model name that leads nowhere
    │   ├── CheckpointError         a checkpoint is damaged or hostile
    │   │   └── UnsupportedModel    a sound checkpoint we do not implement
    │   ├── BundleError             a bundle is damaged, foreign or newer
    │   │   └── AdapterError        a folder of another runtime cannot be opened as it is
    │   ├── TokenizerError          a tokenizer cannot be used
    │   ├── TemplateError           a chat template refuses or misbehaves
    │   ├── AudioError              a sound file cannot be used
    │   └── ContextOverflow         more tokens than the model can hold
    ├── MissingExtra                an optional dependency is not installed     exit code 2
    ├── DownloadError               a file could not be fetched
    ├── StorageError                a file could not be written: disk full, read-only
    ├── BackendError                the engine underneath failed
    └── Cancelled                   somebody asked to stop                      exit code 130

A message says what was found, where, and what to do next.
"""

from __future__ import annotations


class QuickdraftError(Exception):
    """Root of all errors raised on purpose by quickdraft."""

    exit_code = 1


class InputError(QuickdraftError):
    """Something the user gave cannot be used."""

    exit_code = 2


class OptionError(InputError):
    """An option is unknown or has a value it cannot have."""


class DeviceError(InputError):
    """A device is absent, unknown or too small for the model, or its profile is damaged."""


class ModelNotFound(InputError):
    """A model name is neither an alias, a path, nor a repository that exists."""


class CheckpointError(InputError):
    """A checkpoint file is truncated, malformed or hostile."""


class UnsupportedModel(CheckpointError):
    """The checkpoint is sound, but its architecture or a config value is not implemented."""


class BundleError(InputError):
    """A bundle is damaged, truncated, foreign, or written by a newer version."""


class AdapterError(BundleError):
    """A folder that another tool exported is incomplete, or of a kind that no adapter opens."""


class TokenizerError(InputError):
    """A tokenizer file cannot be used, or does not fit the model."""


class TemplateError(InputError):
    """A chat template failed, refused its messages, or exceeded its limits."""


class AudioError(InputError):
    """A sound file is damaged, empty, not sound, or of a kind that is not read."""


class ContextOverflow(InputError):
    """A prompt, or a prompt and its answer, do not fit the context of the model."""

    def __init__(self, needed: int, limit: int, what: str = "prompt") -> None:
        super().__init__(
            f"the {what} needs {needed} tokens and the model holds {limit}; shorten it or use a "
            "model with a longer context"
        )
        self.needed = needed
        self.limit = limit


class MissingExtra(QuickdraftError):
    """An optional dependency is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'quickdraft[{extra}]'"
        )
        self.package = package
        self.extra = extra


class DownloadError(QuickdraftError):
    """A file could not be fetched, or what arrived is not what was expected."""


class StorageError(QuickdraftError):
    """A file or folder could not be written: the disk is full, read-only, or forbids it."""


class BackendError(QuickdraftError):
    """The inference engine underneath failed."""


class Cancelled(QuickdraftError):
    """The work was stopped on request."""

    exit_code = 130

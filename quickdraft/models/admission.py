"""What every checkpoint goes through before a bundle is made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quickdraft.errors import TemplateError

if TYPE_CHECKING:
    from quickdraft.export.checkpoints.base import Checkpoint


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint was fetched from: a name on the hub with a commit, or a package with a
    version. licence: as stated there, None if it is not."""

    name: str
    revision: str | None = None
    licence: str | None = None


def admit(checkpoint: Checkpoint, provenance: Provenance | None = None) -> Checkpoint:
    """Try the chat template in a child process, and write the provenance into the source.

    provenance: None for a checkpoint of the user's own, which keeps what it says about itself.

    Raises:
        TemplateError: the template is malformed, refuses a plain conversation, or exceeds the
            limits of `check_template`.
    """
    from quickdraft.runtime.templates import check_template

    source, tokenizer = checkpoint.source, checkpoint.tokenizer
    if provenance is not None:
        source = replace(
            source,
            name=provenance.name,
            revision=provenance.revision,
            licence=provenance.licence or source.licence,
        )
    if tokenizer.chat_template is not None:
        try:
            check_template(tokenizer.chat_template, tokenizer.special_tokens)
        except TemplateError as error:
            raise TemplateError(f"{source.name}: {error}; no bundle was made") from None
    return replace(checkpoint, source=source)

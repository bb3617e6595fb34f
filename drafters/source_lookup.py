"""Source lookup: what follows these words in the text that the encoder read?

Prompt lookup (drafters.prompt_lookup) for encoder-decoder models, whose conversation is the answer
alone: what may be copied stands in the source. Source and answer are indexed as one text, source
first, so that answers that repeat themselves are followed too. Without a source of tokens, as of
sound, it is prompt lookup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.options import checked
from quickdraft.drafters.prompt_lookup import GRADES, PromptLookup, PromptLookupOptions


def open_source_lookup(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Open the drafter, with the options of prompt lookup; its conversations share nothing.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    del context
    chosen = checked(PromptLookupOptions, "source_lookup", options)
    return DrafterSource("source_lookup", GRADES, lambda: SourceLookup(chosen))


class SourceLookup:
    """The drafter of one conversation."""

    def __init__(self, options: PromptLookupOptions | None = None) -> None:
        self._lookup = PromptLookup(options)

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation after its source; what both share with those before is kept."""
        self._lookup.begin([*settings.source, *tokens], settings)

    def propose(self, budget: int) -> Draft | None:
        """What followed the best match, in the source or in the answer, and branches beside it."""
        return self._lookup.propose(budget)

    def observe(self, observation: Observation) -> None:
        """Index the new tokens."""
        self._lookup.observe(observation)

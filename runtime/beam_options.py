"""Which options of beams go together, and with what else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.generation import GenerationConfig

EarlyStopping = bool | Literal["never"]

MAX_BEAMS = 64

BEAM_OPTIONS = ("num_beams", "num_beam_groups", "diversity_penalty", "num_return_sequences")
"""Those that a model's defaults cannot set: several beams are asked for."""


def check_beams(config: GenerationConfig) -> None:
    """Refuse what has no meaning, as transformers does, and what a search does not do.

    Raises:
        OptionError: options do not go together.
    """
    beams, groups = config.num_beams, config.num_beam_groups
    if not (isinstance(config.early_stopping, bool) or config.early_stopping == "never"):
        raise OptionError(
            f"early_stopping is {config.early_stopping!r}; it must be true, false or 'never'"
        )
    if groups > beams or beams % groups:
        raise OptionError(
            f"num_beam_groups is {groups}; num_beams ({beams}) must be a multiple of it"
        )
    if (groups > 1) != (config.diversity_penalty > 0):
        raise OptionError(
            f"num_beam_groups is {groups} and diversity_penalty is {config.diversity_penalty:g}; "
            "groups differ only by a penalty above 0, and it needs two groups or more"
        )
    if config.num_return_sequences > beams:
        raise OptionError(
            f"num_return_sequences is {config.num_return_sequences}, more than num_beams ({beams})"
        )
    if beams > 1:
        check_search(config, f"num_beams is {beams}")


def check_search(config: GenerationConfig, why: str) -> None:
    """Refuse options that a search has nothing to do with. why: there is one, such as `num_beams is
    4`.

    Raises:
        OptionError: such an option is set.
    """
    conflicts = (
        (config.do_sample, f"temperature {config.temperature:g}", "set temperature to 0"),
        (bool(config.num_draft_tokens), "num_draft_tokens", "beams are not drafted; leave it out"),
        (config.prompt_lookup_num_tokens, "prompt_lookup_num_tokens", "leave it out"),
        (config.max_matching_ngram_size, "max_matching_ngram_size", "leave it out"),
        (config.acceptance != "exact", f"acceptance {config.acceptance}", "use exact"),
        (config.seed is not None, "seed", "nothing is drawn; leave it out"),
        (config.prefill != "exact", f"prefill {config.prefill}", "use exact"),
        (config.acceptance != "exact", f"acceptance {config.acceptance}", "use exact"),
        (config.logprobs, "logprobs", "every answer has its score; leave it out"),
        (config.stop_strings, "stop_strings", "leave them out, or use eos_token_id"),
    )
    for found, name, advice in conflicts:
        if found:
            raise OptionError(f"{why}, which does not go with {name}: {advice}")

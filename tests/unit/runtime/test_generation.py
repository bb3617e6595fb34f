"""Options: every bad value is an OptionError that names it, and none is clamped."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from quickdraft.errors import OptionError
from quickdraft.runtime.generation import OPTION_NAMES, GenerationConfig

BAD: list[tuple[str, object]] = [
    *(("max_new_tokens", v) for v in (0, -1, 10**9, 2**63, 1.5, "8", True, None, math.nan)),
    *(("min_new_tokens", v) for v in (-1, 513, 2**63)),
    *(("temperature", v) for v in (-1, 1e30, math.nan, math.inf, "hot", None, True, 10**400)),
    *(("top_k", v) for v in (-1, 2**63, 1.0)),
    *(("top_p", v) for v in (0, 1.0000001, -0.5, math.nan)),
    *(("min_p", v) for v in (-0.1, 1.1, math.nan)),
    *(("typical_p", v) for v in (0, 1.1, math.nan)),
    *(("repetition_penalty", v) for v in (0, 0.009, -1, math.inf, math.nan)),
    *(("presence_penalty", v) for v in (1e9, math.nan, -math.inf)),
    *(("frequency_penalty", v) for v in (1e9, math.nan)),
    *(("no_repeat_ngram_size", v) for v in (-1, 10**6)),
    *(("seed", v) for v in (-1, 2**70, 0.5)),
    *(("logprobs", v) for v in (-1, 21, True)),
    *(("prompt_lookup_num_tokens", v) for v in (-1, 65, 10**6)),
    *(("num_draft_tokens", v) for v in (-1, 65, 1.5, "many")),
    *(("max_matching_ngram_size", v) for v in (0, 17)),
    *(("acceptance", v) for v in ("lenient", "", 1, None)),
    *(("posterior_threshold", v) for v in (0, 1.1, math.nan)),
    *(("posterior_alpha", v) for v in (0, -1, 2, "high")),
    *(("prefill_chunk_size", v) for v in (0, 10**6)),
    *(("max_time", v) for v in (0, -1, math.nan, math.inf)),
    *(("stop_strings", v) for v in ("", [""], ["x"] * 17, ["x"] * 10_000, "x" * 257, [3], 3)),
    *(("logit_bias", v) for v in ({1: 1e308}, {-1: 1}, {1: math.nan}, {"a": 1}, [1], {2**40: 1})),
    ("logit_bias", dict.fromkeys(range(1025), 0.5)),
    *(("eos_token_id", v) for v in (-1, [1, -1], "2", 2**40)),
    *(("ignore_eos", v) for v in (1, "yes", None)),
    ("do_sample", "yes"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: repr(v)[:24])
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        GenerationConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 1 << 20),
        ("temperature", 100),
        ("top_p", 1),
        ("seed", 2**64 - 1),
        ("logprobs", 20),
        ("stop_strings", ["é" * 128] * 16),
        ("logit_bias", dict.fromkeys(range(1024), 0.5)),
        ("num_draft_tokens", 0),
        ("num_draft_tokens", None),
        ("prompt_lookup_num_tokens", 0),
        ("acceptance", "typical"),
    ],
)
def test_values_at_the_limit_are_taken(name: str, value: object) -> None:
    GenerationConfig.from_dict({name: value})


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'temperature'"):
        GenerationConfig().replace(temprature=1)
    with pytest.raises(OptionError, match="unknown generation option 'zzz'"):
        GenerationConfig.from_dict({"zzz": 1})


def test_sampling_is_derived_from_the_temperature() -> None:
    plain = GenerationConfig()
    assert not plain.do_sample
    assert plain.replace(temperature=0.3).do_sample
    assert plain.replace(do_sample=True).temperature == 1.0
    assert plain.replace(temperature=0.3).replace(do_sample=True).temperature == 0.3
    assert plain.replace(temperature=0.3).replace(do_sample=False).temperature == 0.0
    with pytest.raises(OptionError, match="give one"):
        plain.replace(do_sample=True, temperature=0)
    with pytest.raises(OptionError, match="give one"):
        plain.replace(do_sample=False, temperature=0.5)


def test_defaults_of_a_bundle_are_read_as_transformers_does() -> None:
    found = GenerationConfig.from_defaults(
        {"do_sample": True, "temperature": 0.6, "top_p": None, "pad_token_id": 0, "top_k": 20}
    )
    assert (found.temperature, found.top_p, found.top_k) == (0.6, 1.0, 20)
    assert GenerationConfig.from_defaults({"temperature": 0.6}).temperature == 0.0
    with pytest.raises(OptionError, match="top_p"):
        GenerationConfig.from_defaults({"top_p": 7})
    with pytest.raises(OptionError, match="do_sample"):
        GenerationConfig.from_defaults({"do_sample": "yes"})


def test_an_option_survives_json() -> None:
    config = GenerationConfig(
        stop_strings="x", logit_bias={3: 1.5}, eos_token_id=4, seed=1, temperature=0.5
    )
    assert GenerationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_cannot_be_changed() -> None:
    config = GenerationConfig(logit_bias={3: 1.5})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.logit_bias[4] = 1.0  # type: ignore[index]
    assert {field.name for field in dataclasses.fields(config)} < OPTION_NAMES


def test_token_ids_are_checked_against_the_vocabulary() -> None:
    GenerationConfig(logit_bias={9: 1}, eos_token_id=9).check_vocabulary(10)
    with pytest.raises(OptionError, match="logit_bias names token 10"):
        GenerationConfig(logit_bias={10: 1}).check_vocabulary(10)
    with pytest.raises(OptionError, match="eos_token_id names token 10"):
        GenerationConfig(eos_token_id=10).check_vocabulary(10)

"""Log-mel features against their definition, and against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from tiny.sounds import tone

from quickdraft.errors import OptionError
from quickdraft.runtime.audio.mel import log_mel, mel_filters


@pytest.mark.parametrize("bins", [80, 128])
def test_filters_have_equal_area_and_cover_the_spectrum(bins: int) -> None:
    filters = mel_filters(bins)
    assert filters.shape == (201, bins)
    assert (filters.sum(axis=0) > 0).all()
    # A triangle of height 2 / width has area 1; 40 Hz between frequencies. Wide ones show it.
    np.testing.assert_allclose(filters[:, -10:].sum(axis=0) * 40, 1, atol=0.02)


def test_a_tone_is_loudest_in_its_own_bin() -> None:
    features = log_mel(tone(1000, 1, 16_000), 100)
    assert features.shape == (100, 80)
    assert features.dtype == np.float32
    assert mel_filters(80)[25, features[50].argmax()] > 0


def test_silence_fills_the_window() -> None:
    short = tone(500, 0.2, 16_000)
    padded = np.zeros(16_000, np.float32)
    padded[: len(short)] = short
    assert np.array_equal(log_mel(short, 100), log_mel(padded, 100))


def test_loudness_is_kept_within_its_range() -> None:
    features = log_mel(tone(500, 0.2, 16_000), 100)
    assert np.isclose(features.max() - features.min(), 2.0)  # 8 decades over 4
    assert np.isclose(log_mel(np.zeros(10, np.float32), 100).max(), (np.log10(1e-10) + 4) / 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="do not fit"):
        log_mel(np.zeros(16_001, np.float32), 100)
    with pytest.raises(OptionError, match="less than one window"):
        log_mel(np.zeros(1, np.float32), 1)
    with pytest.raises(OptionError, match="mel bins"):
        mel_filters(0)


@pytest.mark.torch
@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.00007, 0.4, 11.3, 30.0])
def test_features_equal_those_of_transformers(seconds: float, bins: int) -> None:
    from transformers import WhisperFeatureExtractor

    rng = np.random.default_rng(int(seconds))
    count = max(1, int(seconds * 16_000))
    samples = (rng.normal(0, 0.1, count) + 0.3 * np.sin(np.arange(count) / 9)).astype(np.float32)
    extract = WhisperFeatureExtractor(feature_size=bins)
    expected = extract(samples, sampling_rate=16_000, return_tensors="np").input_features[0].T
    np.testing.assert_allclose(log_mel(samples, 3000, bins), expected, atol=1e-4, rtol=0)

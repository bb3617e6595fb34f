"""Speech models of several languages, checks on what they write down, and the memory it takes."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.process import call
from tiny.sounds import pcm16
from tiny.whisper import FRAMES, TOKEN, VOCAB, write_whisper

import quickdraft
from quickdraft.drafters.tree import Tree
from quickdraft.errors import InputError, OptionError
from quickdraft.kvcache.memory import Source
from quickdraft.runtime import processors
from quickdraft.runtime.audio import transcribe as module
from quickdraft.runtime.audio.mel import HOP, log_mel
from quickdraft.runtime.audio.quality import compression_ratio, mean_logprob
from quickdraft.runtime.audio.sound import open_sound
from quickdraft.runtime.audio.speech_tokens import SpeechTokens
from quickdraft.runtime.audio.transcribe import Transcriber, Window
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model import Model

WORDS_ONLY: dict[str, Any] = {"timestamps": False, "suppress_tokens": tuple(range(21, VOCAB))}
LANGUAGES = {name: TOKEN[f"<|{name}|>"] for name in ("en", "de", "yue")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper") / "bundle")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with quickdraft.load(bundle, drafter="none") as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model repeats itself and is sure of nothing, which should count only where a test
    says so."""
    monkeypatch.setattr(module, "MOST_COMPRESSION", 1e9)
    monkeypatch.setattr(module, "LEAST_LOGPROB", -1e9)


def noise(path: Path, windows: int) -> Path:
    """Each window has a loudness and a pitch of its own."""
    rng, size = np.random.default_rng(0), FRAMES * HOP
    tones = np.sin(np.outer(rng.uniform(0, 3, windows), np.arange(size)))
    loud = 10 ** rng.uniform(-3, -0.4, (windows, 2, 1))
    samples = loud[:, 0] * tones + loud[:, 1] * rng.uniform(-1, 1, tones.shape)
    path.write_bytes(pcm16(samples.reshape(-1).astype(np.float32)))
    return path


def windows_of(model: Model, file: Path, **options: Any) -> list[Window]:
    with open_sound(file) as sound:
        return list(Transcriber(model, **options).windows(sound))


def first_logits(model: Model, file: Path, window: int) -> np.ndarray[Any, Any]:
    """What the model says after its start, of a window, the plain way."""
    with open_sound(file) as sound:
        samples = sound.read(window * FRAMES * HOP, FRAMES * HOP)
    source = Source(features=log_mel(samples, FRAMES, model.spec.source.width))
    cache = model.backend.new_cache(model.backend.encode(source))
    return model.backend.step(Tree.chain([TOKEN["<|startoftranscript|>"]]), cache).logits[0]


@pytest.mark.parametrize("bins", [5, 128])
def test_the_likeliest_language_is_found_window_by_window(tmp_path: Path, bins: int) -> None:
    bundle, file = write_whisper(tmp_path / "bundle", bins), noise(tmp_path / "a.wav", 12)
    with quickdraft.load(bundle, drafter="none") as loaded:
        found = windows_of(loaded, file, timestamps=False)
        assert len(found) == 12
        for number, window in enumerate(found):
            logits = first_logits(loaded, file, number)
            best = max(LANGUAGES, key=lambda name: logits[LANGUAGES[name]])
            assert window.language == best
            opening = window.result.prompt_token_ids
            task = TOKEN["<|transcribe|>"]
            assert opening == (TOKEN["<|startoftranscript|>"], LANGUAGES[best], task, task + 2)
            weights = np.exp(logits.astype(np.float64) - logits.max())
            read = window.to_dict()["source"]
            assert (read["n"], read["unit"], read["cached"]) == (FRAMES, "frames", False)
            assert read["encode_ms"] > 0
            wanted = weights[TOKEN["<|nospeech|>"]] / weights.sum()
            assert window.no_speech == pytest.approx(wanted, rel=1e-4)
        if bins == 5:
            assert len({window.language for window in found}) > 1


def test_language_and_task_are_what_was_asked_for(model: Model, tmp_path: Path) -> None:
    file = noise(tmp_path / "a.wav", 2)
    for language in LANGUAGES:
        for task in ("transcribe", "translate"):
            window = windows_of(model, file, language=language.upper(), task=task)[0]
            assert window.language == language
            opening = (TOKEN["<|startoftranscript|>"], LANGUAGES[language], TOKEN[f"<|{task}|>"])
            assert window.result.prompt_token_ids == opening
    with pytest.raises(OptionError, match=r"no language 'fr' \(there are: de, en, yue\)"):
        Transcriber(model, language="fr")


def test_the_command_line_takes_them_too(bundle: Path, tmp_path: Path) -> None:
    file = noise(tmp_path / "a.wav", 2)
    asked = ("transcribe", "--model", bundle, "--backend", "reference", file, "--json")
    line = call(*asked, "--language", "de", "--task", "translate", "--no-timestamps")
    assert [w["language"] for w in json.loads(line.stdout)["windows"]] == ["de", "de"]
    done = call(*asked, "--language", "fr")
    assert (done.returncode, "there are: de, en, yue" in done.stderr) == (2, True)


def test_what_the_generation_config_leaves_out_is_read_from_the_tokenizer(tmp_path: Path) -> None:
    bundle = write_whisper(tmp_path / "bundle", lang_to_id=None, task_to_id=None)
    with quickdraft.load(bundle, drafter="none") as loaded:
        window = windows_of(loaded, noise(tmp_path / "a.wav", 1), language="de", task="translate")
        opening = window[0].result.prompt_token_ids
        assert opening[1:] == (LANGUAGES["de"], TOKEN["<|translate|>"])


LANGS = {"<|en|>": 5, "<|de|>": 6}
BASE = {"decoder_start_token_id": 3, "no_timestamps_token_id": 9}


@pytest.mark.parametrize(
    ("generation", "special", "vocab", "error"),
    [
        ({"lang_to_id": LANGS}, {}, 60, "task_to_id"),
        ({"lang_to_id": LANGS, "task_to_id": {"translate": 7}}, {}, 60, "task_to_id"),
        ({"is_multilingual": True}, {}, 60, "lang_to_id"),
        ({}, {}, 51_865, "lang_to_id"),
        ({}, LANGS, 51_865, "task_to_id"),
    ],
)
def test_no_token_is_made_up(
    generation: dict[str, Any], special: dict[str, int], vocab: int, error: str
) -> None:
    with pytest.raises(InputError, match=error):
        SpeechTokens.of({**BASE, **generation}, special, vocab)


def test_who_counts_as_english() -> None:
    english = SpeechTokens.of(BASE, LANGS, 51_864)
    assert (english.languages, english.task("transcribe"), english.language("en")) == (
        {},
        None,
        None,
    )
    with pytest.raises(OptionError, match="nothing to translate"):
        english.task("translate")
    told = {**BASE, "is_multilingual": False}
    assert not SpeechTokens.of(told, LANGS, 51_866).languages
    several = SpeechTokens.of(BASE, {**LANGS, "<|transcribe|>": 7, "<|nocaptions|>": 8}, 51_866)
    assert (several.languages, several.no_speech) == ({"en": 5, "de": 6}, 8)
    with pytest.raises(OptionError, match="no task 'translate'"):
        several.task("translate")


def test_a_long_file_takes_no_more_memory_than_a_short_one(model: Model, tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []
    encode, counts = model.backend.encode, []  # type: ignore[attr-defined]

    def watched(source: Source, cancel: Any = None) -> Any:
        memory = encode(source, cancel)
        object.__setattr__(memory, "weight", np.ones(1 << 17))  # a megabyte: one kept would show
        alive.append(weakref.ref(memory))
        return memory

    def peak(windows: int) -> int:
        file = noise(tmp_path / f"{windows}.wav", windows)
        gc.collect()
        tracemalloc.start()
        with open_sound(file) as sound:
            for _ in Transcriber(model, timestamps=False).windows(sound):
                counts.append(sum(each() is not None for each in alive))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backend, "encode", watched)
        peak(2)  # what is made once
        short, long = peak(5), peak(80)
    assert len(alive) == 87
    assert max(counts) <= 2
    assert model.memories.nbytes == 0
    assert long < short + 2_000_000


def test_a_window_that_is_likely_silence_and_unlikely_text_is_left_out(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = noise(tmp_path / "a.wav", 2)
    loud = windows_of(model, file, **WORDS_ONLY)
    assert not any(window.silent for window in loud)
    assert all(window.segments for window in loud)
    monkeypatch.setattr(module, "MOST_SILENCE", 0.0)
    for least, silent in ((0.0, True), (-1e9, False)):
        monkeypatch.setattr(module, "LEAST_LOGPROB", least)
        found = windows_of(model, file, **WORDS_ONLY)
        assert [window.silent for window in found] == [silent] * 2
        assert [bool(window.segments) for window in found] == [not silent] * 2
        unchecked = windows_of(model, file, **WORDS_ONLY, checks=False)
        assert [window.segments for window in unchecked] == [w.segments for w in loud]
        assert unchecked[0].no_speech is None


def test_the_mean_log_probability_is_that_of_decoding_step_by_step(model: Model) -> None:
    rng = np.random.default_rng(0)
    source = Source(features=rng.normal(size=(FRAMES, 5)).astype(np.float32))
    memory = model.backend.encode(source)  # type: ignore[attr-defined]
    end, opening = TOKEN["<|endoftext|>"], [TOKEN["<|startoftranscript|>"], 22, 26]
    config = GenerationConfig(suppress_tokens=[3, 4], begin_suppress_tokens=[5])
    for answer in ([1, 2, 6, end], [7, 8, 9]):
        cache, total, row = model.backend.new_cache(memory), 0.0, np.zeros(0, np.float32)
        for place, token in enumerate([*opening, *answer]):
            if place >= len(opening):
                context = np.array([*opening, *answer][:place])
                logits = processors.apply_all(row, context, place - 3, config, (end,))
                total += logits[token] - np.log(np.exp(logits.astype(np.float64)).sum())
            row = model.backend.step(Tree.chain([token]), cache).logits[0]
            cache.commit([0])
        tokens, rules = (opening, answer), (config, (end,))
        found = mean_logprob(model.backend, memory, tokens, rules)  # type: ignore[arg-type]
        assert found == pytest.approx(total / (len(answer) + (answer[-1] != end)), rel=1e-4)


def test_what_repeats_itself_is_decoded_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = noise(tmp_path / "a.wav", 1)
    plain = windows_of(model, file, **WORDS_ONLY)[0]
    assert (plain.temperature, plain.cut_off) == (0.0, plain.result.finish_reason == "length")
    text = model.detokenize(plain.result.token_ids).strip()
    assert plain.compression == pytest.approx(compression_ratio(text))
    monkeypatch.setattr(module, "MOST_COMPRESSION", plain.compression - 1e-6)
    again = windows_of(model, file, **WORDS_ONLY)
    assert again[0].temperature > 0
    assert again[0].result.token_ids != plain.result.token_ids
    assert again[0].result.token_ids == windows_of(model, file, **WORDS_ONLY)[0].result.token_ids
    assert windows_of(model, file, **WORDS_ONLY, checks=False)[0].temperature == 0.0


def test_what_is_improbable_is_decoded_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = noise(tmp_path / "a.wav", 1)
    plain = windows_of(model, file, **WORDS_ONLY)[0]
    assert (plain.temperature, plain.silent) == (0.0, False)
    assert plain.logprob is not None
    assert plain.logprob < 0
    assert plain.to_dict()["logprob"] == round(plain.logprob, 4)
    for least, again in ((plain.logprob, False), (plain.logprob + 1e-6, True)):
        monkeypatch.setattr(module, "LEAST_LOGPROB", least)
        found = windows_of(model, file, **WORDS_ONLY)[0]
        assert (found.temperature > 0) == again
        assert (found.result.token_ids != plain.result.token_ids) == again
        assert found.segments
    monkeypatch.setattr(module, "LEAST_LOGPROB", 0.0)  # nothing is as probable as that
    assert windows_of(model, file, **WORDS_ONLY)[0].temperature == 1.0
    assert windows_of(model, file, **WORDS_ONLY, temperature=0.3, seed=1)[0].temperature == 0.0
    unchecked = windows_of(model, file, **WORDS_ONLY, checks=False)[0]
    assert (unchecked.temperature, unchecked.logprob) == (0.0, None)


def test_compression_is_that_of_zlib() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("la " * 100) > 2.4 > compression_ratio("Nothing here is said twice.")


def test_a_text_that_had_no_room_is_reported(bundle: Path, model: Model, tmp_path: Path) -> None:
    file = noise(tmp_path / "a.wav", 2)
    endless = {"timestamps": False, "suppress_tokens": (TOKEN["<|endoftext|>"],)}
    for options in ({}, {"max_new_tokens": 3}):
        found = windows_of(model, file, **options, **endless)
        assert [window.cut_off for window in found] == [True, True]
    done = call(
        *("transcribe", "--model", bundle, "--backend", "reference", "--no-timestamps", file),
        "--json",
    )
    told = [window["cut_off"] for window in json.loads(done.stdout)["windows"]]
    assert done.stderr.count("had no room after") == sum(told)


def test_beams_and_no_drafts(bundle: Path, model: Model, tmp_path: Path) -> None:
    file = noise(tmp_path / "a.wav", 2)
    found = windows_of(model, file, timestamps=False, num_beams=3)
    assert all(window.result.beams is not None for window in found)
    asked = ("transcribe", "--model", bundle, "--backend", "reference", file, "--no-timestamps")
    done = call(*asked, "--num-beams", 3)
    said = [segment.text for window in found for segment in window.segments]
    assert done.stdout.splitlines() == said
    assert call(*asked, "--num-beams", 0).returncode == 2


def test_verify_asks_about_sound(bundle: Path, tmp_path: Path) -> None:
    files = [noise(tmp_path / f"{name}.wav", 2) for name in "ab"]
    asked = ("verify", bundle, "--backend", "reference", "--tokens", 6, "--draws", 100)
    done = call(*asked, "--json", *(word for file in files for word in ("--sound", file)))
    told = json.loads(done.stdout)
    assert (done.returncode, told["identical"], told["prompts"]) == (0, True, 2), done.stderr
    assert told["drafters"]["recycling"]["verified"] > 0
    for wrong, says in [
        ((), "give it files with --sound"),
        (("--sound", files[0], "--prompts", 2), "give one"),
    ]:
        failed = call(*asked, *wrong)
        assert (failed.returncode, says in failed.stderr) == (2, True), failed.stderr


def test_sound_given_to_run_is_sent_to_transcribe(bundle: Path, tmp_path: Path) -> None:
    done = call("run", bundle, "--input", noise(tmp_path / "a.wav", 1))
    assert done.returncode == 2
    assert "is sound, not text" in done.stderr
    assert "quickdraft transcribe" in done.stderr

"""The target answers training prompts, so that drafts can learn what it would say.

Sequence-level distillation as in FastDraft (Zafrir et al., arXiv 2411.11055): one answer a prompt,
greedy or at one of a few temperatures. Drafted answers are the target's own, so drafting is on;
where several prompts are answered at once (together.py) it is not needed.
What a prompt is answered with depends on the seed and its id alone, not on which others there are
or what was answered before. Prompts come in an order drawn at random, so that a file that was cut
short is still a mix of all kinds.
"""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickdraft import strict_json
from quickdraft.answers import Answer, AnswersHeader, AnswersWriter
from quickdraft.errors import Cancelled, InputError, OptionError
from quickdraft.kvcache.memory import Source
from quickdraft.runtime.audio.mel import HOP, log_mel
from quickdraft.runtime.audio.sound import open_sound
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.opening import opened_variant
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.sources import opening_of
from quickdraft.runtime.together import Together

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model

TEMPERATURES = (0.0, 0.6, 0.8, 1.0)
FIELDS = ("prompt", "question")
"""Where a row may hold its prompt."""
_MAX_LINE = 4 << 20


@dataclass(frozen=True)
class Prompt:
    """A prompt. id: the same in every run, and no other's. sound: a file, of which the window from
    the sample `start` on is asked about; the text is empty then."""

    id: str
    text: str
    sound: Path | None = None
    start: int = 0


@dataclass(frozen=True)
class AnswerOptions:
    """How prompts are answered.

    max_new_tokens: of an answer. temperatures: each prompt draws one of them; 0 is greedy.
    max_prompt_tokens: longer prompts are left out. raw: prompts are continued as they are, without
    chat template.
    """

    max_new_tokens: int = 256
    temperatures: tuple[float, ...] = TEMPERATURES
    max_prompt_tokens: int = 1024
    raw: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise OptionError("there is no temperature; give at least one, such as 0")
        for temperature in self.temperatures:
            self.config(temperature, self.seed)
        if self.max_prompt_tokens < 1:
            raise OptionError(f"max_prompt_tokens is {self.max_prompt_tokens}; it must be above 0")

    def config(self, temperature: float, seed: int) -> GenerationConfig:
        """Options of one answer."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed
        )

    def header(self, model: Model) -> AnswersHeader:
        """What the file of a model's answers begins with."""
        manifest = model.manifest
        top_k = self.config(1.0, 0).top_k
        opening = {} if model.spec.source is None else {"opening": opening_of(manifest.generation)}
        return AnswersHeader(
            model=manifest.source.name,
            fingerprint=manifest.source.fingerprint,
            weights=opened_variant(manifest, model.backend).weight_format,
            tokenizer=manifest.files[manifest.tokenizer.file].sha256,
            vocab_size=manifest.model.vocab_size,
            seed=self.seed,
            options={
                "max_new_tokens": self.max_new_tokens,
                "temperatures": list(self.temperatures),
                "top_k": top_k,
                "max_prompt_tokens": self.max_prompt_tokens,
                "raw": self.raw,
                **opening,
            },
        )


@dataclass(frozen=True)
class Answered:
    """How far it is. total: prompts asked for, known answers included; done: answers in the file,
    of these prompts; skipped: prompts that are too long or that the template refuses. tokens,
    steps, seconds: of this run."""

    total: int
    done: int
    skipped: int = 0
    answers: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether no prompt is left."""
        return self.done + self.skipped == self.total


def read_prompts(files: Sequence[Path]) -> list[Prompt]:
    """Prompts of .jsonl and .jsonl.gz files, by their `prompt` (or `question`) and `id`, or sound
    by its `file`, from the folder of the rows on; rows without an id are known by the name of their
    file and the number of their line.

    Raises:
        InputError: a file cannot be read, a row has no prompt, or two rows have one id and
            different prompts.
    """
    found: dict[str, Prompt] = {}
    for file in files:
        for at, row in _rows(file):
            prompt = _prompt(file, at, row)
            if found.setdefault(prompt.id, prompt) != prompt:
                raise InputError(f"{file}: line {at} has the id of another prompt, {prompt.id!r}")
    if not found:
        raise InputError("the files hold no prompt")
    return list(found.values())


def windows_of(prompts: Sequence[Prompt], model: Model) -> list[Prompt]:
    """Prompts as the model is asked: a file of sound is as many as there are windows in it.

    Raises:
        InputError: the model reads text and these are sound, or the other way round.
        AudioError: a file is missing, or no sound.
    """
    reads = model.spec.source
    hears = reads is not None and reads.width > 0
    for prompt in prompts:
        if (prompt.sound is not None) != hears:
            wanted = "sound files, rows with a 'file'" if hears else "text, rows with a 'prompt'"
            raise InputError(f"{model.name} answers about {wanted}; {prompt.id!r} is none of these")
    if not hears or reads is None:
        return list(prompts)
    found = []
    for prompt in prompts:
        assert prompt.sound is not None  # looked at above  # noqa: S101
        with open_sound(prompt.sound) as sound:
            starts = range(0, len(sound), reads.length * HOP)
        found += [replace(prompt, id=f"{prompt.id}#{n}", start=at) for n, at in enumerate(starts)]
    return found


def shuffled(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Prompts in an order that depends on the seed and their ids alone."""
    return sorted(prompts, key=lambda prompt: _number("order", seed, prompt.id))


def answer_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    options: AnswerOptions,
    writer: AnswersWriter,
    *,
    minutes: float | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[Answered], None] = lambda answered: None,
    batch: int = 1,
) -> Answered:
    """Answer the prompts that have no answer yet, in order, each written when it is whole.

    minutes: begin no answer after this time. cancel: drops the answers that run. progress: told
    after every answer. batch: how many run at once; more than one are decoded plainly, and come in
    the order in which they end.

    Raises:
        OptionError: the model cannot answer so many at once.
        BackendError, StorageError: an answer failed, or could not be written. Those before it are
            in the file.
    """
    work = _Work(model, prompts, options, writer, minutes, cancel)
    answers = work.together(batch) if batch != 1 else work.one_by_one()
    for answer in answers:
        writer.add(answer)
        work.count(answer)
        progress(work.told)
    return replace(work.told, seconds=work.seconds)


@dataclass(frozen=True)
class _Question:
    """A prompt as it is asked. See together.Asked. seed: of its config."""

    prompt: Prompt
    ids: list[int]
    config: GenerationConfig
    seed: int


class _Work:
    """What is left to answer, and how far it is."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        options: AnswerOptions,
        writer: AnswersWriter,
        minutes: float | None,
        cancel: CancelToken | None,
    ) -> None:
        self._model, self._options = model, options
        self._minutes, self._cancel = minutes, cancel
        self._started = time.monotonic()
        self._left = [prompt for prompt in prompts if prompt.id not in writer.done]
        self.told = Answered(total=len(prompts), done=len(prompts) - len(self._left))

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def count(self, answer: Answer) -> None:
        """Take note of an answer that was written."""
        told = self.told
        self.told = replace(
            told,
            done=told.done + 1,
            answers=told.answers + 1,
            tokens=told.tokens + len(answer.answer),
            seconds=self.seconds,
        )

    def _questions(self) -> Iterator[_Question]:
        """Those that can be asked, until time is over or somebody stops it."""
        for prompt in self._left:
            if self._cancel is not None and self._cancel.cancelled:
                return
            if self._minutes is not None and self.seconds >= 60 * self._minutes:
                return
            ids = [] if prompt.sound else _ids(self._model, prompt, self._options)
            if ids is None:
                self.told = replace(self.told, skipped=self.told.skipped + 1)
                continue
            temperature, seed = _draw(prompt, self._options)
            yield _Question(prompt, ids, self._options.config(temperature, seed), seed)

    def one_by_one(self) -> Iterator[Answer]:
        """Answers with drafts."""
        session = self._model.session()  # prompts share the beginning of the chat template
        for question in self._questions():
            prompt = question.prompt
            heard = _heard(self._model, prompt.sound, prompt.start) if prompt.sound else None
            asked = question.ids if heard is None else heard
            result = self._model.generate(
                asked, question.config, session=session, cancel=self._cancel
            )
            if result.finish_reason == "cancelled":
                return
            self.told = replace(self.told, steps=self.told.steps + len(result.steps))
            yield _answer_of(question, result.token_ids, result.finish_reason)

    def together(self, batch: int) -> Iterator[Answer]:
        """Answers of several prompts at a time."""
        model = self._model
        eos_ids = model.tokenizer.eos_token_ids
        together = Together[_Question](model.backend, eos_ids, batch, self._cancel)
        try:
            for told in together.run(self._questions()):
                self.told = replace(self.told, steps=together.steps)
                yield _answer_of(told.asked, told.tokens, told.finish)
        except Cancelled:
            return


def _answer_of(question: _Question, tokens: Sequence[int], finish: str) -> Answer:
    """As it is written."""
    prompt, drawn = question.prompt, (question.config.temperature, question.seed)
    about = (str(prompt.sound.resolve()), prompt.start) if prompt.sound else ()
    return Answer(prompt.id, question.ids, tokens, *drawn, finish, *about)


def _heard(model: Model, path: Path, start: int) -> Source:
    """What an encoder reads of a window of sound."""
    reads = model.spec.source
    assert reads is not None  # looked at by windows_of  # noqa: S101
    with open_sound(path) as sound:
        samples = sound.read(start, reads.length * HOP)
    return Source(features=log_mel(samples, reads.length, reads.width))


def _ids(model: Model, prompt: Prompt, options: AnswerOptions) -> list[int] | None:
    """Token ids of a prompt; None where it cannot be asked: too long for the options or the model,
    or refused by the template. Which prompts these are is the same in every run."""
    reads = model.spec.source
    room = model.spec.context_length - options.max_new_tokens if reads is None else reads.length
    limit = min(options.max_prompt_tokens, room)
    try:
        if reads is not None:
            model.tokenizer.check_length(prompt.text, reads.length)
            ids = model.tokenizer.encode_source(prompt.text)
        elif options.raw or model.chat_template is None:
            ids = model.tokenize(prompt.text)
        else:
            ids = model.tokenize_chat([{"role": "user", "content": prompt.text}])
    except InputError:  # too long, or refused by the template
        return None
    return ids if 1 <= len(ids) <= limit else None


def _draw(prompt: Prompt, options: AnswerOptions) -> tuple[float, int]:
    """The temperature and the seed of an answer."""
    at = _number("temperature", options.seed, prompt.id) % len(options.temperatures)
    return options.temperatures[at], _number("answer", options.seed, prompt.id) >> 11


def _number(what: str, seed: int, name: str) -> int:
    """64 bits that depend on all three."""
    told = f"{what} {seed} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest())


def _rows(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as lines:
            for at, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = strict_json.loads(line, max_bytes=_MAX_LINE, max_depth=16)
                if not isinstance(row, dict):
                    raise InputError(f"{file}: line {at} is not an object with a prompt")
                yield at, row
    except strict_json.JsonProblem as problem:
        raise InputError(f"{file}: line {at} {problem}") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _prompt(file: Path, at: int, row: dict[str, Any]) -> Prompt:
    text = next((row[name] for name in FIELDS if isinstance(row.get(name), str)), "")
    sound = row.get("file")
    if not text.strip() and not isinstance(sound, str):
        raise InputError(f"{file}: line {at} has no text under {' or '.join(FIELDS)}")
    name = row.get("id", f"{file.name.partition('.')[0]}/{at}")
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise InputError(f"{file}: line {at} has the id {name!r}; it must be text or a number")
    if not text.strip():
        return Prompt(str(name), "", file.parent / str(sound))
    return Prompt(str(name), text)

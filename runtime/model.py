"""A loaded model: what `quickdraft.load` returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from quickdraft.device_profiles.curve import Curve
from quickdraft.errors import InputError, OptionError, TemplateError
from quickdraft.kvcache.memory import Memories
from quickdraft.manifest import Manifest
from quickdraft.runtime import clock
from quickdraft.runtime.answer import AnswerStream
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.beams.answer import BeamAnswer
from quickdraft.runtime.beams.constraints import AllowedTokens
from quickdraft.runtime.calibration import curve_for
from quickdraft.runtime.chat import ChatTemplate, Message, read_template
from quickdraft.runtime.conversation import Conversation
from quickdraft.runtime.devices import Placement
from quickdraft.runtime.draft_model import BundleOpener
from quickdraft.runtime.drafting import Drafting, DraftingSetup
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.heads import BackendHead, open_head
from quickdraft.runtime.judge import JudgeOfBundle
from quickdraft.runtime.model_defaults import not_followed
from quickdraft.runtime.model_memory import check_prefill
from quickdraft.runtime.prediction import Prediction, Prefill
from quickdraft.runtime.result import Chunk, Result
from quickdraft.runtime.session import Session
from quickdraft.runtime.sink import TextSink, drain
from quickdraft.runtime.sources import Prompt, Question, question_of
from quickdraft.runtime.text import Tokenizer
from quickdraft.types import Progress

__all__ = ["CancelToken", "Chunk", "Conversation", "Model", "Result", "Session", "TextSink"]

NO_STREAM = (
    "num_beams is {}, and beams decide their text at the end, so that there is nothing to stream; "
    "use generate or search without a callback, or one beam"
)


class Model:
    """A model, its tokenizer and its chat template, ready to answer.

    Thread-safe: conversations in several threads share one model, each with its own session.
    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None = None,
        *,
        drafting: Drafting | None = None,
        prediction: Prediction | None = None,
        name: str = "",
        degraded: str | None = None,
    ) -> None:
        """drafting: opened for this backend, and closed with the model; None decodes plainly.
        prediction: the same for predicted prefill; None has no predictor. degraded: why a
        better variant of the bundle does not run here, None if none would.

        not_followed: settings of the model's generation config that are not implemented."""
        self.backend = backend
        self.manifest = manifest
        # A backend of fixed shapes may hold less than the model could.
        self.spec = replace(manifest.model, context_length=backend.spec.context_length)
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.generation_config = GenerationConfig.from_defaults(manifest.generation)
        self.not_followed = not_followed(manifest.generation)
        self.name = name or manifest.source.name
        self.degraded = degraded
        self.memories = Memories()
        self.load_ms = 0.0
        self.curve: Curve | None = None
        self.placement: Placement | None = None
        self.open_bundle: BundleOpener | None = None
        self.open_head: Callable[[str], BackendHead] | None = None
        self.drafting_setup: DraftingSetup | None = None
        self.drafting = drafting or Drafting((), backend)
        self.prediction = prediction or Prediction(backend)
        self.judge = JudgeOfBundle(Path(), manifest, backend, None)  # `open` knows the folder

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        manifest: Manifest,
        backend: str = "auto",
        drafting: DraftingSetup | None = None,
        threads: int | None = None,
        kv_cache: str | None = None,
        name: str = "",
        progress: Progress | None = None,
    ) -> Model:
        """Load a verified bundle.

        backend: a name of the registry; "auto" takes hotpath where the bundle has that flavour,
        then onnxruntime for a portable ONNX variant, else the reference. drafting: which drafters
        work for it; None are all that need no model. kv_cache: how keys and values are stored, f32,
        f16 or int8; None leaves it to the backend. progress: told of measuring what a step costs,
        where that is not known yet.

        Raises:
            OptionError: an unknown backend or kv_cache, a bad number of threads, or a bad option of
                a drafter.
            BundleError, TokenizerError, TemplateError: a part of the bundle cannot be used.
            MissingExtra: the backend needs a package that is not installed.
        """
        started = time.perf_counter()
        if threads is not None and not 1 <= threads <= 1024:
            raise OptionError(f"threads is {threads}; it must be between 1 and 1024")
        entry = manifest.tokenizer
        tokenizer = Tokenizer.from_entry(folder, entry, manifest.model.vocab_size)
        template = None
        if entry.chat_template is not None and manifest.model.source is None:
            source = read_template(folder / entry.chat_template)
            template = ChatTemplate(source, entry.special_tokens)
        opened = open_backend(folder, manifest, backend, threads, kv_cache)
        try:
            model = cls(
                opened.backend,
                manifest,
                tokenizer,
                template,
                prediction=Prediction.of_bundle(folder, manifest, opened.backend, threads),
                name=name,
                degraded=opened.degraded,
            )
            model.judge = JudgeOfBundle(folder, manifest, model.backend, threads)
            setup = model.drafting_setup = drafting or DraftingSetup()
            model.open_bundle = setup.open_bundle
            model.open_head = partial(open_head, folder, manifest, model.backend, threads)
            if setup.names:
                model.curve = curve_for(model.backend, manifest, threads, progress=progress)
            model.drafting = model.open_drafting(setup)
        except BaseException:
            opened.backend.close()
            raise
        model.load_ms = 1e3 * (time.perf_counter() - started)
        return model

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Save what drafters keep, and release the model. Answers still running fail with
        BackendError."""
        with ExitStack() as stack:
            for part in (self.backend, self.prediction, self.judge, self.drafting):
                stack.callback(part.close)

    @property
    def drafter(self) -> str:
        """The names of its drafters, or none."""
        return ", ".join(self.drafting.names) or "none"

    def use_prefill(self, prefill: str) -> None:
        """Let answers prefill so where nothing else is said, and load now what that needs.

        Raises:
            OptionError: see GenerationConfig, or the bundle has no such predictor.
            DeviceError: there is no room for what it needs; the message has the figures.
            BackendError: what it needs cannot be loaded.
        """
        chosen = Prefill.parse(prefill)
        check_prefill(self, chosen)
        self.generation_config = self.generation_config.replace(prefill=prefill)
        self.prediction.prepare(chosen)

    def open_drafting(self, setup: DraftingSetup) -> Drafting:
        """Open other drafters for this model, to be closed by the caller; see `session`.

        Raises:
            OptionError: an option of a drafter is unknown or has a bad value.
            InputError: a draft model cannot be used for this one.
        """
        if setup.open_bundle is None:
            setup = replace(setup, open_bundle=self.open_bundle)
        if setup.open_head is None:
            setup = replace(setup, open_head=self.open_head)
        return Drafting.open(setup, self.backend, self.manifest, self.tokenizer, self.curve)

    def session(
        self, drafting: Drafting | None = None, memories: Memories | None = None
    ) -> Session:
        """A new conversation state: what is asked in it again is not computed again.

        drafting: other drafters of this model than its own. memories: of its own sources.
        """
        drafting = drafting or self.drafting
        return Session(self.backend, drafting, self.prediction, memories or self.memories)

    def conversation(self, system: str | None = None) -> Conversation:
        """A chat that remembers its turns and computes only what is new in each."""
        return Conversation(self, system)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, as `generate` would see it.

        special: whether the text of special tokens stands for them, or is plain text.
        """
        return self.tokenizer.encode(text, special=special, bos=self.tokenizer.add_bos)

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(token_ids, skip_special=skip_special)

    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        session: Session | None = None,
        cancel: CancelToken | None = None,
        callback: Any = None,
        opening: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Result:
        """Continue a prompt (text or token ids) and return the whole answer; an encoder-decoder
        model answers about it.

        config: defaults to the model's; overrides: single options by name. session: one of this
        model, reuses what it holds of the prompt. cancel: stops within one step, from any thread.
        callback: called with each piece of text, or an object with `put` and `end`. opening: token
        ids that the answer of an encoder-decoder model begins with; None leaves it to the model.

        Raises:
            OptionError: an option is unknown or has a bad value.
            ContextOverflow: the prompt does not fit the model.
            BackendError: the engine failed; the session stays usable.
        """
        started = clock.now()
        options = self._options(config, overrides)
        question = self._question(prompt, opening)
        return self._answer(question, options, session, cancel, callback, started)

    def search(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        session: Session | None = None,
        cancel: CancelToken | None = None,
        allowed_tokens: AllowedTokens | None = None,
        answer_prefix: str | Sequence[int] | None = None,
        opening: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Result:
        """Search for the best answers with beams; `generate` with num_beams above 1 does the same.

        allowed_tokens: which tokens may follow those of an answer: a TokenTrie or another function.
        answer_prefix: what answers begin with, text or token ids. Both also for a single beam.

        Raises as `generate`, and OptionError: nothing is left to answer.
        """
        started = clock.now()
        options = self._options(config, overrides)
        if isinstance(answer_prefix, str):
            answer_prefix = self.tokenizer.encode(answer_prefix, special=True, bos=False)
        asked = self._question(prompt, opening)
        answer = BeamAnswer(self, asked, options, cancel, allowed_tokens, answer_prefix)
        return answer.run(self._own(session), started)

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        session: Session | None = None,
        cancel: CancelToken | None = None,
        opening: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Iterator[Chunk]:
        """As `generate`, piece by piece; the last chunk holds the result.

        Options and prompt are checked at the call. Dropping the iterator ends the answer.
        """
        started = clock.now()
        question = self._question(prompt, opening)
        return self._stream(question, self._options(config, overrides), session, cancel, started)

    def chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        session: Session | None = None,
        cancel: CancelToken | None = None,
        callback: Any = None,
        **overrides: Any,
    ) -> Result:
        """Answer a list of messages ({"role", "content"}) through the model's chat template.

        Raises as `generate`, and TemplateError: there is no template, or it refuses the messages.
        """
        started = clock.now()
        options = self._options(config, overrides)
        question = Question(self.tokenize_chat(messages))
        return self._answer(question, options, session, cancel, callback, started)

    def stream_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        session: Session | None = None,
        cancel: CancelToken | None = None,
        **overrides: Any,
    ) -> Iterator[Chunk]:
        """As `chat`, piece by piece; the last chunk holds the result."""
        started = clock.now()
        question = Question(self.tokenize_chat(messages))
        return self._stream(question, self._options(config, overrides), session, cancel, started)

    def tokenize_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of messages, the opening of the answer included."""
        if self.chat_template is None or self.spec.source is not None:
            raise TemplateError(
                f"{self.name or 'this model'} has no chat template; use generate with a text"
            )
        return self.chat_template.encode(messages, self.tokenizer, self.spec.context_length)

    def _question(self, prompt: Prompt, opening: Sequence[int] | None) -> Question:
        generation = self.manifest.generation
        return question_of(prompt, opening, self.spec, self.tokenizer, generation)

    def check_options(self, overrides: Mapping[str, Any]) -> None:
        """Refuse options that no answer of this model can have.

        Raises:
            OptionError: an option is unknown or has a bad value, or names a token not there.
        """
        self._options(None, overrides)

    def _options(
        self, config: GenerationConfig | None, overrides: Mapping[str, Any]
    ) -> GenerationConfig:
        options = (config or self.generation_config).replace(**overrides)
        options.check_vocabulary(self.spec.vocab_size)
        return options

    def _own(self, session: Session | None) -> Session:
        session = session or self.session()
        if session.backend is not self.backend:
            raise InputError("the session is another model's; make one with this model's session()")
        return session

    def _answer(
        self,
        question: Question,
        options: GenerationConfig,
        session: Session | None,
        cancel: CancelToken | None,
        callback: Any,
        started: float,
    ) -> Result:
        if options.num_beams == 1:
            return drain(self._stream(question, options, session, cancel, started), callback)
        if callback is not None:
            raise OptionError(NO_STREAM.format(options.num_beams))
        answer = BeamAnswer(self, question, options, cancel)
        return answer.run(self._own(session), started)

    def _stream(
        self,
        question: Question,
        options: GenerationConfig,
        session: Session | None,
        cancel: CancelToken | None,
        started: float,
    ) -> Iterator[Chunk]:
        if options.num_beams > 1:
            raise OptionError(NO_STREAM.format(options.num_beams))
        prefill = Prefill.parse(options.prefill)
        if prefill.predicts:
            self.prediction.entry(prefill)
        return AnswerStream(self, question, options, started, cancel).run(self._own(session))

"""Chat templates: Jinja as transformers runs it, in a sandbox with a budget.

A template is a program from a stranger. The sandbox keeps it from reaching attributes; the meter
keeps it from running long: loops, calls and lookups are counted, and text that grows is measured.
What slips past a meter inside the process (`join` and `replace` of large texts), `check_template`
catches by a trial run in a child process with limits on time and memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial, wraps
from threading import local
from typing import Any, cast

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quickdraft.errors import TemplateError

MAX_TEMPLATE_BYTES = 256 << 10
MAX_OPERATIONS = 1_000_000
MAX_TEXT = 16 << 20
CHARACTERS_PER_OPERATION = 256
"""Building text costs operations too, so all text ever built is bounded (256 MiB)."""
MAX_WIDTH = 9_999
TRIAL_SECONDS = 2
TRIAL_BYTES = 512 << 20
TRIAL_PATIENCE = 20
"""Wall time for the child process, start included; the CPU limit is the real one."""


_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*:[^{}]*(\d{5}|\{)")


class _Refused(Exception):
    """raise_exception was called by the template."""


class _OverBudget(Exception):
    """The meter stopped the template."""


class _Meter(local):
    """What one rendering has used, per thread."""

    operations = 0

    def tick(self, operations: int = 1) -> None:
        self.operations += operations
        if self.operations > MAX_OPERATIONS:
            raise _OverBudget(f"it takes more than {MAX_OPERATIONS} operations")


class _Generation(Extension):
    """Lets `{% generation %}`, a mark for training, through."""

    tags = {"generation"}  # noqa: RUF012 - the name and type Jinja wants

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a meter."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.meter = _Meter()
        self.filters["tojson"] = _to_json
        self.filters["_metered"] = self._metered
        self.filters["_measured"] = self._measured
        for name in ("center", "indent", "wordwrap", "format", "batch", "slice", "truncate"):
            self.filters[name] = _narrow(self.filters[name])
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _through("_metered", loop.iter)
        _measure_joins(tree)
        return tree

    def _metered(self, items: Iterable[Any]) -> Iterable[Any]:
        if isinstance(items, (list, tuple, range, str, dict)):
            # Counting ahead keeps loop.length and friends what they are.
            self.meter.tick(len(items))
            return items
        return self._each(items)

    def _each(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.meter.tick()
            yield item

    def _measured(self, value: Any) -> Any:
        size = _size(value)
        _check_size(size)
        self.meter.tick(size // CHARACTERS_PER_OPERATION)
        return value

    def concat(self, pieces: Iterable[str]) -> str:  # what macros and set blocks join with
        text: str = self._measured("".join(pieces))
        return text

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.tick()
        if isinstance(getattr(function, "__self__", None), str):
            _check_width(*args, *kwargs.values())
        return self._measured(super().call(context, function, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.tick()
        if attribute in ("format", "format_map") and isinstance(obj, str):
            _check_format(obj)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.tick()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = _result_size(operator, left, right)
        _check_size(size)
        self.meter.tick(1 + size // CHARACTERS_PER_OPERATION)
        return super().call_binop(context, operator, left, right)


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _measure_joins(tree: nodes.Node) -> None:
    """Send every `a ~ b` and every captured block through the measure of its length."""
    for name, value in list(tree.iter_fields()):
        if isinstance(value, nodes.Concat):
            setattr(tree, name, _through("_measured", value))
            _measure_joins(value)
        elif isinstance(value, nodes.Node):
            _measure_joins(value)
        elif isinstance(value, list):
            for at, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _measure_joins(item)
                if isinstance(item, nodes.Concat):
                    value[at] = _through("_measured", item)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise _OverBudget(f"it builds a value of more than {MAX_TEXT} characters")


def _check_width(*values: Any) -> None:
    """Refuse widths that make text out of nothing."""
    if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in values):
        raise _OverBudget(f"it asks for a width of more than {MAX_WIDTH}")


def _check_format(form: str) -> None:
    """Refuse wide fields in a format, and fields whose width is itself an argument."""
    if _WIDE_FIELD.search(form):
        raise _OverBudget(f"it asks for a width of more than {MAX_WIDTH}, or for a computed one")


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes widths, with a limit on them."""

    @wraps(function)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        if function.__name__ == "do_format":
            _check_format(str(args[0]))
        else:
            _check_width(*args, *kwargs.values())
        return function(*args, **kwargs)

    return narrow


def _result_size(operator: str, left: Any, right: Any) -> int:
    """An upper bound of what an operation builds: characters, list items, or bits."""
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "*":
        if isinstance(left, int) and isinstance(right, int):
            return left.bit_length() + right.bit_length()
        numbers = [n for n in (left, right) if isinstance(n, int)]
        return max(_size(left), _size(right)) * max(numbers, default=1)
    if operator == "**":
        whole = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * max(right, 0) if whole else 0
    if isinstance(left, str):
        _check_format(left)
    return 0


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _check_bytes(source: str) -> None:
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > MAX_TEMPLATE_BYTES:
        raise TemplateError(
            f"the chat template has {size} bytes; at most {MAX_TEMPLATE_BYTES} are read"
        )


def compile_template(source: str) -> Callable[..., str]:
    """A function that renders `source`: keyword arguments and `max_characters` in, text out.

    Raises (here and when called):
        TemplateError: the template is too large, malformed, refuses its input, or is over budget.
    """
    _check_bytes(source)
    environment = _Environment()
    template = _guarded(environment.from_string, source)

    def render(max_characters: int = MAX_TEXT, **values: Any) -> str:
        environment.meter.operations = 0
        pieces: Iterator[str] = template.generate(**values)
        text: str = _guarded(_join, pieces, max_characters)
        return text

    return render


def _join(pieces: Iterator[str], limit: int) -> str:
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > limit:
            raise _OverBudget(f"it makes a text of more than {limit} characters")
    return "".join(parts)


def _guarded(work: Callable[..., Any], *args: Any) -> Any:
    """Run template code; whatever it raises becomes a TemplateError."""
    try:
        return work(*args)
    except _Refused as error:
        raise TemplateError(f"the chat template refuses the messages: {error}") from None
    except _OverBudget as error:
        raise TemplateError(f"the chat template was stopped: {error}") from None
    except RecursionError:
        raise TemplateError("the chat template was stopped: it nests too deeply") from None
    except MemoryError:
        raise TemplateError("the chat template was stopped: it needs too much memory") from None
    except JinjaError as error:
        raise TemplateError(f"the chat template failed: {error}") from error
    except Exception as error:
        # A template is a program: it can raise anything Python can (a division by zero, ...).
        kind = type(error).__name__
        raise TemplateError(f"the chat template failed: {kind}: {error}") from error


TRIAL_MESSAGES: Sequence[Mapping[str, str]] = (
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello! How can I help?"},
    {"role": "user", "content": "Tell me a story."},
)


def check_template(source: str, special_tokens: Mapping[str, str] | None = None) -> None:
    """Render a short conversation in a child process with limits on time and memory.

    For templates from outside, once, when a bundle is made. On systems without resource limits only
    the wall time is bounded.

    Raises:
        TemplateError: the template is malformed, fails, or exceeds a limit.
    """
    _check_bytes(source)
    work = json.dumps({"source": source, "special_tokens": dict(special_tokens or {})})
    # -P: a file in the current folder must not stand in for a module.
    program = "from quickdraft.runtime.templates import trial; trial()"
    command = [sys.executable, "-P", "-c", program]
    try:
        done = subprocess.run(
            command, input=work.encode(), capture_output=True, timeout=TRIAL_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(
            f"the chat template was stopped: it runs for more than {TRIAL_SECONDS} s"
        ) from None
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()[:500]
        limits = f"{TRIAL_SECONDS} s or {TRIAL_BYTES >> 20} MiB"
        raise TemplateError(said or f"the chat template was stopped: it takes more than {limits}")


def trial() -> None:
    """The child process of `check_template`: job on standard input, complaint on output."""
    job = json.load(sys.stdin)
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent's timeout remains
        pass
    else:
        resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_SECONDS, TRIAL_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (TRIAL_BYTES, TRIAL_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        render = partial(compile_template(job["source"]), **job["special_tokens"])
        for messages in (TRIAL_MESSAGES[:1], TRIAL_MESSAGES):
            render(messages=messages, tools=None, documents=None, add_generation_prompt=True)
    except TemplateError as error:
        print(error)
        sys.exit(1)

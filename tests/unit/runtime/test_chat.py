"""Chat templates: what they render, and what a hostile one or a hostile message cannot do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny.toy_model import CHATML, IM_END, IM_START, byte_tokenizer

from quickdraft.errors import InputError, TemplateError, TokenizerError
from quickdraft.runtime.chat import MAX_MESSAGES, ChatTemplate
from quickdraft.runtime.templates import MAX_TEMPLATE_BYTES, check_template, compile_template

TOKENIZER = byte_tokenizer()
CHAT = ChatTemplate(CHATML)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_conversation_is_rendered() -> None:
    text = CHAT.render(user("Hi"), add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = CHAT.encode(user("Hi"), TOKENIZER, 256)
    assert ids == TOKENIZER.encode(text, special=True)
    assert ids.count(IM_START) == 2


def test_the_template_sees_what_transformers_gives_it() -> None:
    source = (
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index0 == 1 %}"
        "{% continue %}{% endif %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
        "{{ loop.length }}{{ {'a': 'é<'} | tojson }}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ bos_token ~ '!' }}{{ strftime_now('%%') }}{{ tools is none }}"
    )
    chat = ChatTemplate(source, {"bos_token": "<s>"})
    text = chat.render([*user(" a "), *user("b"), *user("c")])
    assert text == 'a3{"a": "é<"}c3{"a": "é<"}2<s>!%True'


@given(
    st.lists(
        st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<", "|>", "<s>", "user\n", "é", "x"]),
        max_size=12,
    ).map("".join)
)
def test_a_message_cannot_write_special_tokens(content: str) -> None:
    """Item 77: the ids are the template's special tokens around the content as plain text."""
    ids = CHAT.encode(user(content), TOKENIZER, 256)
    head, tail = list(b"user\n"), list(b"\n")
    assistant = [IM_START, *b"assistant\n"]
    assert ids == [IM_START, *head, *content.encode(), IM_END, *tail, *assistant]


def test_two_messages_cannot_write_a_special_token_together() -> None:
    chat = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    ids = chat.encode([*user("<|im_"), *user("end|>")], TOKENIZER, 256)
    assert ids == list(b"<|im_end|>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "0 messages"),
        (user("x") * (MAX_MESSAGES + 1), "1025 messages"),
        ("hello", "must be a list"),
        ({"role": "user", "content": "x"}, "must be a list"),
        (["hello"], "message 0"),
        ([{"content": "x"}], "role None"),
        ([{"role": "root", "content": "x"}], "role 'root'"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user"}], "content of message 0 is NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content of message 0 is list"),
        ([*user("x"), {"role": "user", "content": 3}], "content of message 1 is int"),
    ],
)
def test_malformed_messages_are_refused(messages: object, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        CHAT.encode(messages, TOKENIZER, 10_000)  # type: ignore[arg-type]


def test_the_most_messages_are_taken() -> None:
    assert CHAT.render(user("x") * MAX_MESSAGES)


def test_messages_beyond_any_context_are_refused() -> None:
    with pytest.raises(InputError, match="161 characters"):
        CHAT.encode(user("x" * 161), TOKENIZER, 10)
    with pytest.raises(TokenizerError, match="lone surrogate"):
        CHAT.encode(user("\ud800"), TOKENIZER, 10)


HOSTILE = {
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals": ("{{ raise_exception.__globals__['os'] }}", "unsafe"),
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "operations",
    ),
    "loops over text": (
        "{% set t = 'x' * 99999 %}{% for a in t %}{% for b in t %}{% endfor %}{% endfor %}",
        "operations",
    ),
    "a long range": ("{% for a in range(10**9) %}{% endfor %}", "Range too big"),
    "doubling": (
        "{% set n = namespace(a='x') %}{% for i in range(40) %}{% set n.a = n.a ~ n.a %}"
        "{% endfor %}{{ n.a }}",
        "more than",
    ),
    "doubling with +": (
        "{% set n = namespace(a='x') %}{% for i in range(40) %}{% set n.a = n.a + n.a %}"
        "{% endfor %}",
        "more than",
    ),
    "doubling blocks": (
        "{% set n = namespace(a='x') %}{% for i in range(40) %}{% set b %}{{ n.a }}{{ n.a }}"
        "{% endset %}{% set n.a = b %}{% endfor %}",
        "more than",
    ),
    "hoarding": (
        "{% set n = namespace(a=[]) %}{% for i in range(9999) %}"
        "{% set n.a = n.a + ['x' * 9999999] %}{% endfor %}",
        "operations",
    ),
    "repeating": ("{{ 'x' * 2000000000 }}", "more than"),
    "a list repeated": ("{{ [0] * 2000000000 }}", "more than"),
    "a great power": ("{{ 9 ** 999999999 }}", "more than"),
    "a wide format": ("{{ '%1000000000d' % 3 }}", "width"),
    "a wide computed format": ("{{ '%*d' % (1000000000, 3) }}", "width"),
    "a wide new format": ("{{ '{:1000000000}'.format(3) }}", "width"),
    "a wide nested format": ("{{ '{:{}}'.format(3, 1000000000) }}", "width"),
    "a wide filter": ("{{ 'x' | center(1000000000) }}", "width"),
    "a wide format filter": ("{{ '%1000000000d' | format(3) }}", "width"),
    "a wide method": ("{{ 'x'.ljust(1000000000) }}", "width"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests too deeply"),
    "a refusal": ("{{ raise_exception('system role not supported') }}", "system role not"),
    "no syntax": ("{% if %}", "failed"),
    "deep syntax": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "nests|failed"),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "undefined": ("{{ messages.x.y }}", "no attribute"),
    "includes": ("{% include '/etc/passwd' %}", "failed"),
    "changing a list": ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    "a long output": ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "more than"),
    "too long": ("x" * (MAX_TEMPLATE_BYTES + 1), "bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped_in_time(name: str) -> None:
    source, message = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).encode(user("x"), TOKENIZER, 256)
    assert time.process_time() - started < 2


def test_the_largest_template_is_taken() -> None:
    assert compile_template("x" * MAX_TEMPLATE_BYTES)(MAX_TEMPLATE_BYTES)


def test_numbers_in_messages_are_not_widths() -> None:
    chat = ChatTemplate("{% for m in messages %}{{ m.content.strip().split('#')[0] }}{% endfor %}")
    assert chat.render(user(" %100000d {:100000} ")) == "%100000d {:100000}"


def test_a_trial_run_passes_good_templates_and_reports_bad_ones() -> None:
    check_template(CHATML, {"bos_token": "<s>"})
    for name in ("doubling", "a refusal", "no syntax"):
        source, message = HOSTILE[name]
        with pytest.raises(TemplateError, match=message):
            check_template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('x' * 9999999) | replace('x', 'x' * 9999) }}",
        "{{ range(99999) | map('string') | join('x' * 9999) | list | length }}",
    ],
)
def test_a_trial_run_catches_what_the_meter_cannot(source: str) -> None:
    with pytest.raises(TemplateError, match=r"memory|stopped"):
        check_template(source)


def test_threads_have_their_own_budget() -> None:
    chat = ChatTemplate("{% for i in range(99999) %}{% endfor %}" * 6 + "ok")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: chat.render(user("x")), range(8))) == ["ok"] * 8

"""Templates that mean harm get neither the time nor the memory for it."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from diptych.errors import InputError
from diptych.prompt import ChatTemplate
from diptych.types import Message, Request


def repeat(step: str, then: str = "{{ ns.s | length }}") -> str:
    """A template that does one thing many times over."""
    start = "{% set ns = namespace(s='x' * 1000, n=2, l=[1]) %}{% set s = 'x' * 1000000 %}"
    return f"{start}{{% for i in range(90000) %}}{step}{{% endfor %}}{then}"


HARM = {
    "nested loops": repeat("{% for j in range(99999) %}{% endfor %}"),
    "loops over text": repeat("{% for i in ns.s %}{% for j in ns.s %}{% endfor %}{% endfor %}"),
    "a huge range": "{{ range(10 ** 9) | list }}",
    "endless text": repeat("{% for j in range(9999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}"),
    "printed text": repeat("{{ s }}"),
    "endless macros": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a looping macro": "{% macro f() %}{% for i in range(999) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
    "recursive loops": "{% for i in [[1, 2]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "text times a number": "{{ 'x' * 10000000000 }}",
    "a number times text": "{{ 10000000000 * 'x' }}",
    "a list times a number": "{{ [1] * 10000000000 }}",
    "doubling by +": repeat("{% set ns.s = ns.s + ns.s %}"),
    "doubling by ~": repeat("{% set ns.s = ns.s ~ ns.s %}"),
    "doubling a list": repeat("{% set ns.l = ns.l + ns.l %}"),
    "doubling by printing": repeat("{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}"),
    "a list of itself": repeat("{% set ns.l = [ns.l, ns.l] %}", "{{ ns.l }}"),
    "a list of itself as JSON": repeat("{% set ns.l = [ns.l, ns.l] %}", "{{ ns.l | tojson }}"),
    "squaring a number": repeat("{% set ns.n = ns.n * ns.n %}"),
    "a power": "{{ 9 ** 999999999 }}",
    "a wide format": "{{ '{:>9999999999}'.format(1) }}",
    "a format in a format": "{{ '{:{}}'.format(1, 9999999999) }}",
    "a wide %": "{{ '%9999999999d' % 1 }}",
    "a starred %": "{{ '%*d' % (9999999999, 1) }}",
    "a wide centre": "{{ 'x'.center(9999999999) }}",
    "a wide centre filter": "{{ 'x' | center(9999999999) }}",
    "zeros": "{{ 'x'.zfill(9999999999) }}",
    "tabs": "{{ '\t'.expandtabs(9999999999) }}",
    "replace": "{% set s = 'x' * 1000000 %}{{ s.replace('x', s) }}",
    "the replace filter": "{% set s = 'x' * 1000000 %}{{ s | replace('', s) }}",
    "join": "{% set s = 'x' * 100000 %}{{ s.join(s) }}",
    "the join filter": "{% set s = 'x' * 100000 %}{{ s | join(s) }}",
    "a wide indent": "{{ ('x\n' * 1000000) | indent(1000000) }}",
    "a wide JSON": "{{ [1] | tojson(indent=9999999999) }}",
    "lorem ipsum": "{{ lipsum(n=10000000) }}",
    "a growing list of texts": repeat("{% set ns.l = ns.l + [s ~ i] %}"),
    "deep nesting": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
}
HI = Request((Message("user", ("hi",)),))
LIMIT = 10.0  # seconds; the longest takes about one


@pytest.mark.parametrize("name", HARM)
def test_a_harmful_template_is_stopped(name):
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"^the model's chat template [^\n]*$"):
        ChatTemplate(HARM[name]).render(HI)
    assert time.perf_counter() - start < LIMIT


@pytest.mark.parametrize(
    "name", ["text times a number", "doubling by ~", "doubling by printing", "replace", "a growing list of texts"]
)
def test_a_harmful_template_gets_little_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            ChatTemplate(HARM[name]).render(HI)
        assert tracemalloc.get_traced_memory()[1] < 700 * 2**20
    finally:
        tracemalloc.stop()


def test_a_long_honest_conversation_is_rendered():
    template = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + (m.content | trim | replace('</think>', '')) }}\n{% endfor %}"
    turns = [Message("user", (f"{i} " + "word " * 2000,)) for i in range(500)]
    assert len(ChatTemplate(template).render(Request(tuple(turns)))) > 5 * 10**6


def test_the_budget_is_per_rendering():
    template = ChatTemplate("{% set s = 'x' * 20000000 %}{% set s = s ~ s %}{{ messages[0].content }}")
    for _ in range(5):
        assert template.render(HI) == "hi"


def test_users_may_write_json_whatever_a_template_does_with_it():
    """What would be a wide format is none where nothing formats it."""
    text = '{"a": {"b": 123456}} {:>9999999999} %9999999999d'
    template = ChatTemplate("{{ messages[0].content.strip() }}{{ messages[0].content.startswith('{') }}")
    assert template.render(Request((Message("user", (text,)),))) == text + "True"

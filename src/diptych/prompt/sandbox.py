"""Jinja as chat templates expect it, sandboxed and metered: a template comes with a model's file, from anywhere.

Every loop turn, call, operator and printed value is paid for from the budget of one rendering, in characters made, so
that neither nested loops nor doubling strings get far. What multiplies in one step is priced before it runs, or absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

BUDGET = 2**27  # characters; a second or two of work, and far above any context's worth of text
_STEP = 128  # what a loop turn or call costs in characters
_MAX_BITS = 2**14  # of a whole number
_WORK = "work of this rendering"  # no name a template can spell
FUNCTIONS = ("range", "dict", "cycler", "joiner", "namespace", "raise_exception", "strftime_now")  # that a template can call
_ABSENT_FILTERS = ("batch", "center", "filesizeformat", "format", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr")
_ABSENT_METHODS = ("expandtabs", "translate")
_WIDTH_METHODS = ("center", "ljust", "rjust", "zfill")
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})")
_WIDE_FORMAT = re.compile(r"\{[^{}]*:[^{}]*(\d{5}|\{)")


def compile(source: str) -> jinja2.Template:
    """A template as transformers compiles it. Raises jinja2's errors, RecursionError among them."""
    environment = _Sandbox()
    tree = environment.parse(source)
    return environment.from_string(_Metering().visit(tree))


def render(template: jinja2.Template, variables: Mapping[str, object]) -> str:
    """The text a template makes. Raises whatever the template runs into, TemplateError when it works too much."""
    return "".join(template.root_render_func(template.new_context({**variables, _WORK: Work(BUDGET)})))


class Work:
    """What is left to spend of one rendering's budget."""

    def __init__(self, left: int) -> None:
        self._left = left

    def spend(self, n: int) -> None:
        """Pay for `n` characters. Raises TemplateError when the budget is used up."""
        self._left -= n
        if self._left < 0:
            raise jinja2.TemplateError(f"it works without end, or makes over {BUDGET:,} characters")

    def spend_on(self, value: object) -> None:
        """Pay for a value's text. A list may hold itself many times over, and every time counts."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            self.spend(len(item) if isinstance(item, str) else _STEP)
            if isinstance(item, Mapping):
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple)):
                waiting += item


def _work(context: Context) -> Work:
    work = context.parent[_WORK]
    assert isinstance(work, Work)
    return work


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is just printed."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Metering(NodeTransformer):
    """Puts a payment into every loop, and makes every `~` an operation that is paid for."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's naming
        self.generic_visit(node)
        payment = nodes.Filter(nodes.Const(None), "_step", [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2's naming
        self.generic_visit(node)
        return nodes.Filter(node.nodes[0], "_concatenated", node.nodes[1:], [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_printed,
            optimized=False,  # nothing is computed before there is a budget
        )
        for name in _ABSENT_FILTERS:
            del self.filters[name]
        self.filters.update(replace=_replace, join=_join, indent=_indent, tojson=_tojson)
        self.filters.update(_step=_step, _concatenated=_concatenated)
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - a template's values
        """Every call a template makes; methods that multiply are priced first."""
        _work(context).spend(_STEP)
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            if name in _ABSENT_METHODS:
                raise jinja2.TemplateError(f"str.{name} is not available to chat templates")
            if name in _WIDTH_METHODS:
                _work(context).spend(int(args[0]) if args else 0)
            if name == "replace":
                given = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # jinja's own
                return _replace(context, owner, *args, **given)
            if name == "join":
                return _join(context, args[0], owner)
        result = super().call(context, function, *args, **kwargs)
        if isinstance(result, (str, list, tuple)):
            _work(context).spend(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - a template's values
        """The operators that can make something large out of something small."""
        _work(context).spend(_price(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ANN401 - a template's values
        """`str.format`, without widths that fill the memory."""
        formats = getattr(value, "__name__", "") in ("format", "format_map")  # asked of every attribute that is read
        if formats and isinstance(owner := getattr(value, "__self__", None), str) and _WIDE_FORMAT.search(owner):
            raise jinja2.TemplateError("a format asks for too many digits")
        return super().wrap_str_format(value)


def _price(operation: str, left: Any, right: Any) -> int:  # noqa: ANN401 - a template's values
    """How many characters an operator will make, about."""
    sized = (str, list, tuple)
    if operation == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
        raise jinja2.TemplateError("a format asks for too many digits")
    if operation == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, sized) and isinstance(times, int):
                return len(value) * max(times, 0)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operation == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_BITS:
            raise jinja2.TemplateError("a number grows too large")
    return sum(len(value) for value in (left, right) if isinstance(value, sized))


@jinja2.pass_context
def _step(context: Context, _: None) -> None:
    """A turn of a loop."""
    _work(context).spend(_STEP)


@jinja2.pass_context
def _concatenated(context: Context, *values: object) -> str:
    """The operator `~`."""
    for value in values:
        _work(context).spend_on(value)
    return "".join(map(str, values))


@jinja2.pass_context
def _printed(context: Context, value: object) -> object:
    _work(context).spend_on(value)
    return value


@jinja2.pass_context
def _replace(context: Context, value: object, old: object, new: object, count: int | None = None) -> str:
    text, old, new = str(value), str(old), str(new)
    _work(context).spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_context
def _join(context: Context, value: Iterable[object], d: object = "", attribute: str | int | None = None) -> str:
    attribute_of = None if attribute is None else filters.make_attrgetter(context.environment, attribute)
    items = [attribute_of(item) if attribute_of else item for item in value]
    _work(context).spend_on(items)
    _work(context).spend(len(str(d)) * len(items))
    return str(d).join(map(str, items))


@jinja2.pass_context
def _indent(context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _work(context).spend(len(s) + (s.count("\n") + 2) * (len(width) if isinstance(width, str) else width))
    return filters.do_indent(s, width, first, blank)


@jinja2.pass_context
def _tojson(
    context: Context,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, not Jinja's own, which is escaped for HTML."""
    _work(context).spend_on(value)
    if indent is not None and indent > 16:
        raise jinja2.TemplateError(f"tojson is asked for an indent of {indent}, and 16 is the most")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401 - a template's values
    """A function, so that the class and its attributes are out of reach."""
    return dict(*args, **kwargs)

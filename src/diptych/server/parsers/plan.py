"""What tools and reasoning ask of a request, and of what reads its answer: one plan for every route."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from diptych.errors import InputError
from diptych.llama import schema
from diptych.llama.schema import literal
from diptych.prompt import ChatTemplate
from diptych.server.parsers import described, formats, thinking
from diptych.server.parsers.call import Format
from diptych.server.parsers.grammar import GAP, Rules
from diptych.server.parsers.hermes import Hermes
from diptych.server.parsers.parser import Parser
from diptych.server.parsers.thinking import ReasoningFormat, Thinking
from diptych.server.parsers.tool import Choice, Tool, chosen
from diptych.types import Json, Request, Sampling

_MOST_NAMES, _MOST_NAME_CHARACTERS = 8, 200  # in triggers, of which there can be 32 with 1000 characters and gaps
_REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")


@dataclass(frozen=True)
class Plan:
    """The request as the engine is to have it, and what reads its answers.

    `tags` are the texts that a parser looks for; where one is a special token of the vocabulary, it must be part of the
    answer's text.
    """

    request: Request
    tags: tuple[str, ...]
    thinking: Thinking
    reasoning: ReasoningFormat
    form: Format | None
    choice: Choice

    def parser(self) -> Parser:
        """A parser for one answer; each choice of `n` has its own."""
        return Parser(self.thinking, self.reasoning, self.form, self.choice.tools)


def plan(
    template: ChatTemplate, request: Request, choice: Json = None, parallel: bool = True, reasoning: ReasoningFormat = "auto"
) -> Plan:
    """Plan a chat request whose `tools` are those of the client, `choice` its tool_choice in OpenAI's form.

    With tools the answer is held to well-formed calls: from the first one on where the model may call, at once where it
    must. A grammar or schema of the client's own holds behind the reasoning. Raises InputError for tools or a choice
    that cannot be, GrammarError for arguments that cannot be kept to where a call is required, and what the template
    refuses.
    """
    if reasoning not in _REASONING_FORMATS:
        raise InputError(f"reasoning_format is {reasoning!r:.40}; it must be one of {', '.join(_REASONING_FORMATS)}")
    tools = chosen(request.tools, choice)
    constrained = request.sampling.grammar is not None or request.sampling.json_schema is not None
    if tools.tools and constrained:
        raise InputError("both tools and a grammar or JSON schema were given; leave one out, or set tool_choice to none")
    form = formats.of_template(template.source)
    offered = replace(request, tools=tuple(t for t in request.tools if tools.mode != "none"))
    if form is None:
        form, offered = Hermes(), _told(template, offered)
    mind = thinking.of_template(template.source, template.opening(offered))
    sampling = _constrained(request.sampling, mind) if constrained else request.sampling
    if tools.tools:
        sampling = _calling(request.sampling, tools, form, mind, parallel)
    tags = (*(form.tags if tools.tools else ()), mind.open, mind.close, *mind.blocks, *mind.markup)
    offered = replace(offered, sampling=sampling, special_texts=tags)
    return Plan(offered, tags, mind, reasoning, form if tools.tools else None, tools)


def _told(template: ChatTemplate, request: Request) -> Request:
    """The request with its tools, calls and results in text."""
    told = replace(request, messages=described.told(request.messages, request.tools), tools=())
    try:
        template.render(told)
    except InputError:  # as templates do that take no system's messages
        return replace(told, messages=described.told(request.messages, request.tools, by_system=False))
    return told


def _calling(sampling: Sampling, choice: Choice, form: Format, mind: Thinking, parallel: bool) -> Sampling:
    rules = Rules(strict=choice.mode == "required")
    rest = form.rest(rules, choice.tools, parallel)
    opener = literal(form.openers[0])
    first = rules.made(f"{opener}{'?' if form.begins_answer else ''} {rest}")
    if choice.mode == "required":
        return replace(sampling, grammar=rules.text(_behind_reasoning(rules, mind, first)), grammar_triggers=())
    if form.begins_answer:
        return replace(sampling, grammar=rules.text(first), grammar_triggers=_object_of(choice.tools, form.openers[0]))
    if mind.settled or not (mind.known or mind.opened):
        return replace(sampling, grammar=rules.text(first), grammar_triggers=(re.escape(form.openers[0]),))
    prose = rules.without([form.openers[0]], [rest])
    other = () if mind.opened else (_no_reasoning(mind.open),)
    return replace(sampling, grammar=rules.text(prose), grammar_triggers=(re.escape(mind.close), *other))


def _constrained(sampling: Sampling, mind: Thinking) -> Sampling:
    """The client's own grammar, behind the reasoning where there may be some."""
    if mind.settled or not (mind.known or mind.opened) or sampling.grammar_triggers:
        return sampling
    given = sampling.grammar if sampling.json_schema is None else schema.to_gbnf(sampling.json_schema)
    rules = Rules(strict=True)
    root = _behind_reasoning(rules, mind, rules.whole(given or ""))
    return replace(sampling, json_schema=None, grammar=rules.text(root))


def _behind_reasoning(rules: Rules, mind: Thinking, then: str) -> str:
    """GBNF for what follows where the reasoning ends, if there is any."""
    behind = rules.made(f"{GAP} {then}")
    if mind.settled or not (mind.known or mind.opened):
        return behind
    reasoning = rules.without([mind.close], [behind], may_end=False)
    return reasoning if mind.opened else f"{GAP} {literal(mind.open)} {reasoning} | {behind}"


def _object_of(tools: Sequence[Tool], opener: str) -> tuple[str, ...]:
    """Regular expressions for the start of an answer that calls one of the tools; other objects may have a name too."""
    begun = rf'\A{GAP}\{{{GAP}"name"{GAP}:{GAP}"'
    if len(tools) > _MOST_NAMES or sum(len(tool.name) for tool in tools) > _MOST_NAME_CHARACTERS:
        return begun, re.escape(opener)
    return (*(f'{begun}{re.escape(tool.name)}"' for tool in tools), re.escape(opener))


def _no_reasoning(tag: str) -> str:
    """A regular expression for the start of an answer that cannot become this tag any more."""
    ways = [rf"[^{re.escape(tag[0])}\s]", *(f"{re.escape(tag[:n])}[^{re.escape(tag[n])}]" for n in range(1, len(tag)))]
    return rf"\A\s*(?:{'|'.join(ways)})"

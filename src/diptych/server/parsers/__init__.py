"""Tools and reasoning: what they ask of a request, and the text of an answer → reasoning, content and calls.

`plan` is the way in for every route: it changes the request, and makes parsers that turn text into deltas as it comes.
A format of calls is a file: how it is read, and the grammar that holds a model to it.
"""

from diptych.server.parsers.delta import CallArguments, CallStart, Content, Delta, Reasoning, Said, joined, said
from diptych.server.parsers.parser import Parser
from diptych.server.parsers.plan import Plan, plan

__all__ = ["CallArguments", "CallStart", "Content", "Delta", "Parser", "Plan", "Reasoning", "Said", "joined", "plan", "said"]

"""Which format of calls a model writes, found from the source of its chat template."""

from __future__ import annotations

import re
from collections.abc import Callable

from diptych.server.parsers.bare import Bare
from diptych.server.parsers.call import Format
from diptych.server.parsers.deepseek import DeepSeek
from diptych.server.parsers.hermes import Hermes
from diptych.server.parsers.mistral import Mistral
from diptych.server.parsers.tagged import KEYS, XML

_TOOLS = re.compile(r"\btools\b")
_FORMATS: tuple[tuple[str, Callable[[str], Format]], ...] = (  # what all stands in a template of that format
    (r"\[TOOL_CALLS\]", lambda source: Mistral(named="[ARGS]" in source, with_id="[CALL_ID]" in source)),
    (r"<｜tool▁calls▁begin｜>", lambda source: DeepSeek(fenced="```json" in source)),
    (r"<tool_call>(?s:.*)<parameter=", lambda source: XML),
    (r"<tool_call>(?s:.*)<arg_key>", lambda source: KEYS),
    (r"<tool_call>[^<]{0,40}\{\W{0,4}name", lambda source: Hermes()),
    (r'ipython(?s:.*)"parameters": ', lambda source: Bare()),
)


def of_template(source: str) -> Format | None:
    """The format that a template describes and writes; None where it knows no tools, or writes calls in another way."""
    if not _TOOLS.search(source):
        return None
    return next((make(source) for pattern, make in _FORMATS if re.search(pattern, source)), None)

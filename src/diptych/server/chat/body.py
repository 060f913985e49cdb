"""The body of a chat request in the form of OpenAI's chat completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from diptych.errors import InputError
from diptych.server.asking import parts
from diptych.server.asking.conversation import Conversation
from diptych.server.asking.fields import MAX_TURNS
from diptych.server.asking.openai import ResponseFormat, StreamOptions
from diptych.types import Message


class ChatBody(Conversation):
    """A conversation to go on with."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_TURNS)]
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat = ResponseFormat()
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=100)] = None
    n_probs: Annotated[int | None, Field(ge=0, le=100)] = None

    def turns(self) -> tuple[Message, ...]:
        return parts.messages(self.messages)

    def answer_schema(self) -> str | None:
        return self.response_format.schema_text()

    def n_logprobs(self) -> int | None:
        """How many likeliest tokens to tell; llama-server's number where a client only asks for logprobs."""
        if self.logprobs:
            return 20 if self.top_logprobs is None else self.top_logprobs
        if self.top_logprobs is not None:
            raise InputError("top_logprobs needs logprobs to be true")
        return self.n_probs

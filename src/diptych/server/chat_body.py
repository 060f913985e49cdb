"""The body of a chat request in the form of OpenAI's chat completions."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diptych.errors import InputError
from diptych.server import parts
from diptych.server.conversation import Conversation
from diptych.server.fields import MAX_TURNS
from diptych.types import Message


class StreamOptions(BaseModel):
    include_usage: bool = False


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`; `schema` beside `json_object` is llama-server's."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    def schema_text(self) -> str | None:
        """The JSON schema that is asked for; None where it is none. Raises InputError where it is missing."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return json.dumps(self.schema_ if self.schema_ is not None else {"type": "object"})
        schema = (self.json_schema or {}).get("schema", self.schema_)
        if schema is None:
            raise InputError("response_format is json_schema and has no json_schema.schema; give one, or use json_object")
        return json.dumps(schema)


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

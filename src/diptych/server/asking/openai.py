"""What several of OpenAI's APIs have in their bodies."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diptych.errors import InputError


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

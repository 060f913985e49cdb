"""Why tests of llama.cpp do not pass, in words for users, by patterns of their names."""

from __future__ import annotations

_BY_NAME = (
    "of llama.cpp's templates by name only `chatml` is here; another name is refused, and `--chat-template-file` takes Jinja"
)
_NO_PICTURES = "a picture for a model that takes none is 415, a fault of the request; the test wants 500"

REASONS = {
    "test_chat_completion.py::test_chat_template": _BY_NAME,
    "test_chat_completion.py::test_apply_chat_template": _BY_NAME,
    "test_chat_completion.py::test_chat_template_assistant_prefill*": (
        "texts of one message are joined by one newline, also in the message that the answer continues; llama-server takes two "
        "there"
    ),
    "test_compat_anthropic.py::*image*": _NO_PICTURES,
    "test_compat_anthropic.py::*vision_format*": _NO_PICTURES,
    "test_compat_anthropic.py::test_anthropic_empty_messages": "no messages at all is 400, as in Anthropic's own API",
    "test_compat_oai_responses.py::*telemetry": (
        "an answer that ends at `max_output_tokens` ends with `response.incomplete`, as in OpenAI's own API; the test wants "
        "`response.completed`"
    ),
    "test_security.py::test_access_static_assets*": "the page has other files, below `/page/`; those are open as well",
    "test_security.py::test_cors_options*Credentials*": "where every origin may call, none may bring the user's cookies",
    "test_security.py::test_cors_options*Headers*": "the headers that the browser asked for are allowed by name, not `*`",
    "test_security.py::test_cors_origins_localhost_rejects*": (
        "a page of an origin that may not call gets 403 with a reason; llama-server says 200 and leaves it to the browser"
    ),
    "test_security.py::test_cors_origins_defaults*": "no tools run in the server, so nothing changes with `--tools`",
    "test_security.py::test_cors_proxy*": "the server fetches nothing for pages",
    "test_slot_save.py::test_slot_restore_legacy_token_list": (
        "files of slots are Diptych's own, with a hash of all that is in them; those of llama-server are refused"
    ),
    "test_template.py::test_reasoning*auto*": (
        "`--reasoning auto` sets no variable and leaves it to the template, as transformers does; llama-server sets "
        "`enable_thinking`, and so does `--reasoning on`"
    ),
    "test_template.py::test_date_inside_prompt*": (
        "templates get the variables that transformers gives them; `date_string`, `datetime` and `functions`, which llama.cpp "
        "adds for Llama 3 and Firefunction, can be given with `chat_template_kwargs`"
    ),
    "test_ctx_shift.py::test_ctx_shift_enabled": (
        "there is no context shift: an answer ends where the context is full, with `finish_reason: length`"
    ),
    "test_ctx_shift.py::test_ctx_shift_disabled_short_prompt*": (
        "an answer may be one token longer: its last token needs no place in the context"
    ),
    "test_metrics.py::*": "metrics begin with `diptych_`, and count other things too",
    "test_infill.py::*": "there is no `/infill`",
    "test_rerank.py::*": "there is no `/rerank`",
}

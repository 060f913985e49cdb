"""The server's own OpenAPI document: it names every route, and requests made from it find no fault of the server's."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from sites import Site

ROUTES = {
    "/v1/chat/completions", "/v1/completions", "/completion", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/models", "/v1/embeddings", "/v1/media/encode", "/v1/media/preview", "/tokenize", "/detokenize", "/apply-template",
    "/health", "/props", "/slots",
}  # fmt: skip
N_EXAMPLES = 30  # a route


@pytest.fixture(scope="session")
def document(tiny_served: Site) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{tiny_served.url}/openapi.json")


def test_every_route_is_in_the_document(tiny_served: Site) -> None:
    assert set(tiny_served.get("/openapi.json").json()["paths"]) >= ROUTES


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_requests_made_from_the_document_find_no_fault(
    path: str, document: schemathesis.schemas.BaseSchema, tiny_served: Site
) -> None:
    for operation in (result.ok() for result in document.get_all_operations() if result.ok().path == path):

        @settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                case.body.setdefault("max_tokens", 4)  # a random model would talk until the context is full
            response = case.call()
            assert response.status_code < 500 or response.status_code == 501, response.text

        check()
    assert tiny_served.get("/health").status_code == 200

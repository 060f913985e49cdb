"""What llama-server's own tests ask of a server, where nothing else here does."""

from __future__ import annotations

from sites import Serve


def test_without_its_page_the_server_has_none(serve: Serve) -> None:
    site = serve(page=False)
    assert site.get("/").status_code == 404
    assert site.get("/page/page.js").status_code == 404
    assert site.get("/health").status_code == 200

"""The page in headless Chromium, against a real server; nothing may be fetched from elsewhere."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from diptych import reader

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EXAMPLES = reader.FOLDER / "examples"
WATCH = """
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  (window.refused ??= []).push(`${violatedDirective} ${blockedURI}`));
"""
STORE = """(settings) => {
  const changed = (sessionStorage.getItem("diptych.settings") ?? "{}") !== settings;
  sessionStorage.setItem("diptych.settings", settings);
  return changed;
}"""
GIVE = """([name, type, data, how]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const init = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(how === "drop"
    ? new DragEvent("drop", { ...init, dataTransfer: transfer })
    : new ClipboardEvent("paste", { ...init, clipboardData: transfer }));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for a module of tests, which are skipped where there is none."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}; install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """Somebody at the page of a site. `page` is Playwright's."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.faults: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("filechooser", lambda _: None)  # asked for in time: with a listener at the last moment Chromium may miss it
        page.add_init_script(WATCH)

    def open(self, **settings: str) -> None:
        """Come to the page as in a new tab, with settings made before."""
        self.requests.clear()
        self.faults.clear()
        self.page.unroute_all()
        self.page.goto(self.url)
        if self.page.evaluate(STORE, json.dumps(settings)):
            self.page.reload()
        expect(self.page.locator("#context")).not_to_be_empty()

    def set(self, **fields: object) -> None:
        """Fill in the settings; `more` takes what is not a string as JSON."""
        self.page.click("#open-settings")
        for name, value in fields.items():
            self.page.fill(f"#settings [name={name}]", value if isinstance(value, str) else json.dumps(value))
        self.page.click("#settings button[type=submit]")
        expect(self.page.locator("#settings")).to_be_hidden()

    def say(self, text: str) -> None:
        """Make the model answer with just this text, by a grammar."""
        literal = json.dumps(text, ensure_ascii=False)
        self.set(temperature="0", more={"grammar": f"root ::= {literal}", "max_tokens": 2000})

    def give(self, name: str = "receipt.png", how: str = "choose", data: bytes | None = None, type: str = "image/png") -> None:
        """Choose, drop or paste a picture, and wait until it is known how the model sees it."""
        data = (EXAMPLES / name).read_bytes() if data is None else data
        if how == "choose":
            self.page.set_input_files("#files", {"name": name, "mimeType": type, "buffer": data})
        else:
            self.page.evaluate(GIVE, [name, type, base64.b64encode(data).decode(), how])
        expect(self.page.locator("#pending .tokens").last).not_to_have_text("…")

    def ask(self, text: str = "Read the text.") -> Locator:
        """Ask, and wait for the answer; the turn it stands in."""
        turns = self.page.locator(".turn").count()
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        turn = self.page.locator(".turn").nth(turns)
        expect(turn).to_have_attribute("data-state", "done", timeout=30_000)
        return turn

    def fact(self, name: str) -> str:
        """What the panel says of the picture it shows."""
        return self.page.locator(f"#seen-facts [data-fact={name}] dd").inner_text()

    def focused(self) -> str:
        """The id of what has the focus, or its words."""
        found: str = self.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        return found

    def check(self) -> None:
        """Nothing went wrong, and nothing was asked of anybody but the server."""
        refused = self.page.evaluate("window.refused ?? []")  # by the content security policy
        strange = [url for url in self.requests if not url.startswith((self.url + "/", "data:", "blob:"))]
        assert not self.faults + refused + strange, f"{self.faults=} {refused=} {strange=}"


@contextmanager
def visit(browser: Browser, url: str, **context: Any) -> Iterator[Visit]:
    """A fresh visit, checked at its end."""
    with browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}) as fresh:
        fresh.set_default_timeout(10_000)
        found = Visit(fresh.new_page(), url)
        found.open()
        yield found
        found.check()

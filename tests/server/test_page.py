"""The chat page, used in Chromium with the shipped reader behind it."""

from __future__ import annotations

import base64
import re
import time

import pytest
from browsing import EXAMPLES, chromium, visit
from playwright.sync_api import expect

from diptych import reader
from diptych.server.page import FOLDER

ENDLESS = {"ignore_eos": True, "logprobs": True, "top_logprobs": 20}  # the reader is fast: let it write, and much
STAGES = ["Queue", "Preprocess", "Encode", "Media prefill", "Text prefill", "Decode"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def visitor(browser, served):
    with visit(browser, served.url) as found:
        yield found


@pytest.fixture
def at(visitor):
    """Somebody who comes to the reader's page, which gives the likeliest answers."""
    visitor.open(temperature="0")
    yield visitor
    visitor.check()


def said(name: str) -> str:
    return (EXAMPLES / name).with_suffix(".txt").read_text().strip()


def wait(true) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


# ---- files


def test_every_file_is_sent_with_strict_headers_and_once(served) -> None:
    page = served.get("/")
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert sorted(names) == sorted(f"page/{path.name}" for path in FOLDER.iterdir() if path.suffix != ".html"), "all in one go"
    for answer in (page, *(served.get(f"/{name}") for name in names)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        again = served.get(str(answer.url), headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert served.http.head("/").status_code == 200


@pytest.mark.parametrize("name", ["x.js", "", "../page.py", "%2e%2e/page.py", "..%2fpage.py"])
def test_nothing_but_the_files_of_the_page_is_sent(served, name: str) -> None:
    assert served.get(f"/page/{name}").status_code == 404


def test_the_page_needs_no_key_and_no_model(serve) -> None:
    site = serve(reader.FOLDER, api_key=("secret",))
    assert site.get("/").status_code == site.get("/page/page.js").status_code == 200
    assert site.get("/props").status_code == 401


# ---- asking


@pytest.mark.parametrize("how", ["choose", "drop", "paste"])
def test_a_picture_is_read(at, how: str) -> None:
    at.give("receipt.png", how)
    turn = at.ask()
    assert turn.locator(".answer").inner_text() == said("receipt.png")
    assert turn.locator(".thumb").count() == 1


def test_several_pictures_go_along_and_one_can_be_taken_back(at) -> None:
    for name in ("note.png", "receipt.png", "parcel.png"):
        at.give(name)
    at.page.get_by_label("Remove note.png").click()
    with at.page.expect_request("**/v1/chat/completions") as sent:
        at.ask("")
    parts = sent.value.post_data_json["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url"]


def test_files_are_sent_as_they_are(at) -> None:
    data = (EXAMPLES / "receipt.png").read_bytes() + b"trailing bytes that any resizing would drop"
    at.give("receipt.png", data=data)
    with at.page.expect_request("**/v1/chat/completions") as sent:
        at.ask()
    url = sent.value.post_data_json["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2]) == data


def test_a_file_that_is_no_picture_is_refused_in_words(at) -> None:
    at.page.set_input_files("#files", {"name": "report.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7"})
    expect(at.page.locator("#notice")).to_contain_text("report.pdf")
    assert at.page.locator("#pending li").count() == 0


def test_what_was_said_goes_along_with_the_next_question(at) -> None:
    at.give("label.png")
    at.ask("What is it?")
    with at.page.expect_request("**/v1/chat/completions") as sent:
        at.ask("And now?")
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert sent.value.post_data_json["messages"][1]["content"] == said("label.png")


def test_settings_go_along(at) -> None:
    at.set(system="Be brief.", temperature="0.5", max_tokens="3", seed="7", more={"top_k": 5})
    at.give()
    with at.page.expect_request("**/v1/chat/completions") as sent:
        at.ask()
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["seed"], body["top_k"]) == (0.5, 3, 7, 5)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_an_answer_can_be_made_anew_and_copied_and_the_chat_begun_anew(at) -> None:
    at.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    at.give("parcel.png")
    turn = at.ask()
    turn.get_by_text("Regenerate").click()
    expect(turn).to_have_attribute("data-state", "done")
    assert turn.locator(".answer").inner_text() == said("parcel.png")
    turn.get_by_text("Copy answer").click()
    expect(turn.get_by_text("Copied")).to_be_visible()
    assert at.page.evaluate("navigator.clipboard.readText()") == said("parcel.png")
    at.page.click("#new")
    assert at.page.locator(".turn").count() == 0
    expect(at.page.locator("#seen .blank")).to_be_visible()
    expect(at.page).to_have_title("reader · Diptych")


def test_stopping_frees_the_slot(at, served) -> None:
    at.set(more=ENDLESS)
    at.give()
    at.page.fill("#question", "Go on for ever.")
    at.page.press("#question", "Enter")
    expect(at.page.locator(".answer")).not_to_be_empty()
    assert not served.idle()
    at.page.get_by_role("button", name="Stop").click()
    expect(at.page.locator(".note", has_text="Stopped.")).to_be_visible()
    wait(served.idle)
    assert at.page.locator(".answer").inner_text().startswith(said("receipt.png").splitlines()[0]), "what came stays"
    at.set(more="")
    assert at.ask().locator(".error").count() == 0, "the chat goes on"


# ---- what the page tells


def test_timings_are_shown(at) -> None:
    at.give("note.png")
    timings = at.ask().locator(".timings")
    line = timings.locator(".line").inner_text()
    assert re.search(r"to the first token .* tokens/s", line)
    timings.locator("summary").click()
    rows = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in timings.locator("tr").all()}
    assert list(rows) == STAGES
    assert all(re.fullmatch(r"[\d.]+ m?s", took) for took, _ in rows.values())
    assert rows["Media prefill"][1] == "48 tokens"


def test_the_picture_is_shown_as_the_model_sees_it(at) -> None:
    at.give("receipt.png")
    assert (at.fact("given"), at.fact("seen")) == ("300 × 150", "308 × 140")
    assert (at.fact("patches"), at.fact("tokens")) == ("22 × 10 of 14 px", "11 × 5 = 55")
    box = at.page.locator("#seen-canvas").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(308 / 140, rel=0.02)
    assert (coloured(at, "tokens"), coloured(at, "patches"), coloured(at, "plain")) == (10, 21, 0)


def coloured(at, mode: str) -> int:
    """How many upright lines of a grid the picture has: runs of coloured pixels in a line that is white paper."""
    at.page.locator(f"input[name=grid][value={mode}]").check(force=True)
    return at.page.evaluate("""() => {
      const canvas = document.getElementById("seen-canvas");
      const row = canvas.getContext("2d").getImageData(0, Math.round(canvas.height * 0.95), canvas.width, 1).data;
      let runs = 0;
      for (let x = 0, inside = false; x < canvas.width; x += 1) {
        const [r, g, b] = row.slice(4 * x, 4 * x + 3);
        const coloured = Math.max(r, g, b) - Math.min(r, g, b) > 40;
        runs += coloured && !inside;
        inside = coloured;
      }
      return runs;
    }""")


def test_tokens_can_be_walked_with_pointer_and_keys(at) -> None:
    at.give("receipt.png")
    box = at.page.locator("#seen-canvas").bounding_box()
    at.page.mouse.move(box["x"] + box["width"] * 1.5 / 11, box["y"] + box["height"] * 2.5 / 5)
    expect(at.page.locator("#seen-cell")).to_have_text("token 24 · row 3 · column 2")
    at.page.focus("#seen-canvas")
    at.page.keyboard.press("ArrowRight")
    expect(at.page.locator("#seen-cell")).to_have_text("token 25 · row 3 · column 3")


def test_a_picture_that_was_seen_before_is_said_to_be_cached(at) -> None:
    at.give("receipt.png", data=(EXAMPLES / "receipt.png").read_bytes())
    first = at.ask()
    assert at.fact("state") in ("encoded", "from the cache", "in the KV cache")
    assert first.locator(".timings").count() == 1
    second = at.ask("And once more?")
    assert "picture in the KV cache" in second.locator(".timings .line").inner_text()
    assert at.fact("state") == "in the KV cache"
    at.page.click("#new")
    at.give("receipt.png")
    assert at.fact("state") == "cached"
    at.set(system="Another prompt.")  # in front of the picture, so that the KV cache does not have it there
    assert "picture from cache" in at.ask().locator(".timings .line").inner_text()


def test_errors_stand_where_the_answer_would(at) -> None:
    at.give("broken.png", data=b"\x89PNG\r\n\x1a\n and then nothing")
    expect(at.page.locator("#seen-facts")).to_contain_text("cannot be decoded")
    turn = at.ask()
    expect(turn.locator(".error")).to_contain_text("cannot be decoded")
    expect(turn.get_by_text("Try again")).to_be_visible()
    at.give("label.png")
    assert at.ask().locator(".answer").inner_text() == said("label.png"), "what failed is left out of the chat"


def test_a_server_that_is_gone_is_told_and_asked_again(at) -> None:
    at.give("label.png")
    at.page.context.set_offline(True)
    turn = at.ask()
    expect(turn.locator(".error")).to_contain_text("cannot be reached")
    at.page.context.set_offline(False)
    turn.get_by_text("Try again").click()
    expect(turn.locator(".answer")).to_have_text(said("label.png"))


def test_an_error_in_the_midst_of_an_answer_leaves_what_came(at) -> None:
    delta = 'data: {"choices":[{"delta":{"reasoning_content":"Hm.","content":"So far"}}]}\n\n'
    error = 'data: {"error":{"code":504,"message":"the time is over","type":"timeout_error"}}\n\n'
    at.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=delta + error, content_type="text/event-stream"))
    turn = at.ask()
    assert turn.locator(".answer").inner_text() == "So far"
    expect(turn.locator(".error")).to_have_text("the time is over")
    thoughts = turn.locator(".reasoning-text")
    expect(thoughts).to_be_hidden()
    turn.get_by_text("Reasoning").click()
    expect(thoughts).to_have_text("Hm.")


def test_a_stream_that_breaks_off_is_told(at) -> None:
    delta = 'data: {"choices":[{"delta":{"content":"So far"}}]}\n\n'
    at.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=delta, content_type="text/event-stream"))
    expect(at.ask().locator(".error")).to_contain_text("ended before the answer did")


def test_screen_readers_are_told_whole_paragraphs(at) -> None:
    at.say("One.\n\nTwo.\n\nThree.")
    at.page.evaluate("""() => {
      window.told = [];
      new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) => window.told.push(node.textContent))))
        .observe(document.getElementById("spoken"), { childList: true });
    }""")
    at.ask()
    told = at.page.evaluate("window.told")
    assert told[0] == "Waiting for the answer"
    assert "\n".join(told[1:]).split() == ["One.", "Two.", "Three."]
    assert len(told) <= 4


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser, serve) -> None:
    site = serve(reader.FOLDER, api_key=("secret",))
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site.url)
        expect(page.locator("#settings [name=key]")).to_be_focused()
        page.fill("#settings [name=key]", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#context")).to_have_text("context 2,048")
        assert page.evaluate("localStorage.length") == 0
        assert context.cookies() == []
        other = context.new_page()
        other.goto(site.url)
        expect(other.locator("#settings [name=key]")).to_be_focused()
        expect(other.locator("#settings [name=key]")).to_have_value("")


def test_a_model_without_a_media_half_hides_what_is_for_pictures(browser, serve, tmp_path) -> None:
    (tmp_path / "text.gguf").symlink_to(reader.FOLDER / "text.gguf")
    with visit(browser, serve(tmp_path).url) as at:
        for part in ("#seen", "#hinge", "[data-choose] >> nth=0", ".buttons [data-choose]"):
            expect(at.page.locator(part)).to_be_hidden()
        at.ask("Hello")

"""The page for everybody: keys alone, a phone, light and dark, no motion where none is wanted."""

from __future__ import annotations

import pytest
from browsing import EXAMPLES, chromium, visit
from playwright.sync_api import expect

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
WIDE = f"""# A heading that is as long as headings of models sometimes are

| {" | ".join(f"column {i}" for i in range(6))} |
|{"---|" * 6}
| {" | ".join("two words" for _ in range(6))} |

```
{"a_line_of_code_without_an_end " * 3}
```

{"unbroken" * 8} `{"code" * 15}` https://example.org/{"path/" * 15}"""
# (what is written, what it is written on): variables of the style sheet
PAIRS = [
    ("ink", "panel"), ("ink", "field"), ("ink", "well"), ("soft", "panel"), ("soft", "field"), ("soft", "well"),
    ("media", "panel"), ("text", "panel"), ("panel", "ink"), ("panel", "text"),
]  # fmt: skip
STYLES = """(selectors) => selectors.map((selector) => {
  const style = getComputedStyle(document.querySelector(selector));
  return [style.color, style.backgroundColor];
})"""
VARIABLES = "(names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim())"
MARKED = """() => {
  const style = getComputedStyle(document.activeElement);
  const field = document.activeElement.closest(".field, label");
  const around = field && getComputedStyle(field).boxShadow !== "none";
  const beside = document.activeElement.nextElementSibling;
  return style.outlineStyle !== "none" || around || (beside && getComputedStyle(beside).outlineStyle !== "none");
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def desk(browser, served):
    with visit(browser, served.url) as found:
        yield found


@pytest.fixture
def at(desk):
    desk.open(temperature="0")
    yield desk
    desk.check()


@pytest.fixture(scope="module")
def pocket(browser, served):
    with visit(browser, served.url, **PHONE) as found:
        yield found


@pytest.fixture
def phone(pocket):
    pocket.open(temperature="0")
    yield pocket
    pocket.check()


# ---- keys alone


def test_the_question_has_the_focus_and_a_slash_brings_it_back(at) -> None:
    assert at.focused() == "question"
    at.page.focus("#new")
    at.page.keyboard.press("/")
    assert at.focused() == "question"
    at.page.keyboard.type("1/2")
    assert at.page.input_value("#question") == "1/2", "in the question it is a letter"


def test_the_focus_goes_through_all_in_the_order_it_is_seen_and_shows(at) -> None:
    at.give()
    at.page.focus(".skip")
    seen = []
    for _ in range(11):
        at.page.keyboard.press("Tab")
        seen.append(
            at.page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.name")
        )
        assert at.page.evaluate(MARKED), f"the focus on {seen[-1]} cannot be seen"
    assert seen == [
        "grid", "seen-canvas", "hinge", "new", "open-settings", "scroller", "thumb", "remove", "question",
        "quiet pictured", "send",
    ]  # fmt: skip


def test_everything_can_be_done_with_keys(at) -> None:
    keys = at.page.keyboard
    at.page.focus("[data-choose].pictured")
    with at.page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(EXAMPLES / "receipt.png")
    expect(at.page.locator("#pending li")).to_have_count(1)
    assert at.focused() == "question"
    keys.type("Read")
    keys.press("Shift+Enter")
    keys.type("the text.")
    assert at.page.input_value("#question") == "Read\nthe text."
    keys.press("Enter")
    expect(at.page.locator(".turn")).to_have_attribute("data-state", "done")
    assert "CAFE MILANO" in at.page.locator(".answer").inner_text()
    at.page.focus("#hinge")
    width = at.page.locator("#seen").bounding_box()["width"]
    keys.press("ArrowRight")
    assert at.page.locator("#seen").bounding_box()["width"] > width
    at.page.focus("#open-settings")
    keys.press("Enter")
    expect(at.page.locator("#settings")).to_be_visible()
    keys.press("Escape")
    expect(at.page.locator("#settings")).to_be_hidden()
    assert at.focused() == "question"


def test_escape_stops_an_answer(at) -> None:
    at.set(more={"ignore_eos": True, "logprobs": True, "top_logprobs": 20})
    at.give()
    at.page.fill("#question", "Go on.")
    at.page.keyboard.press("Enter")
    expect(at.page.locator(".answer")).not_to_be_empty()
    at.page.keyboard.press("Escape")
    expect(at.page.locator(".note", has_text="Stopped.")).to_be_visible()


def test_everything_has_a_name(at) -> None:
    at.give()
    at.ask()
    nameless = at.page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, canvas, img, summary, section")]
      .filter((e) => !["aria-label", "aria-labelledby", "alt"].some((name) => e.getAttribute(name)))
      .filter((e) => !(e.labels?.length || e.textContent.trim() || e.querySelector("img")?.alt))
      .map((e) => e.outerHTML)""")
    assert nameless == []


# ---- a phone


def within(phone) -> None:
    """Nothing is wider than the screen, but what scrolls by itself."""
    wide = phone.page.evaluate("""() => [document.documentElement, document.body, document.getElementById("scroller")]
      .filter((e) => e.scrollWidth > e.clientWidth).map((e) => `${e.id || e.localName} ${e.scrollWidth} > ${e.clientWidth}`)""")
    assert wide == []
    assert phone.page.evaluate("document.documentElement.clientWidth") == 360


def test_a_phone_needs_no_scrolling_sideways(phone) -> None:
    within(phone)
    for name in ("receipt.png", "note.png", "parcel.png", "label.png"):
        phone.give(name)
    within(phone)
    phone.say(WIDE)
    turn = phone.ask("A question of many words, and one that is " + "very" * 30 + " long")
    turn.locator(".timings summary").click()
    within(phone)
    assert turn.locator(".answer table").is_visible()
    phone.page.click("#open-settings")
    within(phone)


def test_a_picture_unfolds_over_the_chat_and_folds_back(phone) -> None:
    phone.give("receipt.png")
    expect(phone.page.locator("#seen")).to_be_hidden()
    phone.page.locator("#pending .thumb").click()
    expect(phone.page.locator("#seen-canvas")).to_be_visible()
    assert phone.fact("tokens") == "11 × 5 = 55"
    assert phone.focused() == "close-seen"
    within(phone)
    phone.page.keyboard.press("Escape")
    expect(phone.page.locator("#seen")).to_be_hidden()
    phone.ask()


def test_the_question_grows_and_keeps_in_view(phone) -> None:
    one = phone.page.locator("#question").bounding_box()["height"]
    phone.page.fill("#question", "line\n" * 5)
    assert phone.page.locator("#question").bounding_box()["height"] > 4 * one
    phone.page.fill("#question", "line\n" * 80)
    send = phone.page.locator("#send").bounding_box()
    assert send["y"] + send["height"] <= 740


def test_what_is_touched_is_large_enough(phone) -> None:
    phone.give()
    for name in ("#new", "#open-settings", ".pictured[data-choose]", "#send", "#pending .thumb"):
        box = phone.page.locator(name).bounding_box()
        assert min(box["width"], box["height"]) >= 28, name


# ---- light, dark, and at rest


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(at, scheme: str) -> None:
    at.page.emulate_media(color_scheme=scheme)
    (colour, ground), *_ = at.page.evaluate(STYLES, ["body"])
    assert (luminance(rgb(ground)) > luminance(rgb(colour))) == (scheme == "light")
    for front, back in PAIRS:
        a, b = sorted(luminance(parsed) for parsed in map(hexadecimal, at.page.evaluate(VARIABLES, [front, back])))
        assert (b + 0.05) / (a + 0.05) >= 4.5, f"{front} on {back}"
    at.page.emulate_media(color_scheme=None)


def test_nothing_moves_where_no_motion_is_wanted(at) -> None:
    at.page.emulate_media(reduced_motion="reduce")
    at.give()
    at.ask()
    assert at.page.evaluate("document.getAnimations().length") == 0
    at.page.emulate_media(reduced_motion=None)


def rgb(text: str) -> list[float]:
    return [float(part) for part in text.removeprefix("rgb(").rstrip(")").split(",")]


def hexadecimal(text: str) -> list[float]:
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def luminance(colour: list[float]) -> float:
    """Relative luminance, as in WCAG 2."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b

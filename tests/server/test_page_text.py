"""Markdown on the page: what models write is shown well, and never becomes markup, a script or a request."""

from __future__ import annotations

import pytest
from browsing import chromium, visit
from playwright.sync_api import expect

RENDER = """async (text) => {
  const { render } = await import("/page/markdown.js");
  const root = document.createElement("div");
  root.append(render(text));
  return root.innerHTML;
}"""
TAGS = """async (texts) => {
  const { render } = await import("/page/markdown.js");
  const found = new Set();
  for (const text of texts) {
    const root = document.createElement("div");
    root.append(render(text));
    document.body.append(root);
    for (const element of root.querySelectorAll("*")) {
      found.add(element.localName);
      for (const { name } of element.attributes) found.add(`@${name}`);
      if (element.href) found.add(new URL(element.href).protocol);
    }
    root.remove();
  }
  return [...found];
}"""
HARMLESS = {
    "p", "br", "a", "span", "code", "pre", "div", "button", "em", "strong", "del", "h3", "h4", "h5", "h6", "hr", "ul", "ol",
    "li", "input", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "@class", "@tabindex", "@type", "@href", "@rel",
    "@target", "@title", "@start", "@disabled", "@checked", "@aria-label", "http:", "https:", "mailto:",
}  # fmt: skip
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>fetch('https://evil.example')</script>",
    "![p](https://evil.example/x.png)",
    "![p](x.png) ![](//evil.example/y.png)",
    "[![p](https://evil.example/x.png)](https://evil.example)",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](java\tscript:alert(1)) [d]( javascript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>) [b](vbscript:x) [c](file:///etc/passwd) [d](blob:https://x/y)",
    "<javascript:alert(1)> <https://e.example/\"onmouseover=alert(1)>",
    "[a](<https://e.example/\" onclick=\"alert(1)>)",
    "https://e.example/\"><img/src=x>",
    "```html\"><img src=x>\n<img src=x onerror=alert(1)>\n```",
    "| <b>a</b> | <img src=x> |\n|--|--|\n| <svg onload=alert(1)> | <iframe src=https://evil.example> |",
    "# <style>body{display:none}</style>",
    "- <details ontoggle=alert(1) open>\n  - <math><mi//xlink:href=\"data:x,<script>\">",
    "> <form action=https://evil.example><button>x",
    "&lt;img src=x onerror=alert(1)&gt; &#60;script&#62;",
    "`<img src=x>` **<b onclick=x>** _<i>_ ~~<s>~~ \\<u>",
    "<link rel=stylesheet href=https://evil.example/x.css> <base href=https://evil.example> <meta http-equiv=refresh content=0>",
]  # fmt: skip


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
    visitor.open()
    yield visitor
    visitor.check()


def link(target: str, words: str) -> str:
    return f'<a href="{target}" rel="noopener noreferrer nofollow" target="_blank">{words}</a>'


SHOWN = {
    "two lines\nof one paragraph\n\nand another": "<p>two lines<br>of one paragraph</p><p>and another</p>",
    "# One\n### Three #\n####### no": "<h3>One</h3><h5>Three</h5><p>####### no</p>",
    "#hashtag": "<p>#hashtag</p>",
    "*a* **b** ***c*** _d_ __e__ ~~f~~": (
        "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <strong>e</strong> <del>f</del></p>"
    ),
    "2 * 3 * 4, 5**2, snake_case_name, *open": "<p>2 * 3 * 4, 5**2, snake_case_name, *open</p>",
    "**bold *and* more** *a **b** c*": "<p><strong>bold <em>and</em> more</strong> <em>a <strong>b</strong> c</em></p>",
    "\\*not\\* \\`code\\` C:\\dir": "<p>*not* `code` C:\\dir</p>",
    "`a*b*` ``a`b`` `open": "<p><code>a*b*</code> <code>a`b</code> `open</p>",
    "[words](https://a.example/x)": f"<p>{link('https://a.example/x', 'words')}</p>",
    '[**w**](https://a.example "title")': f"<p>{link('https://a.example/', '<strong>w</strong>')}</p>",
    "[a](https://a.example/w_(x)) [b]": f"<p>{link('https://a.example/w_(x)', 'a')} [b]</p>",
    "see https://a.example/x_y_z. (http://b.example)": (
        f"<p>see {link('https://a.example/x_y_z', 'https://a.example/x_y_z')}. ({link('http://b.example/', 'http://b.example')})</p>"
    ),
    "<https://a.example> <b>": f"<p>{link('https://a.example/', 'https://a.example')} &lt;b&gt;</p>",
    "![chart](https://a.example/c.png)": f"<p>{link('https://a.example/c.png', 'chart')}</p>",
    "a &amp; b &lt;c&gt; AT&T": "<p>a &amp; b &lt;c&gt; AT&amp;T</p>",
    "- a\n- b\n  - c\n    d\n- [x] done": (
        "<ul><li>a</li><li>b<ul><li>c<br>d</li></ul></li>"
        '<li class="task"><input type="checkbox" disabled="" checked="" aria-label="done">done</li></ul>'
    ),
    "3. c\n4. d\n\n- e": '<ol start="3"><li>c</li><li>d</li></ol><ul><li>e</li></ul>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "text\n- item": "<p>text</p><ul><li>item</li></ul>",
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "a\n\n---\n\n***": "<p>a</p><hr><hr>",
    "a | b\n--|:-:\n1 | `x\\|y`\n2": (
        '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th class="center">b</th></tr></thead>'
        '<tbody><tr><td>1</td><td class="center"><code>x|y</code></td></tr></tbody></table></div><p>2</p>'
    ),
    "a | b\nnot a table": "<p>a | b<br>not a table</p>",
    "": "",
    " \n\n": "",
    "é 漢字 🙂‍↔️ \u202e": "<p>é 漢字 🙂‍↔️ \u202e</p>",
}


@pytest.mark.parametrize("text", SHOWN)
def test_markdown_is_shown(visitor, text: str) -> None:
    assert visitor.page.evaluate(RENDER, text) == SHOWN[text]


def test_code_keeps_its_lines_and_can_be_copied(at) -> None:
    at.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = "def f():\n\n    return '<b>' # *x*"
    at.say(f"Here:\n\n```python\n{code}\n```\nand on")
    turn = at.ask()
    assert turn.locator("pre code").inner_text() == code
    assert turn.locator(".code-head span").inner_text() == "python"
    turn.locator(".code-head button").click()
    expect(turn.locator(".code-head button")).to_have_text("Copied")
    assert at.page.evaluate("navigator.clipboard.readText()") == code


def test_code_in_a_list_and_code_that_has_not_ended_yet_are_code(at) -> None:
    assert "<pre" in at.page.evaluate(RENDER, "1. a\n   ```\n   x\n   ```\n2. b").split("</ol>")[0]
    assert "<code>x\n- y</code>" in at.page.evaluate(RENDER, "```\nx\n- y")


def test_hostile_text_becomes_nothing_but_text_and_links(at) -> None:
    assert set(at.page.evaluate(TAGS, [*HOSTILE, *SHOWN])) <= HARMLESS
    for text in HOSTILE[:2]:
        assert at.page.evaluate(RENDER, text).startswith("<p>&lt;")


@pytest.mark.parametrize("text", [" ".join(HOSTILE[:4]), "\n\n".join(HOSTILE)], ids=["one line", "all"])
def test_a_hostile_answer_makes_no_element_and_no_request(at, text: str) -> None:
    at.say(text)
    at.requests.clear()
    turn = at.ask()
    for tag in ("img", "script", "iframe", "svg", "style", "form", "link", "base", "meta", "math", "details"):
        assert turn.locator(f".answer {tag}").count() == 0, tag
    assert "<img src=x onerror=alert(1)>" in turn.locator(".answer").inner_text()
    assert at.requests == [f"{at.url}/v1/chat/completions"]


def test_the_policy_would_stop_what_the_page_let_through(at) -> None:
    """That the checks of requests and of the policy can fail."""
    at.page.evaluate("""() => {
      const image = document.createElement("img");
      image.src = "https://evil.example/x.png";
      document.body.append(image);
    }""")
    at.page.wait_for_function("window.refused")
    with pytest.raises(AssertionError, match="evil"):
        at.check()
    assert "TypeError" in at.page.evaluate("try { document.body.innerHTML = 'x'; '' } catch (error) { String(error) }")
    at.page.evaluate("window.refused = []")
    at.requests.clear()


@pytest.mark.parametrize(
    "text",
    [
        "*" * 40_000, "[" * 40_000, "`" * 40_001, "> " * 20_000, "**a " * 20_000, "[](" * 20_000, "*_" * 20_000, "\\" * 40_000,
        "- " * 20_000, "`a``" * 10_000, "<" * 40_000, "a|" * 20_000 + "\n" + "-|" * 20_000, "# " + " " * 40_000 + "#x",
        "https://" + "." * 40_000 + "x", '[](a "' * 10_000, "1. a\n" * 10_000, " " * 40_000 + "x", "[a](b)" * 8_000,
        "|\n" * 20_000,
    ],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_no_text_takes_long(visitor, text: str) -> None:
    took = visitor.page.evaluate(
        """async (text) => {
      const { render } = await import("/page/markdown.js");
      const start = performance.now();
      render(text);
      return performance.now() - start;
    }""",
        text,
    )
    assert took < 1000, f"{took:.0f} ms for {len(text)} characters"


def test_a_growing_answer_keeps_what_stands_above(at) -> None:
    same, text = at.page.evaluate("""async () => {
      const { Markdown } = await import("/page/markdown.js");
      const root = document.createElement("div");
      const markdown = new Markdown(root);
      const whole = "# Title\\n\\nOne *paragraph*.\\n\\n- a\\n- b\\n\\n```\\ncode\\n```\\n\\nThe end.";
      let first = null;
      for (let i = 1; i <= whole.length; i += 1) {
        markdown.show(whole.slice(0, i));
        if (i === 30) first = root.firstChild;
      }
      const { render } = await import("/page/markdown.js");
      const once = document.createElement("div");
      once.append(render(whole));
      return [first === root.firstChild && root.innerHTML === once.innerHTML, root.textContent];
    }""")
    assert same
    assert text.startswith("Title")

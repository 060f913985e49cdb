// One question with its answer: what was asked, what comes, and how long it took.

import { copyButton, el } from "./dom.js";
import { Markdown } from "./markdown.js";
import { timingsView } from "./timings.js";

const LONG = 160; // characters; longer questions are set like text, not like a heading

export class Turn {
  #answer;
  #reasoned = el("div", { class: "reasoning-text" });
  #reasoning = el("details", { class: "reasoning", hidden: true }, el("summary", {}, "Reasoning"), this.#reasoned);
  #body = el("div", { class: "answer" });
  #foot = el("div", { class: "foot" });
  #drawing = 0;

  /** `say(text)` tells finished paragraphs to screen readers, `again()` asks anew, `show(picture)` opens one. */
  constructor(question, pictures, { say, again, show }) {
    Object.assign(this, { question, pictures, say, again });
    this.said = 0; // blocks that screen readers heard of
    const thumbs = pictures.map((picture) =>
      el("li", {}, el("button", { type: "button", class: "thumb", title: `See ${picture.name} as the model does`, click: () => show(picture) },
        picture.thumbnail())));
    const asked = question && el(question.length > LONG ? "p" : "h2", { class: "question" }, question);
    this.element = el("article", { class: "turn" },
      thumbs.length > 0 && el("ul", { class: "thumbs" }, thumbs), asked,
      this.#reasoning, this.#body, this.#foot);
    this.reset();
  }

  /** Whether there is an answer that later questions can build on. */
  get answered() {
    return this.text !== "";
  }

  /** Begin the answer, or begin it anew. */
  reset() {
    Object.assign(this, { text: "", thoughts: "", timings: null, said: 0 });
    this.#body.replaceChildren();
    this.#answer = new Markdown(this.#body);
    this.#foot.replaceChildren();
    this.#reasoning.hidden = true;
    this.#reasoning.open = false;
    this.element.dataset.state = "waiting";
  }

  /** Take in a chunk of the stream. */
  add(chunk) {
    const delta = chunk.choices?.[0]?.delta ?? {};
    this.thoughts += delta.reasoning_content ?? "";
    this.text += delta.content ?? "";
    this.timings = chunk.timings ?? this.timings;
    if (delta.content || delta.reasoning_content) this.#draw();
  }

  /** The answer is whole, or was stopped; `error` says in words why it ended early. */
  end({ stopped = false, error = null } = {}) {
    cancelAnimationFrame(this.#drawing);
    this.#show();
    this.element.dataset.state = "done";
    const note = stopped ? "Stopped." : !this.text && !error ? "The answer is empty." : "";
    if (note) this.#foot.append(el("p", { class: "note" }, note));
    if (error) this.#foot.append(el("p", { class: "error" }, error.message));
    if (this.timings) this.#foot.append(timingsView(this.timings));
    this.#foot.append(el("div", { class: "actions" },
      this.text && copyButton("Copy answer", () => this.text),
      el("button", { type: "button", class: "quiet again", click: this.again }, error ? "Try again" : "Regenerate")));
    this.say([this.#answer.words(this.said), note, error?.message].filter(Boolean).join("\n"));
  }

  /** At most once a frame, however fast tokens come. */
  #draw() {
    if (this.#drawing) return;
    this.#drawing = requestAnimationFrame(() => this.#show());
  }

  #show() {
    this.#drawing = 0;
    this.element.dataset.state = "streaming";
    this.#reasoning.hidden = !this.thoughts;
    this.#reasoned.textContent = this.thoughts;
    const whole = this.#answer.show(this.text);
    if (whole > this.said) {
      this.say(this.#answer.words(this.said, whole));
      this.said = whole;
    }
    this.element.dispatchEvent(new Event("drawn", { bubbles: true }));
  }
}

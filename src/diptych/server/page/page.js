// The page: wires the two panels, the composer and the keyboard to the conversation.

import { props, stream } from "./api.js";
import { byId, el } from "./dom.js";
import { split } from "./hinge.js";
import { Picture, sorted } from "./picture.js";
import { Seen } from "./seen.js";
import { Settings } from "./settings.js";
import { count } from "./timings.js";
import { Turn } from "./turn.js";

const question = byId("question");
const composer = byId("composer");
const scroller = byId("scroller");
const narrow = matchMedia("(max-width: 959px)");
const settings = new Settings();
const seen = new Seen();

let turns = [];
let pending = []; // pictures that go with the next question
let running = null; // the AbortController of the answer that is coming
let vision = true;

// ---- the model

async function describe() {
  try {
    const found = await props(settings.key);
    const context = found.default_generation_settings?.n_ctx;
    document.title = found.model_alias ? `${found.model_alias} · Diptych` : "Diptych";
    byId("model").textContent = found.model_alias || found.model_path?.split("/").at(-1) || "model";
    byId("context").textContent = context ? `context ${context.toLocaleString("en")}` : "";
    byId("backend").textContent = found.media_backend ? `media by ${found.media_backend}` : "";
    vision = found.modalities?.vision !== false;
    document.body.dataset.vision = String(vision);
    tell("");
  } catch (error) {
    tell(error.message);
    if (error.status === 401) settings.open("key");
    if (error.status === 503) setTimeout(describe, 1000);
  }
}

// ---- pictures

function take(files) {
  const { pictures, others } = sorted(files);
  if (!vision) return tell("This model takes no pictures.");
  tell(others.length ? `${others.join(", ")}: pictures alone can be added.` : "");
  for (const file of pictures) add(new Picture(file));
  question.focus();
}

function add(picture) {
  pending.push(picture);
  picture.look(settings);
  picture.addEventListener("change", drawPending);
  drawPending();
  seen.list(pictures());
  seen.show(picture);
}

function drop(picture) {
  pending = pending.filter((other) => other !== picture);
  picture.forget();
  drawPending();
  seen.list(pictures());
  question.focus();
}

const pictures = () => [...turns.flatMap((turn) => turn.pictures), ...pending];

function drawPending() {
  byId("pending").replaceChildren(...pending.map((picture) =>
    el("li", {},
      el("button", { type: "button", class: "thumb", title: `See ${picture.name} as the model does`, click: () => show(picture) },
        picture.thumbnail()),
      el("span", { class: "tokens" }, picture.seen ? count(picture.seen.n_tokens, "token") : picture.error ? "not usable" : "…"),
      el("button", { type: "button", class: "remove", "aria-label": `Remove ${picture.name}`, click: () => drop(picture) }, "×"))));
  ready();
}

// ---- asking

async function messages(turn) {
  const out = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const earlier of [...turns.slice(0, turns.indexOf(turn)).filter((one) => one.answered), turn]) {
    const parts = await Promise.all(earlier.pictures.map((picture) => picture.part()));
    const text = earlier.question ? [{ type: "text", text: earlier.question }] : [];
    out.push({ role: "user", content: parts.length ? [...parts, ...text] : earlier.question });
    if (earlier !== turn) out.push({ role: "assistant", content: earlier.text });
  }
  return out;
}

function ask(event) {
  event.preventDefault();
  if (running) return stop();
  if (!question.value.trim() && !pending.length) return question.focus();
  const turn = new Turn(question.value.trim(), pending, { say, again: () => again(turn), show });
  turns.push(turn);
  pending = [];
  question.value = "";
  grow();
  drawPending();
  byId("turns").append(turn.element);
  document.body.dataset.started = "true";
  answer(turn);
}

/** Ask a question once more; what was said after it is dropped. */
function again(turn) {
  if (running) return;
  for (const later of turns.splice(turns.indexOf(turn) + 1)) later.element.remove();
  turn.reset();
  seen.list(pictures());
  question.focus();
  answer(turn);
}

async function answer(turn) {
  running = new AbortController();
  ready();
  say("Waiting for the answer");
  scroller.scrollTop = scroller.scrollHeight;
  let outcome = {};
  try {
    const request = { model: byId("model").textContent, messages: await messages(turn), ...settings.fields };
    for await (const chunk of stream(request, settings.key, running.signal)) {
      turn.add(chunk);
      if (turn.answered) encoded(turn);
    }
  } catch (error) {
    outcome = error.name === "AbortError" ? { stopped: true } : { error };
    if (error.status === 401) settings.open("key");
  }
  running = null;
  turn.end(outcome);
  follow();
  ready();
  report(turn);
}

/** Once there is an answer, its pictures have been encoded, wherever their rows came from. */
function encoded(turn) {
  for (const picture of turn.pictures) if (!picture.origin && !picture.seen?.cached) picture.used("encoder");
}

/** Tell pictures where their rows came from. Media of the timings stand in the order of the messages. */
function report(turn) {
  const sent = turns.slice(0, turns.indexOf(turn) + 1).filter((one) => one.answered).flatMap((one) => one.pictures);
  const uses = turn.timings?.media ?? [];
  if (uses.length === sent.length) sent.forEach((picture, i) => picture.used(uses[i].origin));
}

const stop = () => running?.abort();

function anew() {
  stop();
  for (const picture of pictures()) picture.forget();
  turns = [];
  pending = [];
  byId("turns").replaceChildren();
  delete document.body.dataset.started;
  drawPending();
  seen.list([]);
  question.focus();
}

// ---- telling

/** Tell screen readers, whole paragraphs at a time. */
function say(text) {
  if (!text.trim()) return;
  const log = byId("spoken");
  log.append(el("p", {}, text));
  while (log.childElementCount > 5) log.firstElementChild.remove();
}

function tell(text) {
  byId("notice").textContent = text;
}

/** Stay at the end of an answer that grows, unless the reader has scrolled up. */
let atEnd = true;
const follow = () => atEnd && (scroller.scrollTop = scroller.scrollHeight);

function ready() {
  const button = byId("send");
  button.textContent = running ? "Stop" : "Send";
  button.disabled = !running && !question.value.trim() && !pending.length;
  document.body.dataset.running = String(running !== null);
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  ready();
}

/** Show a picture as the model sees it; on narrow screens its panel opens over the conversation. */
function show(picture) {
  seen.show(picture);
  if (!narrow.matches) return;
  document.body.dataset.open = "seen";
  byId("words").inert = true;
  byId("close-seen").focus();
}

function close() {
  delete document.body.dataset.open;
  byId("words").inert = false;
  question.focus();
}

// ---- listening

composer.addEventListener("submit", ask);
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (byId("settings").open) return;
  if (event.key === "Escape" && document.body.dataset.open) close();
  else if (event.key === "Escape") stop();
  else if (event.key === "/" && !event.target.closest("input, textarea")) {
    event.preventDefault();
    question.focus();
  }
});
document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length || byId("settings").open) return;
  event.preventDefault();
  take(event.clipboardData.files);
});
for (const [name, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    if (name === "dragleave" && event.relatedTarget) return;
    document.body.dataset.dragging = String(over);
    if (name === "drop") take(event.dataTransfer.files);
  });
}
byId("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
for (const button of document.querySelectorAll("[data-choose]")) button.addEventListener("click", () => byId("files").click());
byId("new").addEventListener("click", anew);
byId("close-seen").addEventListener("click", close);
narrow.addEventListener("change", close);
byId("settings").addEventListener("saved", () => {
  describe();
  for (const picture of pictures()) picture.look(settings);
});
scroller.addEventListener("scroll", () => {
  atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
});
byId("turns").addEventListener("drawn", follow);

split(byId("hinge"));
ready();
describe();
if (matchMedia("(pointer: fine)").matches) question.focus();

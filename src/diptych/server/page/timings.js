// Where the time of an answer went, as a bar and in words: blue for the picture's half, orange for the text's.

import { el } from "./dom.js";

const ORIGINS = { cache: "from cache", disk: "from disk", kv: "in the KV cache", client: "sent by the client" };

/** What became of pictures, in words; "" where all were encoded. */
export function origin(media) {
  const kinds = [...new Set(media.map((use) => use.origin))];
  if (kinds.length === 1) return ORIGINS[kinds[0]] ?? "";
  return kinds.filter((kind) => ORIGINS[kind])
    .map((kind) => `${media.filter((use) => use.origin === kind).length} of ${media.length} ${ORIGINS[kind]}`)
    .join(", ");
}

/** Milliseconds as people say them. */
export function duration(ms) {
  if (!(ms >= 0)) return "–";
  if (ms < 0.05) return "0 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** The stages of an answer, in order; those of pictures only where there were some. */
function stages(timings) {
  const media = timings.media ?? [];
  const fresh = rows(media.filter((use) => use.origin !== "kv"));
  const reused = timings.cache_n ?? 0;
  const decoded = rate(timings) ? `${count(timings.predicted_n, "token")}, ${rate(timings)}` : count(timings.predicted_n, "token");
  return [
    { name: "Queue", ms: timings.queue_ms, half: "wait" },
    { name: "Preprocess", ms: timings.preprocess_ms, half: "media", strength: 0.45 },
    media.length && { name: "Encode", ms: timings.encode_ms, half: "media", note: origin(media) },
    media.length && { name: "Media prefill", ms: timings.media_prefill_ms, half: "media", strength: 0.7,
      note: count(fresh, "token") },
    { name: "Text prefill", ms: timings.text_prefill_ms, half: "text", strength: 0.55,
      note: count(Math.max(timings.prompt_n - fresh, 0), "token") + (reused ? `; ${count(reused, "token")} of the prompt reused` : "") },
    { name: "Decode", ms: timings.predicted_ms, half: "text", note: decoded },
  ].filter((stage) => stage && Number.isFinite(stage.ms));
}

/** The timings of one answer, folded to one line and a bar. */
export function timingsView(timings) {
  const parts = stages(timings);
  const bar = el("div", { class: "bar", "aria-hidden": "true" }, parts.map(segment));
  const rows = parts.map(({ name, ms, half, strength, note }) =>
    el("tr", {}, el("th", { scope: "row" }, swatch(half, strength), name), el("td", {}, duration(ms)), el("td", {}, note ?? "")));
  const show = (event) => event.target.open && event.target.scrollIntoView({ block: "nearest" });
  return el("details", { class: "timings", toggle: show },
    el("summary", {}, el("span", { class: "line" }, summary(timings)), bar),
    el("table", {}, el("tbody", {}, rows)));
}

const rows = (media) => media.reduce((sum, use) => sum + use.n_tokens, 0);

const rate = ({ predicted_per_second: n }) => (n > 0 ? `${n.toLocaleString("en", { maximumSignificantDigits: 3 })} tokens/s` : "");

function summary(timings) {
  const media = timings.media ?? [];
  const said = media.length ? origin(media) || `encoded in ${duration(timings.encode_ms)}` : "";
  const subject = media.length > 1 ? "pictures" : "picture";
  return [
    timings.time_to_first_token_ms >= 0 && `${duration(timings.time_to_first_token_ms)} to the first token`,
    count(timings.predicted_n, "token"),
    rate(timings),
    said && (/^\d/.test(said) ? `${subject}: ${said}` : `${subject} ${said}`),
  ].filter(Boolean).join(" · ");
}

function segment({ ms, half, strength }) {
  const part = el("span", { class: half });
  part.style.flexGrow = String(ms);
  part.style.opacity = String(strength ?? 1);
  return part;
}

function swatch(half, strength) {
  const square = el("span", { class: `swatch ${half}` });
  square.style.opacity = String(strength ?? 1);
  return square;
}

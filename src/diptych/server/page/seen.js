// The picture as the model sees it: resized, under the grid of its patches and tokens.

import { byId, el } from "./dom.js";

const LEAST_STEP = 5; // CSS pixels between two grid lines; closer ones would hide the picture
const CRISP = 3; // from this enlargement on, pixels keep their edges
const MOST_ZOOM = 6;
const STATES = { encoder: "encoded", cache: "from the cache", disk: "from disk", kv: "in the KV cache", client: "sent by the client" };

export class Seen {
  #canvas = byId("seen-canvas");
  #frame = byId("seen-frame");
  #mode = "tokens";
  #pictures = [];
  #picture = null;
  #image = null; // loaded pixels of #picture
  #cell = null; // [row, column] under the pointer

  constructor() {
    new ResizeObserver(() => this.#draw()).observe(this.#frame);
    for (const query of ["(prefers-color-scheme: dark)", "(resolution: 1dppx)"]) {
      matchMedia(query).addEventListener("change", () => this.#draw());
    }
    for (const radio of document.getElementsByName("grid")) {
      radio.addEventListener("change", () => this.#choose(radio.value));
    }
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#point(null));
    this.#canvas.addEventListener("keydown", (event) => this.#step(event));
  }

  /** The pictures there are; the newest is shown where the one shown so far is gone. */
  list(pictures) {
    this.#pictures = pictures;
    const gone = !pictures.includes(this.#picture);
    if (gone) this.show(pictures.at(-1) ?? null);
    else this.#strip();
  }

  /** Show one picture, and follow what becomes known of it. */
  async show(picture) {
    this.#picture?.removeEventListener("change", this.#changed);
    this.#picture = picture;
    this.#picture?.addEventListener("change", this.#changed);
    this.#cell = null;
    this.#strip();
    await this.#load();
  }

  #changed = () => this.#load();

  async #load() {
    const picture = this.#picture;
    byId("seen").dataset.empty = String(picture === null);
    this.#tell();
    if (picture === null) return;
    const image = new Image();
    image.src = picture.seen?.image ?? picture.thumb;
    const loaded = await image.decode().then(() => true, () => false);
    if (this.#picture !== picture) return;
    this.#image = loaded ? image : null;
    this.#draw();
  }

  #choose(mode) {
    this.#mode = mode;
    this.#draw();
  }

  #strip() {
    const several = this.#pictures.length > 1 ? this.#pictures : [];
    byId("seen-strip").replaceChildren(...several.map((picture) =>
      el("li", {}, el("button", {
        type: "button", class: "thumb", title: picture.name,
        "aria-current": picture === this.#picture ? "true" : null, click: () => this.show(picture),
      }, picture.thumbnail()))));
  }

  /** What is known of the picture, in words. */
  #tell() {
    const picture = this.#picture;
    const facts = picture === null ? [] : picture.error ? [["", picture.error.message]] : described(picture);
    byId("seen-name").textContent = picture?.name ?? "";
    byId("seen-facts").replaceChildren(...facts.map(([term, value]) =>
      el("div", { "data-fact": term.toLowerCase() || "error" }, el("dt", {}, term), el("dd", {}, value))));
    const said = facts.map((fact) => fact.join(" ")).join(", ");
    this.#canvas.setAttribute("aria-label", `${picture?.name ?? "No picture"} as the model sees it: ${said}. Arrow keys walk its tokens.`);
  }

  #draw() {
    const image = this.#image;
    if (!image || !this.#picture) return;
    const [width, height] = used(this.#picture, image);
    const room = this.#frame.getBoundingClientRect();
    const zoom = Math.min(room.width / width, room.height / height, MOST_ZOOM);
    if (!(zoom > 0)) return;
    const density = devicePixelRatio;
    this.#canvas.style.width = `${width * zoom}px`;
    this.#canvas.style.height = `${height * zoom}px`;
    this.#canvas.width = Math.round(width * zoom * density);
    this.#canvas.height = Math.round(height * zoom * density);
    const context = this.#canvas.getContext("2d");
    context.scale(density, density);
    context.imageSmoothingEnabled = zoom < CRISP;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, width * zoom, height * zoom);
    this.#grid(context, width * zoom, height * zoom);
  }

  #grid(context, width, height) {
    const lattice = grid(this.#picture);
    if (!lattice || this.#mode === "plain") return;
    const [rows, columns] = lattice;
    const merge = this.#picture.seen.merge ?? 1;
    if (this.#mode === "patches") rule(context, width, height, rows * merge, columns * merge, colour("--patch"), 1);
    rule(context, width, height, rows, columns, colour("--token"), 1.25);
    if (this.#cell) mark(context, width, height, lattice, this.#cell, colour("--token"));
  }

  #point(event) {
    const lattice = this.#picture && grid(this.#picture);
    if (!lattice) return;
    const [rows, columns] = lattice;
    const box = this.#canvas.getBoundingClientRect();
    this.#cell = event && [
      Math.min(Math.floor(((event.clientY - box.top) / box.height) * rows), rows - 1),
      Math.min(Math.floor(((event.clientX - box.left) / box.width) * columns), columns - 1),
    ];
    this.#read();
  }

  /** Arrow keys walk over the tokens as the pointer does. */
  #step(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const lattice = this.#picture && grid(this.#picture);
    if (!move || !lattice) return;
    event.preventDefault();
    const at = this.#cell ?? [0, 0].map((start, i) => start - move[i]);
    this.#cell = at.map((place, i) => Math.min(Math.max(place + move[i], 0), lattice[i] - 1));
    this.#read();
  }

  #read() {
    const columns = grid(this.#picture)[1];
    const [row, column] = this.#cell ?? [];
    byId("seen-cell").textContent = this.#cell
      ? `token ${(row * columns + column + 1).toLocaleString("en")} · row ${row + 1} · column ${column + 1}` : "";
    this.#draw();
  }
}

/** The facts of a picture: name and value of each. */
function described({ seen, origin }) {
  if (!seen) return [["", "Asking how the model sees it …"]];
  const grids = seen.chunks.map(({ grid: [t, h, w] }) => [...(t > 1 ? [t] : []), w, h].join(" × ")).join(" + ");
  const [w, h] = seen.used ?? [0, 0];
  const patches = seen.patch && w && h ? [["Patches", `${w / seen.patch} × ${h / seen.patch} of ${seen.patch} px`]] : [];
  return [
    ["Given", seen.size.join(" × ")],
    ...(w && h ? [["Seen", `${w} × ${h}`]] : []),
    ...patches,
    ["Tokens", `${grids} = ${seen.n_tokens.toLocaleString("en")}`],
    ["State", STATES[origin] ?? (seen.cached ? "cached" : "not encoded yet")],
  ];
}

/** [rows, columns] of the tokens that lie over the picture; null where they are cut in several ways. */
function grid({ seen }) {
  if (!seen || seen.chunks.length !== 1) return null;
  const [t, h, w] = seen.chunks[0].grid;
  return t === 1 && h * w > 1 ? [h, w] : null;
}

/** (width, height) to draw in: the model's pixels, or the picture's own where these are not known. */
function used({ seen }, image) {
  return seen?.used?.[0] ? seen.used : [image.naturalWidth || 1, image.naturalHeight || 1];
}

/** Lines between the cells of a lattice; fainter where they are close, none where they would hide the picture. */
function rule(context, width, height, rows, columns, colour, thickness) {
  const step = Math.min(width / columns, height / rows);
  if (step < LEAST_STEP) return;
  context.save();
  context.strokeStyle = colour;
  context.lineWidth = step < 16 ? Math.min(thickness, 0.75) : thickness;
  context.globalAlpha = Math.min(0.3 + step / 120, 0.65);
  context.beginPath();
  for (let i = 1; i < columns; i += 1) line(context, (i * width) / columns, 0, (i * width) / columns, height);
  for (let i = 1; i < rows; i += 1) line(context, 0, (i * height) / rows, width, (i * height) / rows);
  context.stroke();
  context.restore();
}

function line(context, x0, y0, x1, y1) {
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
}

/** Fill and frame one cell. */
function mark(context, width, height, [rows, columns], [row, column], colour) {
  const box = [(column * width) / columns, (row * height) / rows, width / columns, height / rows];
  context.save();
  context.fillStyle = context.strokeStyle = colour;
  context.lineWidth = 2.5;
  context.globalAlpha = 0.22;
  context.fillRect(...box);
  context.globalAlpha = 1;
  context.strokeRect(...box);
  context.restore();
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

// Markdown → nodes. HTML in it is text, pictures are links: nothing a model writes becomes an element or a request.
// Line breaks are kept, and indented text is no code: both are how models that read pages write.

import { copyButton, el } from "./dom.js";
import { inline } from "./inline.js";

const PAGE_LEVELS = 2; // headings of the page itself, above those of an answer
const DEEPEST = 12; // quotes and lists within each other; what is deeper is text
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +(?=\S)|\s*$)/;
const TASK = /^\[([ xX])\]\s+/;
const DIVIDER = /^:?-+:?$/;

/** Markdown that grows: of a longer text only the blocks that changed are made anew, so selections above them stay. */
export class Markdown {
  #blocks = []; // {source, node}

  constructor(root) {
    this.root = root;
  }

  /** Show a text; how many blocks stand before the last one, which may still grow. */
  show(text) {
    const blocks = parse(text.split(/\r\n|\r|\n/), 0);
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.#blocks[same]?.source) same += 1;
    for (const old of this.#blocks.splice(same)) old.node.remove();
    for (const { source, make } of blocks.slice(same)) {
      const node = make();
      this.root.append(node);
      this.#blocks.push({ source, node });
    }
    return Math.max(blocks.length - 1, 0);
  }

  /** The plain words of some of the blocks. */
  words(from, to) {
    return this.#blocks.slice(from, to).map(({ node }) => node.textContent).join("\n");
  }
}

/** A whole text at once. */
export function render(text) {
  return fragment(text.split(/\r\n|\r|\n/), 0);
}

function fragment(lines, depth) {
  const out = document.createDocumentFragment();
  out.append(...parse(lines, depth).map(({ make }) => make()));
  return out;
}

/** Lines → blocks: the text of each, and what makes its element. */
function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [end, make] = block(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join("\n"), make });
    at = end;
  }
  return blocks;
}

/** The block that begins at a line: the line behind it, and what makes its element. */
function block(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  if (HEADING.test(line)) {
    const level = Math.min(HEADING.exec(line)[1].length + PAGE_LEVELS, 6);
    const words = line.replace(HEADING, "").trim().replace(/ #+$/, "");
    return [at + 1, () => el(`h${level}`, {}, inline(words))];
  }
  if (RULE.test(line)) return [at + 1, () => el("hr")];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

const begins = (lines, at, depth) =>
  FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]) || isTable(lines, at) ||
  (depth < DEEPEST && (QUOTE.test(lines[at]) || ITEM.test(lines[at])));

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end, depth)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim().replace(/\\$/, "")).join("\n");
  return [end, () => el("p", {}, inline(text))];
}

/** Code between fences; while the closing one has not come yet, all that follows. */
function fence(lines, at) {
  const [, marks, info] = FENCE.exec(lines[at]);
  const indent = /^ */.exec(lines[at])[0].length;
  const closing = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const code = lines.slice(at + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent}}`), "")).join("\n");
  return [Math.min(end + 1, lines.length), () => codeBlock(code, info.trim().split(/\s/)[0])];
}

function codeBlock(code, language) {
  const head = el("div", { class: "code-head" }, el("span", {}, language), copyButton("Copy", () => code));
  return el("div", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, code)));
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => el("blockquote", {}, fragment(inside, depth + 1))];
}

/** Items of one kind that follow each other; what is indented as far as an item's text belongs to it. */
function list(lines, at, depth) {
  const kind = marker(lines[at]);
  const ordered = kind === "." || kind === ")";
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length && ITEM.test(lines[end]) && marker(lines[end]) === kind && !RULE.test(lines[end])) {
    const [inside, next] = item(lines, end, depth);
    loose ||= inside.slice(1).some((line) => !line.trim());
    items.push(inside);
    end = next;
    const gap = blanks(lines, end);
    if (gap > end && gap < lines.length && ITEM.test(lines[gap]) && marker(lines[gap]) === kind) {
      loose = true;
      end = gap;
    }
  }
  const start = parseInt(/\d+/.exec(lines[at])?.[0] ?? "1", 10);
  const attributes = { start: ordered && start !== 1 ? start : null };
  return [end, () => el(ordered ? "ol" : "ul", attributes, items.map((inside) => listItem(inside, loose, depth)))];
}

const marker = (line) => ITEM.exec(line)[2].at(-1);

function blanks(lines, at) {
  while (at < lines.length && !lines[at].trim()) at += 1;
  return at;
}

/** The lines of one item without their indentation, and the line behind it. */
function item(lines, at, depth) {
  const [head, indent, sign, space] = ITEM.exec(lines[at]);
  const width = indent.length + sign.length + Math.max(space.length, 1);
  const inside = [lines[at].slice(head.length)];
  let end = at + 1;
  while (end < lines.length) {
    const next = blanks(lines, end);
    if (next >= lines.length) break;
    const belongs = /^(?: {2,}|\t)/.test(lines[next]); // two suffice: models often indent so, whatever the marker's width
    if (!belongs && (next > end || begins(lines, next, depth))) break;
    for (; end <= next; end += 1) inside.push(outdented(lines[end], width));
  }
  return [inside, end];
}

function outdented(line, width) {
  const indent = /^ */.exec(line)[0].length;
  return line.startsWith("\t") ? line.slice(1) : line.slice(Math.min(width, indent));
}

function listItem(inside, loose, depth) {
  const task = TASK.exec(inside[0]);
  if (task) inside = [inside[0].slice(task[0].length), ...inside.slice(1)];
  const box = task && el("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", "aria-label": "done" });
  const content = fragment(inside, depth + 1);
  const first = content.firstElementChild;
  if (!loose && first?.tagName === "P") first.replaceWith(...first.childNodes);
  return el("li", task ? { class: "task" } : {}, box, content);
}

const isTable = (lines, at) =>
  at + 1 < lines.length && lines[at].includes("|") && /^[\s|:-]+$/.test(lines[at + 1]) &&
  cells(lines[at + 1]).every((cell) => DIVIDER.test(cell)) && cells(lines[at]).length === cells(lines[at + 1]).length;

function table(lines, at) {
  const aligned = cells(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null);
  let end = at + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end += 1;
  const row = (line, tag) => {
    const found = cells(line);
    return el("tr", {}, aligned.map((side, i) => el(tag, { class: side }, inline(found[i] ?? ""))));
  };
  const make = () => el("div", { class: "table", tabindex: "0" }, el("table", {},
    el("thead", {}, row(lines[at], "th")),
    el("tbody", {}, lines.slice(at + 2, end).map((line) => row(line, "td")))));
  return [end, make];
}

/** The cells of a row; a bar behind a backslash is part of its cell. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

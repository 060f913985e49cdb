// Markdown within a paragraph: emphasis, code, links. Time grows with the length of the text, whatever stands in it.

import { el } from "./dom.js";

const SCHEMES = ["http:", "https:", "mailto:"]; // links to others, such as javascript:, are shown as text
const MOST_OPEN = 24; // emphases open at once; deeper ones stay as they were typed
const PLAIN = /[^\\`*_~[\]!<&\nhH]+|[^]/y;
const CODE = /`+/g;
const TARGET = /\(\s*(<[^<>\n]*>|[^\s()<]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+(?:"[^"]{0,200}"|'[^']{0,200}'))?\s*\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy;
const BARE = /https?:\/\/[^\s<>"`]+/iy;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#39);/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };

/** A line of Markdown as nodes. Links within links are text. */
export function inline(text, inLink = false) {
  const out = new Inline(text, inLink);
  out.read();
  return out.root;
}

class Inline {
  constructor(text, inLink) {
    this.text = text;
    this.inLink = inLink;
    this.at = 0;
    this.root = document.createDocumentFragment();
    this.open = []; // runs of * _ ~ that may begin an emphasis
    this.code = codeSpans(text);
    this.brackets = brackets(text, this.code);
  }

  read() {
    while (this.at < this.text.length) this.special() || this.plain();
    this.root.normalize();
  }

  special() {
    switch (this.text[this.at]) {
      case "\\": return this.escape();
      case "`": return this.codeSpan();
      case "*": case "_": case "~": return this.run();
      case "!": return this.text[this.at + 1] === "[" && this.link(this.at + 1);
      case "[": return this.link(this.at);
      case "<": return this.auto(AUTOLINK, 1);
      case "h": case "H": return !/\w/.test(this.text[this.at - 1] ?? "") && this.auto(BARE, 0);
      case "&": return this.entity();
      case "\n": return this.put(el("br"), 1);
    }
    return false;
  }

  plain() {
    this.put(this.match(PLAIN)[0]);
  }

  put(node, length = node.length) {
    this.root.append(node);
    this.at += length;
    return true;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    return /[!-/:-@[-`{-~]/.test(next) && this.put(next, 2);
  }

  entity() {
    const found = this.match(ENTITY);
    return found !== null && this.put(ENTITIES[found[1]], found[0].length);
  }

  codeSpan() {
    const end = this.code.get(this.at);
    if (end === undefined) return this.put("`");
    const length = runLength(this.text, this.at);
    const inside = this.text.slice(this.at + length, end - length).replaceAll("\n", " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim();
    return this.put(el("code", {}, padded ? inside.slice(1, -1) : inside), end - this.at);
  }

  /** `[words](target)`; a picture `![…](…)` is a link too, as nothing may be fetched that was not asked for. */
  link(start) {
    const end = this.brackets.get(start);
    const isPicture = start > this.at;
    if (end === undefined || (this.inLink && !isPicture)) return false;
    TARGET.lastIndex = end + 1;
    const found = TARGET.exec(this.text);
    if (found === null) return false;
    const words = this.text.slice(start + 1, end) || (isPicture ? "picture" : "");
    if (this.inLink) return this.put(words, end + 1 + found[0].length - this.at);
    const target = found[1].replace(/^<|>$/g, "");
    return this.put(anchor(target, inline(words || target, true)), end + 1 + found[0].length - this.at);
  }

  auto(pattern, group) {
    const found = this.inLink ? null : this.match(pattern);
    if (found === null) return false;
    const target = group ? found[group] : trimmed(found[0]);
    return this.put(anchor(target, target), group ? found[0].length : target.length);
  }

  /** A run of * _ or ~~ ends what an earlier one began, or may begin something, or is text. */
  run() {
    const char = this.text[this.at];
    const length = runLength(this.text, this.at);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + length] ?? " ";
    const inWord = char === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after);
    if (length > 3 || (char === "~" && length !== 2) || inWord) return this.put(char.repeat(length));
    const node = document.createTextNode(char.repeat(length));
    this.put(node, length);
    if (!/\s/.test(before)) this.close(char, node);
    if (node.data && !/\s/.test(after) && this.open.length < MOST_OPEN) this.open.push({ char, node });
    return true;
  }

  close(char, node) {
    for (let i = this.open.length - 1; i >= 0 && node.data; i -= 1) {
      const opener = this.open[i];
      if (opener.char !== char) continue;
      const length = Math.min(opener.node.data.length, node.data.length, 2);
      this.open.length = i + 1;
      wrap(opener.node, node, char === "~" ? "del" : length === 2 ? "strong" : "em");
      opener.node.data = opener.node.data.slice(length);
      node.data = node.data.slice(length);
      if (opener.node.data) i += 1;
      else this.open.pop();
    }
  }
}

/** How often the character at a place stands there in a row. */
function runLength(text, at) {
  let length = 1;
  while (text[at + length] === text[at]) length += 1;
  return length;
}

/** Put what stands between two nodes into an element. */
function wrap(first, last, tag) {
  const element = el(tag);
  while (first.nextSibling !== last) element.append(first.nextSibling);
  first.after(element);
}

/** A link that tells the other side nothing; where the target is no address of the web, its words alone. */
function anchor(target, words) {
  let url = null;
  try {
    url = new URL(target);
  } catch {
    // not an address
  }
  if (url === null || !SCHEMES.includes(url.protocol)) return el("span", { title: target.slice(0, 200) }, words);
  return el("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, words);
}

/** A bare address without what ends the sentence it stands in. */
function trimmed(url) {
  let length = url.length;
  while (".,:;!?'*_~".includes(url[length - 1])) length -= 1;
  const short = url.slice(0, length);
  return short.endsWith(")") && !short.includes("(") ? short.slice(0, -1) : short;
}

/** Where each code span begins → where it ends. */
function codeSpans(text) {
  const runs = [...text.matchAll(CODE)].filter((run) => text[run.index - 1] !== "\\");
  const later = new Map(); // length → indices into runs, last first
  for (let i = runs.length - 1; i >= 0; i -= 1) {
    const same = later.get(runs[i][0].length) ?? [];
    same.push(i);
    later.set(runs[i][0].length, same);
  }
  const out = new Map();
  for (let i = 0; i < runs.length; i += 1) {
    const same = later.get(runs[i][0].length);
    while (same.length && same.at(-1) <= i) same.pop();
    if (!same.length) continue;
    const close = same.at(-1);
    out.set(runs[i].index, runs[close].index + runs[close][0].length);
    i = close;
  }
  return out;
}

/** Where each bracket opens → where it closes, code and escaped ones left out. */
function brackets(text, code) {
  const out = new Map();
  const open = [];
  for (let i = 0; i < text.length; i += 1) {
    if (code.has(i)) i = code.get(i) - 1;
    else if (text[i] === "\\") i += 1;
    else if (text[i] === "[") open.push(i);
    else if (text[i] === "]" && open.length) out.set(open.pop(), i);
  }
  return out;
}

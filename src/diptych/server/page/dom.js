// Elements are built here and nowhere else: strings become text or attributes, never markup.

/** An element. A function among `attributes` listens to the event of that name; null and false leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Put text on the clipboard, also where the page came over plain HTTP and browsers hide their clipboard from it. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!copied) throw new Error("the browser did not let the page copy");
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "quiet", click: act }, label);
  async function act() {
    button.textContent = await copy(text()).then(() => "Copied", () => "Could not copy");
    setTimeout(() => (button.textContent = label), 1500);
  }
  return button;
}

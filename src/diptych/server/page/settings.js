// The settings panel. What is set stays in this tab; the API key goes nowhere but to this server.

import { byId, el } from "./dom.js";

const STORE = "diptych.settings";
const NUMBERS = ["temperature", "max_tokens", "seed"];
const FIELDS = ["system", ...NUMBERS, "more", "key"];

export class Settings {
  #dialog = byId("settings");
  #form = byId("settings-form");
  #values = stored();

  constructor() {
    this.#form.addEventListener("submit", (event) => this.#save(event));
    byId("open-settings").addEventListener("click", () => this.open());
    byId("cancel-settings").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => byId("question").focus());
  }

  get key() {
    return this.#values.key ?? "";
  }

  get system() {
    return this.#values.system ?? "";
  }

  /** Limits of media among the further fields, which hold for previews too. */
  get media() {
    return this.#more.media;
  }

  /** The fields of a request that were set. */
  get fields() {
    const numbers = NUMBERS.filter((name) => this.#values[name]).map((name) => [name, Number(this.#values[name])]);
    return { ...Object.fromEntries(numbers), ...this.#more };
  }

  /** Show the panel, at a field where one is named. */
  open(field = "system") {
    for (const name of FIELDS) this.#form.elements[name].value = this.#values[name] ?? "";
    this.#tell("");
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#form.elements[field].focus();
  }

  get #more() {
    return this.#values.more ? JSON.parse(this.#values.more) : {};
  }

  #save(event) {
    event.preventDefault();
    const values = Object.fromEntries(FIELDS.map((name) => [name, this.#form.elements[name].value.trim()]));
    const wrong = fault(values.more);
    if (wrong) {
      this.#tell(wrong);
      return this.#form.elements.more.focus();
    }
    this.#values = values;
    sessionStorage.setItem(STORE, JSON.stringify(values));
    this.#dialog.close();
    this.#dialog.dispatchEvent(new Event("saved"));
  }

  #tell(text) {
    byId("settings-fault").replaceChildren(...(text ? [el("p", {}, text)] : []));
  }
}

/** What is wrong with further fields; "" when nothing is. */
function fault(text) {
  if (!text.trim()) return "";
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? "" : "More fields must be a JSON object, such as {\"top_k\": 20}.";
  } catch (error) {
    return `More fields are not JSON: ${error.message}`;
  }
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

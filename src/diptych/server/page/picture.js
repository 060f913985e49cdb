// A picture the user gave: its file, unchanged, and what the server says of it.

import { preview } from "./api.js";
import { el } from "./dom.js";

export class Picture extends EventTarget {
  /** `file` is a File or Blob of the user's. Its bytes are sent as they are. */
  constructor(file) {
    super();
    this.name = file.name || "pasted picture";
    this.thumb = URL.createObjectURL(file);
    this.data = dataUrl(file);
    this.seen = null; // what /v1/media/preview says
    this.error = null; // or why it cannot say it
    this.origin = null; // where its rows came from in the latest answer
  }

  /** Ask how the model sees it; `change` is dispatched when that is known. */
  async look(settings) {
    try {
      this.seen = await preview(await this.data, settings.media, settings.key);
      this.error = null;
    } catch (error) {
      this.error = error;
    }
    this.changed();
  }

  /** Say what became of it in an answer. */
  used(origin) {
    this.origin = origin;
    this.changed();
  }

  /** Its content part of a message. */
  async part() {
    return { type: "image_url", image_url: { url: await this.data } };
  }

  /** A small picture, or its name where the browser cannot show it. */
  thumbnail() {
    const named = (event) => event.target.replaceWith(el("span", {}, this.name));
    return el("img", { src: this.thumb, alt: this.name, error: named });
  }

  forget() {
    URL.revokeObjectURL(this.thumb);
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** The pictures among files, and the names of those that are none. */
export function sorted(files) {
  const all = [...files];
  const is = (file) => file.type.startsWith("image/");
  return { pictures: all.filter(is), others: all.filter((file) => !is(file)).map((file) => file.name) };
}

function dataUrl(file) {
  const reader = new FileReader();
  const done = new Promise((resolve, reject) => {
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name || "the picture"} cannot be read: ${reader.error.message}`));
  });
  reader.readAsDataURL(file);
  return done;
}

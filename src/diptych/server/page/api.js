// What the page asks of the server: the model's properties, previews of pictures, and streamed answers.

/** An error in the server's own words. `status` is 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** What is served: `/props`, or ApiError. */
export async function props(key) {
  return (await asked("props", { headers: headers(key) })).json();
}

/** How the model sees a picture given as a data URL, under the `media` limits of the settings. */
export async function preview(url, media, key) {
  return (await asked("v1/media/preview", body({ image_url: { url }, ...(media ? { media } : {}) }, key))).json();
}

/** The chunks of a streamed answer. Aborting the signal hangs up, which ends the answer on the server too. */
export async function* stream(request, key, signal) {
  const whole = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await asked("v1/chat/completions", { ...body(whole, key), signal });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "the server gave up on the answer", chunk.error.code);
    finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!finished) throw new ApiError("The connection ended before the answer did. Try again.");
}

/** The data of each server-sent event; comments, which keep the line open, are passed over. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

async function asked(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(message, response.status);
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is not JSON.");
  }
}

function body(value, key) {
  return { method: "POST", headers: { "Content-Type": "application/json", ...headers(key) }, body: JSON.stringify(value) };
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

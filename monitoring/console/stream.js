// Server-sent events over fetch: parsing, silence detection, reconnect with back-off.
import { openEvents } from "./api.js";

const SILENCE_MS = 25_000; // the server sends a comment every 10 s
const CONNECT_MS = 5000;
const BACKOFF_MS = [500, 1000, 2000, 5000];

/** Split a buffer into complete events. Returns [{event, data, id}], rest. */
export function parseEvents(buffer) {
  const blocks = buffer.replaceAll("\r\n", "\n").split("\n\n");
  const rest = blocks.pop();
  const events = blocks.map((block) => {
    const event = { event: "message", data: "", id: "" };
    for (const line of block.split("\n")) {
      const cut = line.indexOf(":");
      if (cut <= 0) continue; // a comment or a blank
      const field = line.slice(0, cut);
      const value = line.slice(cut + 1).replace(/^ /, "");
      if (field === "data") event.data += (event.data ? "\n" : "") + value;
      else if (field === "event" || field === "id") event[field] = value;
    }
    return event;
  });
  return [events.filter(({ data }) => data !== ""), rest];
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });

/** Follow the stream until `signal` aborts. Calls onEvent(event), onState("open" | "connecting", error?). */
export async function follow(signal, onEvent, onState) {
  let attempt = 0;
  let lastId = "";
  while (!signal.aborted) {
    const attemptAbort = new AbortController();
    const stop = () => attemptAbort.abort();
    signal.addEventListener("abort", stop, { once: true });
    let watchdog = setTimeout(stop, CONNECT_MS);
    try {
      const body = await openEvents(attemptAbort.signal, lastId);
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      onState("open");
      attempt = 0;
      let buffer = "";
      for (;;) {
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE_MS);
        const { value, done } = await reader.read();
        if (done) break;
        const [events, rest] = parseEvents(buffer + value);
        buffer = rest;
        for (const event of events) {
          if (event.id) lastId = event.id;
          onEvent(event);
        }
      }
      onState("connecting");
    } catch (error) {
      if (!signal.aborted) onState("connecting", error);
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener("abort", stop);
    }
    if (!signal.aborted) await pause(BACKOFF_MS[Math.min(attempt++, BACKOFF_MS.length - 1)], signal);
  }
}

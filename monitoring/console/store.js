// One state object, replaced and never mutated; components subscribe to all of it.
import { useEffect, useState } from "./html.js";

/** Older than this, status is shown as stale. It is polled every 3 s, so two polls have failed by then. */
export const STALE_MS = 10_000;

let state = {
  status: null, //         GET status
  statusAt: 0, //          when it came, ms; 0 = never
  statusError: null,
  stream: "connecting", // "open" | "connecting"
  verdicts: {}, //         model → {data, at, error}
  series: {}, //           model → {data, at, error}
  calibration: {}, //      model → {data, at, error}
  audit: { entries: [], at: 0, error: null, complete: false },
  selected: null, //       model on view
  windowS: 600, //         span of the charts
  paused: false, //        the tab is hidden: nothing is asked for
  needToken: null, //      the API's words when it answered 401
  dialog: null, //         {kind, …} of the open dialog
  notices: [], //          [{id, level, title, text}]
};

const listeners = new Set();

export const get = () => state;

export function set(patch) {
  state = { ...state, ...(typeof patch === "function" ? patch(state) : patch) };
  for (const listener of listeners) listener();
}

/** Re-render the calling component on every change; returns the state. */
export function useStore() {
  const [, bump] = useState(0);
  useEffect(() => {
    const listener = () => bump((n) => n + 1);
    listeners.add(listener);
    listener();
    return () => listeners.delete(listener);
  }, []);
  return state;
}

/** The current time, renewed every second: for ages. */
export function useNow() {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}

export const openDialog = (dialog) => set({ dialog });
export const closeDialog = () => set({ dialog: null });

let noticeId = 0;
export function notify(level, title, text = "") {
  const id = ++noticeId;
  set(({ notices }) => ({ notices: [...notices.slice(-2), { id, level, title, text }] }));
  if (level === "good") setTimeout(() => dismiss(id), 12_000);
}
export const dismiss = (id) => set(({ notices }) => ({ notices: notices.filter((notice) => notice.id !== id) }));

/** What the header says about the link to the control plane. */
export function connection({ status, statusAt, statusError, stream, needToken }, now) {
  const ageMs = statusAt ? now - statusAt : null;
  if (needToken) return { level: "bad", word: "Not signed in", stale: Boolean(status), ageMs };
  if (!status) return { level: statusError ? "bad" : "idle", word: statusError ? "Unreachable" : "Connecting", stale: false, ageMs };
  if (statusError || ageMs > STALE_MS) return { level: "bad", word: "Stale", stale: true, ageMs };
  if (stream !== "open") return { level: "warn", word: "Live by polling", stale: false, ageMs };
  return { level: "good", word: "Live", stale: false, ageMs };
}

// Keeps the store in step with the control plane: events are hints, polling is the safety net.
import { api, token } from "./api.js";
import { get, set } from "./store.js";
import { follow } from "./stream.js";

const SERIES_MS = 2000;
const STATUS_MS = 3000;
const VERDICTS_MS = 5000;
const AUDIT_MS = 15_000;
const CALIBRATION_MS = 15_000;
const AUDIT_PAGE = 100;

/** Run `work` now, or as soon as the last run has ended and `gapMs` have passed; never twice at once. */
function coalesce(work, gapMs) {
  let running = false;
  let again = false;
  return async function run() {
    if (running) { again = true; return; }
    running = true;
    try {
      await work();
    } finally {
      setTimeout(() => {
        running = false;
        if (again) { again = false; run(); }
      }, gapMs);
    }
  };
}

function failed(error) {
  if (error.status === 401) askForToken(error);
}

function askForToken({ message }) {
  set({ needToken: message });
  stop?.(); // until a token is entered, asking again is pointless
}

const refreshStatus = coalesce(async () => {
  try {
    const status = await api.status();
    const names = (status.models ?? []).map(({ model }) => model);
    set(({ selected }) => ({
      status, statusAt: Date.now(), statusError: null, needToken: null,
      selected: names.includes(selected) ? selected : names[0] ?? null,
    }));
  } catch (error) {
    failed(error);
    // After too many failures of this address 429 stands for 401, and a valid token is let in.
    if (error.status === 429 && !(get().status && token.get())) askForToken(error);
    set({ statusError: error.message });
  }
}, 300);

async function load(slot, model, call) {
  try {
    const data = await call();
    set((state) => ({ [slot]: { ...state[slot], [model]: { data, at: Date.now(), error: null } } }));
  } catch (error) {
    failed(error);
    set((state) => ({ [slot]: { ...state[slot], [model]: { data: null, at: 0, ...state[slot][model], error: error.message } } }));
  }
}

const refreshSeries = coalesce(async () => {
  const { selected, windowS } = get();
  if (selected) await load("series", selected, () => api.series(selected, windowS));
}, 500);

const refreshCalibration = coalesce(async () => {
  const { selected } = get();
  if (selected) await load("calibration", selected, () => api.calibration(selected));
}, 1000);

const refreshVerdicts = coalesce(async () => {
  const models = (get().status?.models ?? []).map(({ model }) => model);
  await Promise.all(models.map((model) => load("verdicts", model, () => api.verdicts(model))));
}, 500);

const newestFirst = (entries) => [...new Map(entries.map((entry) => [entry.seq, entry])).values()].sort((a, b) => b.seq - a.seq);

const refreshAudit = coalesce(async () => {
  try {
    const { entries = [] } = await api.audit({ limit: AUDIT_PAGE });
    set(({ audit }) => {
      // Unless the newest that is loaded is in the page, there is a gap that would hide entries, or this is another
      // trail, of a copy that was restored: start over then.
      const newest = audit.entries[0];
      const joins = newest === undefined || entries.some(({ seq, hash }) => seq === newest.seq && hash === newest.hash);
      return {
        audit: {
          entries: joins ? newestFirst([...audit.entries, ...entries]) : entries,
          at: Date.now(), error: null,
          complete: entries.length < AUDIT_PAGE || (joins && audit.complete),
        },
      };
    });
  } catch (error) {
    failed(error);
    set(({ audit }) => ({ audit: { ...audit, error: error.message } }));
  }
}, 300);

/** One page further back. */
export async function loadOlderAudit() {
  const { entries: known } = get().audit;
  const { entries = [] } = await api.audit({ limit: AUDIT_PAGE, before: known.at(-1)?.seq ?? null });
  set(({ audit }) => (audit.entries.at(-1)?.hash !== known.at(-1)?.hash ? {} : { // the trail was started over meanwhile
    audit: { ...audit, entries: newestFirst([...audit.entries, ...entries]), complete: entries.length < AUDIT_PAGE },
  }));
}

function onEvent({ event, data }) {
  if (event === "snapshot") refreshStatus();
  if (event === "audit") { refreshAudit(); refreshStatus(); }
  if (event === "verdicts") {
    const heard = JSON.parse(data);
    set(({ verdicts }) => ({ verdicts: { ...verdicts, [heard.model]: { data: heard, at: Date.now(), error: null } } }));
  }
}

export function refreshAll() {
  refreshStatus().then(() => { refreshSeries(); refreshVerdicts(); refreshCalibration(); });
  refreshAudit();
}

export function select(selected) {
  set({ selected });
  refreshSeries();
  refreshCalibration();
}

export function setWindow(windowS) {
  set({ windowS });
  refreshSeries();
}

let stop = null;

function start() {
  if (stop) return;
  const abort = new AbortController();
  const timers = [
    setInterval(refreshSeries, SERIES_MS),
    setInterval(refreshStatus, STATUS_MS),
    setInterval(refreshVerdicts, VERDICTS_MS),
    setInterval(refreshAudit, AUDIT_MS),
    setInterval(refreshCalibration, CALIBRATION_MS),
  ];
  stop = () => { abort.abort(); timers.forEach(clearInterval); stop = null; };
  refreshAll();
  follow(abort.signal, onEvent, (stream, error) => {
    if (error) failed(error);
    set({ stream });
  });
}

/** Begin; pauses while the tab is hidden, so that a forgotten tab costs nothing. */
export function run() {
  const heed = () => {
    set({ paused: document.hidden });
    if (document.hidden) stop?.();
    else start();
  };
  document.addEventListener("visibilitychange", heed);
  heed();
}

/** Drop the connection and begin again, after the token changed. */
export function restart() {
  stop?.();
  start();
}

// Small shared pieces: icons, pills, times, panels. Every level has a shape and a word beside its colour.
import { html } from "../html.js";
import { dateTime, duration, sameDay, timeOfDay, toMillis, utc } from "../format.js";
import { useNow } from "../store.js";

const PATHS = {
  check: "M3 8.5 6.5 12 13 4.5",
  cross: "M4 4l8 8M12 4l-8 8",
  warning: "M8 2.2 14.6 13.8H1.4ZM8 6.4v3.4M8 11.9v.2",
  empty: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 1 0 0-11Z",
  half: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 1 0 0-11ZM8 5v3l2 1.5",
  stop: "M5.2 1.8h5.6l3.4 3.4v5.6l-3.4 3.4H5.2L1.8 10.8V5.2ZM5 8h6",
  back: "M6.5 3.5 3 7l3.5 3.5M3.5 7H9a4 4 0 0 1 0 6H7",
  close: "M4 4l8 8M12 4l-8 8",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${PATHS[name] ?? PATHS.empty} /></svg>`;

export const Pill = ({ level, icon, title, children }) =>
  html`<span class="pill ${level}" title=${title}><${Icon} name=${icon} />${children}</span>`;

/** A line swatch in the variant's colour and dash pattern. */
export const Swatch = ({ slot }) => html`<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><path class="line v${slot}" d="M0 4h22" /></svg>`;

/** Local time, UTC and the date on hover; the date is shown when it is not today. */
export function Time({ at, now = Date.now() }) {
  const ms = toMillis(at);
  if (ms === null) return html`<span>–</span>`;
  return html`<time datetime=${new Date(ms).toISOString()} title=${utc(ms)}>${sameDay(ms, now) ? timeOfDay(ms) : dateTime(ms)}</time>`;
}

/** "12 s ago", renewed each second. */
export function Age({ at, suffix = " ago" }) {
  const now = useNow();
  const ms = toMillis(at);
  if (ms === null) return html`<span>–</span>`;
  const text = now - ms < 2000 ? "now" : duration((now - ms) / 1000) + suffix;
  return html`<time datetime=${new Date(ms).toISOString()} title="${dateTime(ms)} local, ${utc(ms)}">${text}</time>`;
}

export const Panel = ({ title, id, aside, tone = "", children }) => html`
  <section class="panel ${tone}" aria-labelledby=${id}>
    <header class="panel-head"><h2 id=${id}>${title}</h2>${aside && html`<div class="panel-aside">${aside}</div>`}</header>
    ${children}
  </section>`;

export const Empty = ({ children }) => html`<p class="empty"><${Icon} name="empty" />${children}</p>`;

export const Warn = ({ level = "warn", children }) =>
  html`<p class="callout ${level}"><${Icon} name=${level === "bad" ? "cross" : "warning"} /><span>${children}</span></p>`;

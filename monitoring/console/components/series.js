// Live charts of one model: request rate, latency, agreement with the teacher, errors.
import { html, useMemo, useState } from "../html.js";
import { duration, isNumber, number, ratio } from "../format.js";
import { useNow } from "../store.js";
import { WHOLE, slotOf, usable } from "../derive.js";
import { setWindow } from "../sync.js";
import { LineChart } from "../charts.js";
import { Empty, Panel, Pill, Warn } from "./parts.js";

const WINDOWS = [[120, "2 min"], [300, "5 min"], [600, "10 min"], [900, "15 min"]];
const LATE_MS = 10_000;

const milli = (value) => (value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`);
const CHARTS = [
  { key: "rps", title: "Requests per second", format: (value) => number(value), keep: "mean", scale: { least: 1 } },
  { key: "p50_ms", title: "Latency p50", format: milli, keep: "max", scale: { least: 1 } },
  { key: "p99_ms", title: "Latency p99", format: milli, keep: "max", scale: { least: 1 } },
  {
    key: "agreement", title: "Agreement with the teacher", hint: "Mean over the seconds of the last minute in which pairs were scored",
    smooth: 60, format: (value) => ratio(value), keep: "mean", scale: { zero: false, ceiling: 1, least: 0.04 },
  },
  { key: "error_ratio", title: "Error ratio", format: (value) => ratio(value), keep: "max", scale: { floor: 0, least: 0.01 } },
];

/** The mean of the numbers among the last `span` values; null where there is none. */
export function trailingMean(values, span) {
  let sum = 0, n = 0;
  return values.map((value, i) => {
    if (isNumber(value)) { sum += value; n++; }
    const gone = values[i - span];
    if (isNumber(gone)) { sum -= gone; n--; }
    return n ? sum / n : null;
  });
}

const WindowChoice = ({ windowS }) => html`<div class="segmented" role="group" aria-label="Time span of the charts">
  ${WINDOWS.map(([seconds, label]) => html`<button key=${seconds} aria-pressed=${seconds === windowS} onClick=${() => setWindow(seconds)}>${label}</button>`)}
</div>`;

function Charts({ model, slot, windowS }) {
  const [cursor, setCursor] = useState(null);
  const { at = [], variants = {} } = slot.data;
  const charts = useMemo(() => CHARTS.map((chart) => ({
    ...chart,
    lines: model.variants
      .filter(({ name }) => variants[name]?.[chart.key]?.some(isNumber))
      .map(({ name }) => {
        const values = variants[name][chart.key];
        return { name, slot: slotOf(model, name), values: chart.smooth ? trailingMean(values, chart.smooth) : values };
      }),
  })), [slot.data, model]);
  return html`<div class="charts">${charts.map((chart) => html`<${LineChart} ...${chart} key=${chart.key} at=${at}
    endMs=${slot.at} windowS=${windowS} cursor=${cursor} onCursor=${setCursor} />`)}</div>`;
}

export function Series({ model, slot, windowS }) {
  const now = useNow();
  const aside = html`<${WindowChoice} windowS=${windowS} />`;
  const data = slot?.data;
  const lastMs = data?.at?.length ? data.at.at(-1) * 1000 : null;
  const silent = lastMs === null ? null : now - lastMs;
  const late = Boolean(slot) && (!usable(slot, now) || (silent !== null && silent > LATE_MS));
  return html`<${Panel} title="Live" id="live-${model.model}" aside=${aside} tone=${late ? "stale" : ""}>
    ${late && html`<${Warn} level="bad"><b>These charts are not current.</b> ${slot.error ? `${slot.error} ` : ""}
      ${silent === null ? "" : `The last sample is ${duration(silent / 1000)} old.`}<//>`}
    ${!data && !slot?.error && html`<${Empty}>Waiting for the first samples.<//>`}
    ${data && lastMs === null && html`<${Empty}>No samples: the monitor has seen no requests in this time span.<//>`}
    ${data && lastMs !== null && html`<${Charts} model=${model} slot=${slot} windowS=${windowS} />`}
  <//>`;
}

// ---------------------------------------------------------------- service level objectives

const sloTarget = (slo) =>
  `${isNumber(slo.objective) ? number(slo.objective * 100, 5) : "?"} %${isNumber(slo.threshold_ms) ? ` within ${number(slo.threshold_ms)} ms` : ""}`;

const alertText = ({ severity, factor, long_s: long, short_s: short }) =>
  `${severity}: over ${number(factor)}× for ${duration(long).replace(" 0 min", "")} and ${duration(short).replace(" 0 min", "")}`;

function Slo({ slo }) {
  const known = isNumber(slo.ratio);
  const budget = known ? slo.budget_remaining : null;
  const low = isNumber(budget) && budget < 0.1;
  const fill = Math.min(1, Math.max(0, budget ?? 0));
  const burns = Object.entries(slo.burn_rates ?? {});
  return html`<li class="slo">
    <div class="slo-head"><b>${slo.name}</b>${slo.variant !== WHOLE && html`<span>${slo.variant}</span>`}
      <span class="muted">aim ${sloTarget(slo)}</span><span class="slo-now">${known ? html`now <b>${ratio(slo.ratio, 3)}</b>` : "no events yet"}</span></div>
    ${(slo.alerts ?? []).map((alert) => html`<p class="slo-alert">
      <${Pill} level=${alert.severity === "page" ? "bad" : "warn"} icon="warning">${alertText(alert)}<//></p>`)}
    <div class="slo-budget">
      <span>Error budget left</span><b>${isNumber(budget) ? ratio(budget) : "no data"}</b>
      ${low && html`<span class="bad-text">${budget <= 0 ? "spent" : "nearly spent"}</span>`}
      <svg class="budget" role="meter" aria-label="Error budget left" aria-valuemin="0" aria-valuemax="1" aria-valuenow=${fill}>
        <rect class="track" width="100%" height="6" rx="3" />
        ${fill > 0 && html`<rect class="level ${low ? "bad" : "info"}" width="${fill * 100}%" height="6" rx="3" />`}
      </svg>
    </div>
    <div class="burns">${burns.length > 0 && "Burn rate:"}
      ${burns.map(([window, rate]) => html`<span key=${window}>${window} ${" "}
        <b class=${rate >= 6 ? "bad-text" : ""}>${isNumber(rate) ? `${number(rate, 2)}×` : "no data"}</b></span>`)}</div>
  </li>`;
}

export function Slos({ model, slot }) {
  const now = useNow();
  const slos = slot?.data?.slo ?? [];
  const late = Boolean(slot) && !usable(slot, now);
  return html`<${Panel} title="Objectives" id="slo-${model.model}" tone=${late ? "stale" : ""}>
    ${late && html`<${Warn} level="bad"><b>These numbers are not current.</b> ${slot.error ?? ""}
      ${slot.at > 0 ? ` They came ${duration((now - slot.at) / 1000)} ago.` : ""}<//>`}
    ${slos.length > 0 && html`<ul class="slos">${slos.map((slo) => html`<${Slo} key="${slo.name}/${slo.variant}" slo=${slo} />`)}</ul>`}
    ${slos.length === 0 && html`<${Empty}>No objective is reported for this model.<//>`}
  <//>`;
}

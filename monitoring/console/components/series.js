// Live charts of one model: request rate, latency, agreement with the teacher, errors.
import { html, useMemo, useState } from "../html.js";
import { duration, isNumber, milliseconds, number, ratio } from "../format.js";
import { useNow } from "../store.js";
import { slotOf } from "../derive.js";
import { setWindow } from "../sync.js";
import { LineChart } from "../charts.js";
import { Empty, Panel, Warn } from "./parts.js";

const WINDOWS = [[300, "5 min"], [600, "10 min"], [1800, "30 min"], [3600, "1 h"]];
const LATE_MS = 10_000;

const milli = (value) => (value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`);
const CHARTS = [
  { key: "rps", title: "Requests per second", format: (value) => number(value), keep: "mean", scale: { least: 1 } },
  { key: "p50_ms", title: "Latency p50", format: milli, keep: "max", scale: { least: 1 } },
  { key: "p99_ms", title: "Latency p99", format: milli, keep: "max", scale: { least: 1 } },
  { key: "agreement", title: "Agreement with the teacher", format: (value) => ratio(value), keep: "min", scale: { zero: false, ceiling: 1, least: 0.04 } },
  { key: "error_ratio", title: "Error ratio", format: (value) => ratio(value), keep: "max", scale: { floor: 0, least: 0.01 } },
];

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
      .map(({ name }) => ({ name, slot: slotOf(model, name), values: variants[name][chart.key] })),
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
  const late = Boolean(slot?.error) || (silent !== null && silent > LATE_MS);
  return html`<${Panel} title="Live" id="live-${model.model}" aside=${aside} tone=${late ? "stale" : ""}>
    ${late && html`<${Warn} level="bad"><b>These charts are not current.</b> ${slot.error ? `${slot.error} ` : ""}
      ${silent === null ? "" : `The last sample is ${duration(silent / 1000)} old.`}<//>`}
    ${!data && !slot?.error && html`<${Empty}>Waiting for the first samples.<//>`}
    ${data && lastMs === null && html`<${Empty}>No samples: the monitor has seen no requests in this time span.<//>`}
    ${data && lastMs !== null && html`<${Charts} model=${model} slot=${slot} windowS=${windowS} />`}
  <//>`;
}

// ---------------------------------------------------------------- service level objectives

const budgetOf = (slo) => slo.error_budget_remaining_ratio ?? slo.budget_remaining_ratio ?? slo.error_budget_remaining ?? null;

/** Burn rates as [window, rate], from {"1h": 2.1}, [{window, rate}] or one number. */
function burns(slo) {
  const burn = slo.burn_rate ?? slo.burn_rates ?? slo.burn;
  if (isNumber(burn)) return [["now", burn]];
  if (Array.isArray(burn)) return burn.map(({ window, window_s: seconds, rate, burn_rate: value }) => [window ?? duration(seconds), rate ?? value]);
  return burn && typeof burn === "object" ? Object.entries(burn) : [];
}

const sloTarget = (slo) =>
  [isNumber(slo.objective) && `${number(slo.objective * 100, 5)} %`, isNumber(slo.threshold_ms) && `within ${milliseconds(slo.threshold_ms)}`,
    isNumber(slo.window_s) && `over ${duration(slo.window_s).replace(" 0 h", "")}`].filter(Boolean).join(" ");

function Slo({ slo }) {
  const budget = budgetOf(slo);
  const low = isNumber(budget) && budget < 0.1;
  return html`<li class="slo"><div class="slo-head"><b>${slo.name}</b>${slo.variant && html` <span>${slo.variant}</span>`} <span class="muted">${sloTarget(slo)}</span></div>
    <div class="slo-budget"><span>Error budget left</span><b>${isNumber(budget) ? ratio(budget) : "no data"}</b>${low && html`<span class="bad-text">${budget <= 0 ? "spent" : "nearly spent"}</span>`}
      <svg class="budget" role="meter" aria-label="Error budget left" aria-valuemin="0" aria-valuemax="1" aria-valuenow=${Math.min(1, Math.max(0, budget ?? 0))}>
        <rect class="track" width="100%" height="6" rx="3" />${isNumber(budget) && budget > 0 && html`<rect class="level ${low ? "bad" : "info"}" width="${Math.min(1, budget) * 100}%" height="6" rx="3" />`}</svg></div>
    <div class="burns">${burns(slo).map(([window, rate]) => html`<span key=${window}>burn ${window} <b class=${rate >= 6 ? "bad-text" : ""}>${isNumber(rate) ? `${number(rate, 2)}×` : "no data"}</b></span>`)}</div>
  </li>`;
}

export function Slos({ model, slot }) {
  const slos = slot?.data?.slo ?? [];
  return html`<${Panel} title="Objectives" id="slo-${model.model}">
    ${slos.length ? html`<ul class="slos">${slos.map((slo) => html`<${Slo} key="${slo.name}/${slo.variant ?? ""}" slo=${slo} />`)}</ul>` : html`<${Empty}>No objective is reported for this model.<//>`}
  <//>`;
}

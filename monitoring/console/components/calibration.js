// Reliability diagrams: how often each variant is right for how sure it is, by labels or by the teacher.
import { html, useState } from "../html.js";
import { count, number, ratio } from "../format.js";
import { slotOf } from "../derive.js";
import { Empty, Panel, Swatch, Warn } from "./parts.js";

const SIZE = 200;
const PAD = { left: 34, right: 14, top: 8, bottom: 30 };
const TICKS = [0, 0.25, 0.5, 0.75, 1];
const JUDGES = [["labels", "Labels"], ["teacher", "Teacher"]];

const x = (value) => PAD.left + value * (SIZE - PAD.left - PAD.right);
const y = (value) => PAD.top + (1 - value) * (SIZE - PAD.top - PAD.bottom);
const percent = (value) => `${Math.round(value * 100)}%`;

function Diagram({ report, slot }) {
  const { bins } = report;
  const known = bins.filter(({ expected }) => expected !== null);
  const spoken = bins.map((bin) => `${percent(bin.confidence)} sure: ${ratio(bin.outcome)} of ${bin.answers}`).join("; ");
  return html`<svg class="reliability" viewBox="0 0 ${SIZE} ${SIZE}" role="img"
      aria-label="Reliability of ${report.variant}. ${spoken}">
    ${TICKS.map((tick) => html`<g key=${tick}>
      <path class="grid" d="M${x(tick)} ${y(0)}V${y(1)}M${x(0)} ${y(tick)}H${x(1)}" />
      <text class="tick" x=${x(tick)} y=${y(0) + 12} text-anchor="middle">${percent(tick)}</text>
      <text class="tick" x=${x(0) - 4} y=${y(tick)} dy="0.35em" text-anchor="end">${percent(tick)}</text></g>`)}
    <text class="tick" x=${(x(0) + x(1)) / 2} y=${SIZE - 4} text-anchor="middle">how sure it was</text>
    <path class="ideal" d="M${x(0)} ${y(0)}L${x(1)} ${y(1)}" />
    ${known.length > 1 && html`<path class="built" d="M${known.map((bin) => `${x(bin.confidence).toFixed(1)} ${y(bin.expected).toFixed(1)}`).join("L")}">
      <title>What the same confidence was worth when the variant was built</title></path>`}
    ${bins.map((bin) => html`<g key=${bin.low} class="point">
      <path class="line v${slot}" d="M${x(bin.confidence)} ${y(bin.outcome_low)}V${y(bin.outcome_high)}" />
      <circle class="fill v${slot}" cx=${x(bin.confidence)} cy=${y(bin.outcome)} r="3" />
      <title>${percent(bin.low)} to ${percent(bin.high)} sure: ${count(bin.answers)} answers, mean ${ratio(bin.confidence)};
came of it ${ratio(bin.outcome)} (95 %: ${ratio(bin.outcome_low)} to ${ratio(bin.outcome_high)})</title></g>`)}
  </svg>`;
}

function Reliability({ report, model, coverage }) {
  const { brier, temperature } = report;
  return html`<figure class="calibration">
    <figcaption><span class="variant-name"><${Swatch} slot=${slotOf(model, report.variant)} />${report.variant}</span>
      <span class="muted">${count(report.answers)} answers</span></figcaption>
    <${Diagram} report=${report} slot=${slotOf(model, report.variant)} />
    <dl class="numbers">
      <div title="Expected calibration error without what chance alone would show of it"><dt>calibration error</dt>
        <dd>${number(report.ece_debiased, 3)} <small class="muted">${number(report.ece_low, 3)} to ${number(report.ece_high, 3)}</small></dd></div>
      ${brier && html`<div title="Reliability ${number(brier.reliability, 3)}, resolution ${number(brier.resolution, 3)}, uncertainty ${number(brier.uncertainty, 3)}">
        <dt>Brier score</dt><dd>${number(brier.score, 3)}</dd></div>`}
      ${report.classes.map((row) => html`<div key=${row.label}><dt>${row.label}</dt>
        <dd>${ratio(row.confidence)} sure, ${ratio(row.outcome)} came of it</dd></div>`)}
      ${coverage && report.reference === "labels" && html`<div><dt>labelled</dt>
        <dd>${count(coverage.labels)} of ${count(coverage.answers)} answers</dd></div>`}
    </dl>
    ${temperature && html`<p class="muted">A temperature of <b>${number(temperature.suggested, 3)}</b> would fit better than
      ${" "}${number(temperature.current, 3)}; it is not applied.</p>`}
  </figure>`;
}

export function Calibration({ model, slot }) {
  const [chosen, choose] = useState(null);
  const reports = slot?.data?.reports ?? [];
  const judge = chosen ?? (reports.some(({ reference }) => reference === "labels") ? "labels" : "teacher");
  const shown = reports.filter(({ reference }) => reference === judge);
  const of = (variant) => (slot?.data?.coverage ?? []).find((item) => item.variant === variant);
  const aside = html`<div class="segmented" role="group" aria-label="Who judges">
    ${JUDGES.map(([name, label]) => html`<button key=${name} aria-pressed=${name === judge} onClick=${() => choose(name)}>${label}</button>`)}</div>`;
  return html`<${Panel} title="Calibration" id="calibration-${model.model}" aside=${reports.length > 0 && aside}>
    ${slot?.error && html`<${Warn} level="bad"><b>This is not current.</b> ${slot.error}<//>`}
    ${shown.length === 0 && html`<${Empty}>${judge === "labels" ? "No answer has been labelled yet." : "No answer has been scored by the teacher yet."}<//>`}
    ${shown.length > 0 && html`<div class="calibrations">${shown.map((report) => html`<${Reliability} key=${report.variant}
      report=${report} model=${model} coverage=${of(report.variant)} />`)}</div>
    <p class="muted">Dashed: as sure as right. Line: what the same confidence was worth when the variant was built.</p>`}
  <//>`;
}

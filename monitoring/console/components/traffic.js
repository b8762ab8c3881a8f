// Who answers: the split in force as a bar and in numbers, shadows, and the reference share.
import { html } from "../html.js";
import { percent } from "../format.js";
import { openDialog } from "../store.js";
import { configuredSplit, effectiveSplit, isLive, slotOf, splitWords } from "../derive.js";
import { Panel, Swatch, Warn } from "./parts.js";

/** A stacked bar; segments are separated, labelled where they fit, and named in the text beside it. */
export function SplitBar({ model, split, label }) {
  const parts = split.filter(({ percent: share }) => share > 0);
  let left = 0;
  return html`<svg class="split-bar" role="img" aria-label="${label}: ${splitWords(split)}">
    ${parts.map(({ name, percent: share }, index) => {
      const x = left;
      left += share;
      return html`<g key=${name}>
        <rect class="fill v${slotOf(model, name)}" x="${x}%" y="0" width="${Math.max(share, 0.3)}%" height="100%" />
        ${index > 0 && html`<rect class="seam" x="${x}%" y="0" width="2" height="100%" />`}
        ${share >= 14 && html`<text x="${x + share / 2}%" y="50%" dy="0.35em" text-anchor="middle">${name} ${percent(share)}</text>`}
      </g>`;
    })}
  </svg>`;
}

function Share({ model, name, value, note }) {
  const slot = slotOf(model, name);
  return html`<li><${Swatch} slot=${slot} /><span class="share-name">${name}</span><b>${percent(value)}</b>
    ${note && html`<span class="muted">${note}</span>`}</li>`;
}

export function Traffic({ model, killed, monitor }) {
  const split = effectiveSplit(model, killed);
  const unwatched = monitor?.alive === false && split.some(({ name, percent: share }) => name !== model.baseline && share > 0);
  const configured = configuredSplit(model);
  const differs = splitWords(split) !== splitWords(configured);
  const shadows = model.variants.filter(({ shadow }) => shadow > 0);
  const copies = shadows.map(({ name, shadow }) => `${name} ${percent(shadow)}`).join(", ") || "none";
  const headroom = model.rollback_headroom_ratio;
  const shares = [...split].sort((a, b) => b.percent - a.percent);
  const note = (name) => (name === model.baseline ? "baseline" : "");
  return html`<${Panel} title="Traffic" id="traffic-${model.model}"
      aside=${html`<button onClick=${() => openDialog({ kind: "reference", model: model.model })}>Reference share…</button>`}>
    <${SplitBar} model=${model} split=${split} label=${unwatched ? "Traffic by the table" : "Traffic in force"} />
    <ul class="shares">
      ${shares.map(({ name, percent: value }) => html`<${Share} key=${name} model=${model} name=${name} value=${value} note=${note(name)} />`)}
    </ul>
    <dl class="facts">
      <div><dt>Shadow copies</dt><dd>${copies}${killed && shadows.length > 0 ? " (off while killed)" : ""}</dd></div>
      <div><dt>Reference share</dt><dd>${percent(model.reference_percent)} of candidate answers re-scored by ${model.teacher ?? model.baseline}</dd></div>
      <div><dt>Rollback headroom</dt><dd>${typeof headroom === "number" ? `${headroom.toFixed(2)}× of present traffic` : "not measured"}</dd></div>
    </dl>
    ${unwatched && html`<${Warn}>The monitor is silent: after <code>guards.monitor_loss_s</code> gateways answer with ${model.baseline} alone
      until it is back, unless <code>monitor_loss</code> is <code>hold</code>. This split is the table's.<//>`}
    ${differs && html`<${Warn} level=${killed ? "bad" : "warn"}>The table says ${splitWords(configured)}; that is not in force
      ${killed ? " because of the kill." : " because a candidate is rolled back."}<//>`}
    ${typeof headroom === "number" && headroom < 1 && html`<${Warn}>The baseline can carry only ${headroom.toFixed(2)}× of the present traffic:
      a rollback or kill now would shed requests with 503.<//>`}
    <${PlacementNote} model=${model} />
  <//>`;
}

/** Latencies of variants that are placed differently do not compare; say so. */
function PlacementNote({ model }) {
  const compared = model.variants.filter((variant) => variant.name === model.baseline || isLive(variant));
  const placements = new Set(compared.map(({ placement }) => placement));
  if (placements.size < 2) return null;
  const list = compared.map(({ name, placement }) => `${name} ${placement}`).join(", ");
  return html`<${Warn}>Variants under comparison are placed differently (${list}): their latencies do not compare like for like.<//>`;
}

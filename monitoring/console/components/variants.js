// The variants of a model, one row each: what it is, how good it was when built, how it does now, what to do with it.
import { html } from "../html.js";
import { bytes, isNumber, milliseconds, number, percent, ratio } from "../format.js";
import { openDialog } from "../store.js";
import { isLive, latest, slotOf, variantState } from "../derive.js";
import { Age, Panel, Pill, Swatch } from "./parts.js";

function accuracy(evaluation) {
  const [low, high] = Array.isArray(evaluation.accuracy_ci) ? evaluation.accuracy_ci : [];
  if (!isNumber(evaluation.accuracy)) return html`<span class="muted">not evaluated</span>`;
  return html`${ratio(evaluation.accuracy)}
    ${isNumber(low) && isNumber(high) && html`<small title="confidence interval on ${evaluation.rows ?? "?"} ${evaluation.split ?? ""} rows">
      ${ratio(low)} to ${ratio(high)}</small>`}`;
}

/** p50 from `latency_ms`, flat or keyed by batch size. */
function builtP50(evaluation) {
  const latency = evaluation.latency_ms;
  if (isNumber(latency)) return latency;
  if (!latency || typeof latency !== "object") return null;
  if (isNumber(latency.p50)) return latency.p50;
  const first = Object.values(latency).find((inner) => isNumber(inner?.p50));
  return first?.p50 ?? null;
}

function State({ model, variant, killed }) {
  const look = variantState(model, variant, killed);
  const back = variant.rolled_back;
  return html`<${Pill} level=${look.level} icon=${look.icon}>${look.word}<//>
    ${back && html`<small class="wrap">by ${back.actor}, <${Age} at=${back.at} />: ${back.reason}</small>`}
    ${variant.vetoed && html`<small>veto in force: gets nothing until it is given traffic</small>`}`;
}

function Actions({ model, variant }) {
  if (variant.name === model.baseline) return html`<span class="muted">gets what the others leave</span>`;
  const dialog = (kind) => () => openDialog({ kind, model: model.model, variant: variant.name });
  return html`<div class="row-actions">
    <button onClick=${dialog("traffic")} aria-label="Set traffic of ${variant.name}">Set traffic…</button>
    <button class="danger-outline" onClick=${dialog("rollback")} disabled=${!isLive(variant)} aria-label="Roll back ${variant.name}">Roll back…</button>
  </div>`;
}

function Row({ model, variant, series, killed }) {
  const evaluation = variant.evaluation ?? {};
  const live = series?.variants?.[variant.name];
  const built = builtP50(evaluation);
  const facts = [variant.relation, variant.placement, variant.runtime, isNumber(evaluation.bytes) && bytes(evaluation.bytes)];
  const role = variant.name === model.baseline ? "baseline" : variant.role ?? "candidate";
  return html`<tr>
    <th scope="row" data-label="Variant">
      <div><span class="variant-name"><${Swatch} slot=${slotOf(model, variant.name)} />${variant.name}</span>
      <small>${role}${variant.name === model.teacher ? ", teacher" : ""} · version ${variant.version}</small></div></th>
    <td data-label="State"><div><${State} model=${model} variant=${variant} killed=${killed} /></div></td>
    <td data-label="Weight" class="num">${percent(variant.weight)}${variant.shadow > 0 && html`<small>shadow ${percent(variant.shadow)}</small>`}</td>
    <td data-label="p50 now" class="num">${milliseconds(latest(live?.p50_ms))}<small>${isNumber(built) ? `built: ${milliseconds(built)}` : ""}</small></td>
    <td data-label="Accuracy" class="num">${accuracy(evaluation)}</td>
    <td data-label="Disagreement" class="num">${ratio(evaluation.teacher_disagreement, 2)}
      ${isNumber(evaluation.ece) && html`<small>ECE ${number(evaluation.ece, 2)}</small>`}</td>
    <td data-label="Artifact"><div><code>${variant.artifact}</code>
      <small>${facts.filter(Boolean).join(" · ")}</small></div></td>
    <td data-label="Actions"><${Actions} model=${model} variant=${variant} /></td>
  </tr>`;
}

export function Variants({ model, series, killed }) {
  return html`<${Panel} title="Variants" id="variants-${model.model}">
    <div class="scroll" tabindex="0" role="region" aria-label="Variants table">
      <table class="variants stack">
        <thead><tr>
          <th scope="col">Variant</th><th scope="col">State</th><th scope="col" class="num">Weight</th>
          <th scope="col" class="num" title="Median latency in the last second with requests">p50 now</th>
          <th scope="col" class="num" title="Accuracy on the test split at build, with its interval">Accuracy</th>
          <th scope="col" class="num" title="Share of test rows on which it differs from the teacher">Disagreement</th>
          <th scope="col">Artifact</th><th scope="col">Actions</th>
        </tr></thead>
        <tbody>${model.variants.map((variant) => html`
          <${Row} key=${variant.name} model=${model} variant=${variant} series=${series} killed=${killed} />`)}</tbody>
      </table>
    </div>
  <//>`;
}

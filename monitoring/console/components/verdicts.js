// What the guards say about each candidate, in their own sentence, with the numbers behind it.
import { html } from "../html.js";
import { brief, count, evidence, isNumber, leaves, ratio, words } from "../format.js";
import { useNow } from "../store.js";
import { WHOLE, reportUrl, slotOf, verdictLook, verdictsState } from "../derive.js";
import { Age, Empty, Panel, Pill, Swatch, Warn } from "./parts.js";

const HEADROOM = 1.25; // the scale ends a little past the threshold, so that its mark is inside

/** Evidence against its threshold. The scale is logarithmic because the inputs are logs of e-values. */
export function Meter({ verdict: { guard, verdict, statistic = {} } }) {
  const failed = verdict === "fail";
  const tone = verdictLook(verdict).level;
  if (isNumber(statistic.budget_remaining)) {
    return html`<span>${ratio(statistic.budget_remaining)} <span class="muted">of the error budget left</span></span>`;
  }

  const hard = guard === "invalid_output" && isNumber(statistic.limit) && isNumber(statistic.events);
  const evident = [statistic.log_evidence, failed ? statistic.log_limit_evidence : null].filter(isNumber);
  const value = hard ? statistic.events : evident.length ? Math.max(...evident) : null;
  const threshold = hard ? statistic.limit : statistic.log_threshold;
  if (!isNumber(threshold) || threshold <= 0) return html`<span class="muted">no threshold</span>`;
  const text = hard
    ? `${count(value)} of ${count(threshold)} events`
    : isNumber(value) ? `${evidence(value)} of ${evidence(threshold)}` : `none of ${evidence(threshold)}`;
  const share = isNumber(value) ? Math.min(1, Math.max(0, value / (threshold * HEADROOM))) : 0;
  const over = isNumber(value) && value >= threshold;
  return html`<div class="meter">
    <svg role="meter" aria-label="Evidence against the candidate" aria-valuemin="0" aria-valuemax=${threshold}
        aria-valuenow=${Math.max(0, Math.min(threshold, value ?? 0))} aria-valuetext="${text}${over ? ", over the threshold" : ""}">
      <rect class="track" x="0" y="3" width="100%" height="6" rx="3" />
      ${share > 0 && html`<rect class="level ${tone}" x="0" y="3" width="${share * 100}%" height="6" rx="3" />`}
      <rect class="mark" x="${100 / HEADROOM}%" y="0" width="2" height="12" />
    </svg>
    <span class="meter-text">${text}${over && html`<b> over</b>`}</span>
  </div>`;
}

const EVIDENCE =
  "How many times likelier the data are if the candidate is worse than allowed, against the threshold at which the guard trips; logarithmic scale";
const SHOWN = new Set(["log_evidence", "log_threshold", "observations", "events"]);

function Details({ verdict }) {
  const rest = leaves(verdict.statistic ?? {}).filter(([key]) => !SHOWN.has(key));
  const ids = verdict.example_request_keys ?? verdict.example_request_ids ?? [];
  if (!rest.length && !ids.length) return null;
  return html`<details class="more"><summary>Numbers</summary>
    <dl class="numbers">${rest.map(([key, value]) => html`<div key=${key}><dt>${words(key)}</dt><dd>${brief(value)}</dd></div>`)}</dl>
    ${ids.length > 0 && html`<p class="ids">Keys of example requests: ${ids.map((id) => html`<code key=${id}>${id}</code> `)}</p>`}
  </details>`;
}

function VerdictRow({ verdict, monitor }) {
  const look = verdictLook(verdict.verdict);
  const statistic = verdict.statistic ?? {};
  const report = reportUrl(monitor, statistic.report);
  return html`<tr class="verdict-${look.level}">
    <td data-label="Verdict"><${Pill} level=${look.level} icon=${look.icon}>${look.word}<//></td>
    <th scope="row" data-label="Guard"><div>${words(verdict.guard)}
      ${verdict.action && verdict.action !== "none" && html`<small>action: <b>${verdict.action}</b></small>`}</div></th>
    <td data-label="Finding"><div class="sentence">${verdict.sentence}
      ${report && html` <a href=${report} target="_blank" rel="noopener noreferrer">Report</a>`}<${Details} verdict=${verdict} /></div></td>
    <td data-label="Evidence"><${Meter} verdict=${verdict} /></td>
    <td data-label="Observed" class="num">${count(statistic.observations)}
      <small>${isNumber(statistic.events) ? `${count(statistic.events)} events` : ""}</small></td>
    <td data-label="As of" class="num"><${Age} at=${verdict.at} /></td>
  </tr>`;
}

/** Variants with their verdicts, those that need attention first. */
function grouped(verdicts) {
  const groups = new Map();
  for (const verdict of verdicts) groups.set(verdict.variant, [...(groups.get(verdict.variant) ?? []), verdict]);
  const worst = ([variant, list]) => Math.min(...list.map(({ verdict }) => verdictLook(verdict).rank)) + (variant === WHOLE ? 0.5 : 0);
  return [...groups].sort((a, b) => (worst(a) < 1 || worst(b) < 1 ? worst(a) - worst(b) : 0));
}

const byUrgency = (a, b) => verdictLook(a.verdict).rank - verdictLook(b.verdict).rank || a.guard.localeCompare(b.guard);

export function Verdicts({ model, slot, monitor }) {
  const now = useNow();
  const { usable, why } = verdictsState(slot, now);
  const verdicts = slot?.data?.verdicts ?? [];
  const reported = slot?.data?.at ? html`<span class="muted">reported <${Age} at=${slot.data.at} /></span>` : null;
  return html`<${Panel} title="Verdicts" id="verdicts-${model.model}" aside=${reported} tone=${usable ? "" : "stale"}>
    ${!usable && html`<${Warn} level="bad"><b>Verdicts are not current.</b> ${why}<//>`}
    ${verdicts.length === 0 && html`<${Empty}>No verdicts: nothing is being judged. No data is not a pass.<//>`}
    ${verdicts.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Verdicts table"><table class="verdicts stack">
      <thead><tr><th scope="col">Verdict</th><th scope="col">Guard</th><th scope="col">Finding</th>
        <th scope="col" title=${EVIDENCE}>Evidence of harm</th>
        <th scope="col" class="num">Observed</th><th scope="col" class="num">As of</th></tr></thead>
      ${grouped(verdicts).map(([variant, list]) => html`<tbody key=${variant}>
        <tr class="group"><th colspan="6" scope="rowgroup"><span class="variant-name">
          ${variant === WHOLE ? "The model as a whole" : html`<${Swatch} slot=${slotOf(model, variant)} />${variant}`}</span></th></tr>
        ${[...list].sort(byUrgency).map((verdict) => html`<${VerdictRow} key=${verdict.guard} verdict=${verdict} monitor=${monitor} />`)}
      </tbody>`)}
    </table></div>`}
  <//>`;
}

// Staged rollouts: where each stands, what it waits for, and what a human may ask of it.
import { html } from "../html.js";
import { percent } from "../format.js";
import { openDialog } from "../store.js";
import { rolloutActions, rolloutLook, slotOf } from "../derive.js";
import { Empty, Panel, Pill, Swatch, Time } from "./parts.js";

const stepName = (step) => Object.keys(step)[0];

function stepWords(step) {
  if ("set_weight" in step) return percent(step.set_weight);
  if (step.shadow) return `shadow ${percent(step.shadow.percent)}`;
  if (step.approve) return `approval (${step.approve.role})`;
  return "bake";
}

/** The steps in a row; the present one is marked by more than its colour. */
function Steps({ rollout }) {
  return html`<ol class="steps" aria-label="Steps of ${rollout.id}">${rollout.steps.map((step, at) => {
    const phase = at < rollout.step ? "done" : at === rollout.step && rollout.live ? "now" : "ahead";
    return html`<li key=${at} class="step ${phase}" aria-current=${phase === "now" ? "step" : null} title=${stepName(step)}>
      ${phase === "done" && "✓ "}${phase === "now" && "→ "}${stepWords(step)}</li>`;
  })}</ol>`;
}

function Actions({ model, rollout }) {
  const ask = (action) => () => openDialog({ kind: "rollout", model: model.model, variant: rollout.id, action });
  return html`<div class="row-actions">${rolloutActions(rollout).map(({ action, verb, tone }) => html`
    <button key=${action} class=${tone} onClick=${ask(action)} aria-label="${verb} rollout ${rollout.id}">${verb}…</button>`)}</div>`;
}

function Rollout({ model, rollout }) {
  const look = rolloutLook(rollout);
  return html`<li class="rollout" data-testid="rollout-${rollout.id}">
    <div class="rollout-head">
      <span class="variant-name"><${Swatch} slot=${slotOf(model, rollout.variant)} />${rollout.variant}</span>
      <${Pill} level=${look.level} icon=${look.icon}>${look.word}<//>
      <span class="muted">${rollout.id}, policy ${rollout.policy}${rollout.attempt > 1 ? `, attempt ${rollout.attempt}` : ""} · ${" "}
        ${percent(rollout.weight)} of the traffic${rollout.shadow > 0 ? `, shadow ${percent(rollout.shadow)}` : ""}</span>
    </div>
    <${Steps} rollout=${rollout} />
    <p class="sentence">${rollout.waiting || rollout.why}</p>
    ${rollout.waiting && rollout.waiting !== rollout.why && html`<p class="muted">since <${Time} at=${rollout.changed_at} />: ${rollout.why}</p>`}
    <${Actions} model=${model} rollout=${rollout} />
  </li>`;
}

export function Rollouts({ model, killed }) {
  const rollouts = model.rollouts ?? [];
  const idle = model.variants.some(({ name }) => name !== model.baseline && !rollouts.some((one) => one.live && one.variant === name));
  return html`<${Panel} title="Rollouts" id="rollouts-${model.model}"
      aside=${html`<button disabled=${killed || !idle} onClick=${() => openDialog({ kind: "rolloutStart", model: model.model })}>Start a rollout…</button>`}>
    ${rollouts.length
      ? html`<ul class="rollouts">${rollouts.map((rollout) => html`<${Rollout} key=${rollout.id} model=${model} rollout=${rollout} />`)}</ul>`
      : html`<${Empty}>No candidate is being rolled out.<//>`}
  <//>`;
}

// Starting a rollout, and what may be asked of one.
import { html, useId, useState } from "../html.js";
import { percent } from "../format.js";
import { api } from "../api.js";
import { candidates, movedOn, pausing, rolloutActions, rolloutLook } from "../derive.js";
import { ActionDialog } from "./dialog.js";
import { Warn } from "./parts.js";

/** The policies that are built in; files go through the command line. */
const POLICIES = {
  careful: "hours a step, a human before half of the traffic, watched for a day",
  fast: "minutes a step, for a model with some ten requests a second or more",
  "shadow-only": "copies of the traffic only; nothing is promoted",
};

function Choice({ label, name, value, onValue, options }) {
  const id = useId();
  return html`<div class="field"><label for=${id}>${label}</label>
    <select id=${id} name=${name} value=${value} onChange=${(event) => onValue(event.currentTarget.value)}>
      ${options.map((option) => html`<option key=${option} value=${option}>${option}</option>`)}</select></div>`;
}

export function RolloutStartDialog({ model }) {
  const busy = (model.rollouts ?? []).filter(({ live }) => live).map(({ variant }) => variant);
  const free = candidates(model).filter(({ name }) => !busy.includes(name)).map(({ name }) => name);
  const [variant, setVariant] = useState(free[0] ?? "");
  const [policy, setPolicy] = useState("fast");
  const [epoch] = useState(model.epoch); // what was on view when the operator began
  const weight = model.variants.find(({ name }) => name === variant)?.weight ?? 0;
  const invalid = movedOn(model, epoch) ?? (!free.includes(variant) ? "No candidate is free." : weight > 0
    ? `${variant} has ${percent(weight)} of the traffic: take that back first.` : null);
  return html`<${ActionDialog} focusReason=${false} title="Start a rollout" verb="Start rolling out ${variant}" invalid=${invalid}
      onSubmit=${(body) => api.startRollout({ model: model.model, variant, policy, ...body }, epoch)}
      success=${({ id }) => ({ title: `Rollout ${id} is started`, text: "It goes on by itself; a guard that fails takes it back." })}>
    <${Choice} label="Candidate" name="variant" value=${variant} onValue=${setVariant} options=${free} />
    <${Choice} label="Policy" name="policy" value=${policy} onValue=${setPolicy} options=${Object.keys(POLICIES)} />
    <p class="muted">${POLICIES[policy]}. A policy of your own: <code>canarium rollout start ${model.model} ${variant} -f FILE</code></p>
  <//>`;
}

const MEANINGS = {
  pause: ({ weight }) => `It stays at ${percent(weight)} until someone resumes it. Guards can still take it back.`,
  resume: () => "It goes on from where it was paused; the weight of its step is set again if it was changed.",
  approve: () => "It goes on to its next step.",
  promote: () => "The steps that are left are skipped: it gets everything but the holdback now.",
  abort: ({ variant, baseline }) => `${variant} loses its traffic and shadow at once; ${baseline} answers everything.`,
  retry: () => "It starts again after its cooldown, with other users and with evidence of its own.",
};

/** What is being stopped may move meanwhile: that is no reason to refuse. */
const BRAKES = ["pause", "abort"];

/** Words without their numbers, which change by the second: the same gist is the same objection. */
const gist = (words) => words.replace(/-?\d[\d.,]*/g, "#");

export function RolloutDialog({ model, variant: id, action }) {
  const rollout = (model.rollouts ?? []).find((one) => one.id === id);
  const [from] = useState({ epoch: model.epoch, step: rollout?.step, hold: rollout?.hold }); // on view when the operator began
  const [waived, setWaived] = useState(null); // the gist that the box was ticked for
  const box = useId();
  const known = rollout && rolloutActions(rollout).find((one) => one.action === action);
  if (!rollout) return null;
  const paused = pausing(rollout);
  const needs = (action === "resume" && rollout.hold === "guard")
    || (action === "approve" && paused.length > 0)
    || (action === "promote" && rollout.promotion_lacks.length > 0);
  const pauses = `Guards pause it: ${paused.map(({ sentence }) => sentence).join("; ")}`;
  const words = action === "promote" ? `It lacks: ${rollout.promotion_lacks.join("; ")}`
    : action === "resume" && !paused.length ? rollout.why : pauses;
  const override = waived === gist(words);
  const verb = known?.verb ?? action;
  const stepped = rollout.step !== from.step || rollout.hold !== from.hold
    ? "The rollout has moved on since you opened this. Close it and look again." : movedOn(model, from.epoch);
  const invalid = !known ? `The rollout is ${rolloutLook(rollout).word.toLowerCase()} now: this cannot be asked of it.`
    : !BRAKES.includes(action) && stepped ? stepped
    : needs && !override ? "This needs the box above." : null;
  return html`<${ActionDialog} title="${verb} rollout ${id}" verb="${verb} ${rollout.variant}" tone=${action === "abort" ? "danger" : ""}
      invalid=${invalid} focusReason=${!needs}
      onSubmit=${(body) => api.askRollout(id, action, { ...body, ...(needs ? { override: true } : {}) },
        BRAKES.includes(action) ? undefined : from.epoch)}
      success=${(view) => ({ title: `Rollout ${view.id}: ${rolloutLook(view).word}`, text: view.waiting })}>
    <p>${MEANINGS[action](rollout)}</p>
    ${needs && html`<${Warn} level="bad">${words}<//>
      <p><input id=${box} type="checkbox" name="override" checked=${override} onChange=${(event) => setWaived(event.currentTarget.checked ? gist(words) : null)} />
        <label for=${box}>Go on all the same; this is written into the trail</label></p>`}
  <//>`;
}

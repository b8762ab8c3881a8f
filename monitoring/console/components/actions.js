// Every change an operator can make, as a dialog that states exactly what will happen.
import { html, useRef } from "../html.js";
import { percent } from "../format.js";
import { api } from "../api.js";
import { candidates, configuredSplit, globalKill, isLive, ownKill, rearmedSplit, splitWords } from "../derive.js";
import { ActionDialog } from "./dialog.js";
import { TrafficDialog, ReferenceDialog } from "./share_dialogs.js";
import { RolloutDialog, RolloutStartDialog } from "./rollout_dialogs.js";
import { Warn } from "./parts.js";

/** The way that works when the control plane does not. */
const byHand = (command) => html`If it stays unreachable, run this on the machine of the gateways; it falls back
  to the control word, which they obey without the control plane: <code>${command}</code>`;

function Headroom({ model }) {
  const headroom = model.rollback_headroom_ratio;
  if (typeof headroom !== "number" || headroom >= 1) return null;
  return html`<${Warn}>${model.baseline} can carry only ${headroom.toFixed(2)}× of the present traffic: the excess will be refused with 503.<//>`;
}

function KillDialog({ model }) {
  const live = candidates(model).filter(isLive).map(({ name }) => name);
  return html`<${ActionDialog} title="Kill ${model.model}" verb="Kill ${model.model}" tone="danger"
      onSubmit=${(body) => api.kill(model.model, body)}
      success=${({ kill_seq: seq }) => ({
        title: `${model.model} is killed`, text: `Everything is answered by ${model.baseline}. To undo, re-arm kill ${seq}.` })}
      fallback=${byHand(`canarium kill ${model.model} --reason "…"`)}>
    <p>At once, on every gateway:</p>
    <ul><li>every request to <b>${model.model}</b> is answered by the baseline, <b>${model.baseline}</b>;</li>
      <li>${live.length
        ? html`no traffic and no shadow copies for <b>${live.join(", ")}</b>`
        : "no candidate has traffic now, and none can be given any"};</li>
      <li>requests pinned to another variant are refused with 503.</li></ul>
    <p>It stays so, whatever else is changed, until someone re-arms it with a reason.</p>
    <${Headroom} model=${model} />
  <//>`;
}

function KillAllDialog({ models }) {
  return html`<${ActionDialog} title="Kill all models" verb="Kill all models" tone="danger" onSubmit=${api.killAll}
      success=${({ kill_seq: seq }) => ({
        title: "All models are killed", text: `Every model is answered by its baseline. To undo, re-arm kill ${seq}.` })}
      fallback=${byHand('canarium kill --all --reason "…"')}>
    <p>At once, on every gateway, each of the ${models.length} models is answered by its baseline only:</p>
    <ul>${models.map((model) => html`<li key=${model.model}><b>${model.model}</b>: ${model.baseline}</li>`)}</ul>
    <p>It stays so until someone re-arms it with a reason.</p>
    ${models.map((model) => html`<${Headroom} key=${model.model} model=${model} />`)}
  <//>`;
}

function RearmDialog({ model, seq, everywhere }) {
  const split = rearmedSplit(model);
  const moved = model.kill_seq !== seq;
  return html`<${ActionDialog} title="Re-arm ${model.model}" verb="Re-arm, releasing kill ${seq}"
      invalid=${moved ? `The kill in force is now ${model.kill_seq}, not ${seq}. Close this and look at the timeline first.` : null}
      onSubmit=${(body) => api.rearm(model.model, { kill_seq: seq, ...body })}
      success=${() => ({ title: `${model.model} is re-armed`, text: `Kill ${seq} is released.${everywhere ? " The kill of all models is still on." : ""}` })}>
    <p>Kill <b>${seq}</b> of ${model.model} is released. ${everywhere
      ? html`All models are killed as well: <b>${model.baseline}</b> answers everything until that kill is released too. Then:`
      : "The routing table comes back into force at once:"}</p>
    <p class="outcome">${splitWords(split)}</p>
    <p>To come back on the baseline alone, cancel, roll back all candidates, then re-arm.</p>
  <//>`;
}

function RearmAllDialog({ models, seq, current }) {
  const still = models.filter(ownKill).map(({ model }) => model);
  return html`<${ActionDialog} title="Re-arm all models" verb="Re-arm, releasing kill ${seq}"
      invalid=${current !== seq ? `The global kill in force is now ${current}, not ${seq}. Close this and look at the timeline first.` : null}
      onSubmit=${(body) => api.rearmAll({ kill_seq: seq, ...body })}
      success=${() => ({ title: "The global kill-switch is released", text: still.length ? `Still killed on their own: ${still.join(", ")}.` : "" })}>
    <p>Global kill <b>${seq}</b> is released. These routing tables come back into force at once:</p>
    <ul>${models.filter((model) => !ownKill(model)).map((model) => html`
      <li key=${model.model}><b>${model.model}</b>: ${splitWords(rearmedSplit(model))}</li>`)}</ul>
    ${still.length > 0 && html`<p>Killed on their own, and staying so: <b>${still.join(", ")}</b>.</p>`}
  <//>`;
}

function RollbackDialog({ model, variant }) {
  const targets = variant ? model.variants.filter(({ name }) => name === variant) : candidates(model).filter(isLive);
  const returned = targets.reduce((sum, { weight }) => sum + (weight ?? 0), 0);
  const baseline = configuredSplit(model).find(({ name }) => name === model.baseline)?.percent ?? 0;
  return html`<${ActionDialog} title=${variant ? `Roll back ${variant}` : `Roll back all candidates of ${model.model}`}
      verb=${variant ? `Roll back ${variant}` : "Roll back all"} tone="danger"
      onSubmit=${(body) => api.rollback(model.model, variant ? { variant, ...body } : body)}
      success=${({ rolled_back: names, epoch }) => ({
        title: names?.length ? `Rolled back: ${names.join(", ")}` : "Nothing had traffic", text: `${model.model} is at epoch ${epoch}.` })}
      fallback=${byHand(`canarium kill ${model.model} --reason "…"`)}>
    <p>At once, on every gateway:</p>
    <ul>${targets.map(({ name, weight, shadow }) => html`<li key=${name}>
        <b>${name}</b>: ${percent(weight)} → 0 %${shadow > 0 ? `, shadow copies ${percent(shadow)} → 0 %` : ""};</li>`)}
      ${targets.length === 0 && html`<li>no candidate has traffic: nothing changes;</li>`}
      <li>the baseline, <b>${model.baseline}</b>: ${percent(baseline)} → ${percent(Math.min(100, baseline + returned))}.</li></ul>
    <p>A rolled-back candidate gets nothing until someone gives it traffic again.</p>
    <${Headroom} model=${model} />
  <//>`;
}

/** The dialog named by the state, over the model as it is now. */
export function Dialogs({ state }) {
  const { dialog, status } = state;
  const models = status?.models ?? [];
  const model = models.find((view) => view.model === dialog?.model);
  const global = globalKill(state);
  const opened = useRef(null); // the kill_seq on view when the dialog opened: only that one may be released
  const key = dialog && `${dialog.kind}/${dialog.model ?? ""}/${dialog.variant ?? ""}/${dialog.action ?? ""}`;
  if (opened.current?.key !== key) opened.current = key && { key, seq: dialog.kind === "rearmAll" ? global.seq : model?.kill_seq };
  if (!dialog) return null;
  if (dialog.kind === "killAll") return html`<${KillAllDialog} models=${models} />`;
  if (dialog.kind === "rearmAll") return html`<${RearmAllDialog} models=${models} seq=${opened.current.seq} current=${global.seq} />`;
  if (!model) return null;
  const Known = {
    kill: KillDialog, rearm: RearmDialog, rollback: RollbackDialog, traffic: TrafficDialog, reference: ReferenceDialog,
    rollout: RolloutDialog, rolloutStart: RolloutStartDialog,
  }[dialog.kind];
  return html`<${Known} key=${key} model=${model} variant=${dialog.variant} action=${dialog.action} seq=${opened.current.seq} everywhere=${global.on}
    verdicts=${state.verdicts[model.model]?.data?.verdicts ?? []} killed=${model.killed || global.on} />`;
}

// Setting shares: a candidate's weight and shadow, and the model's reference share.
import { html, useId, useState } from "../html.js";
import { percent, words } from "../format.js";
import { api } from "../api.js";
import { candidates, configuredSplit, movedOn, splitWords } from "../derive.js";
import { ActionDialog } from "./dialog.js";
import { SplitBar } from "./traffic.js";
import { Warn } from "./parts.js";

/** A percentage as typed, or null with the reason in words. */
export function parsePercent(text, label) {
  const value = Number(String(text).replace(",", "."));
  if (String(text).trim() === "" || !Number.isFinite(value)) return { value: null, fault: `${label}: give a number between 0 and 100.` };
  if (value < 0 || value > 100) return { value: null, fault: `${label}: ${value} is not between 0 and 100.` };
  if (Math.abs(Math.round(value * 100) - value * 100) > 1e-6) return { value: null, fault: `${label}: the smallest step is 0.01 %.` };
  return { value, fault: null };
}

function PercentField({ label, name, text, onText, slider = true, focus = slider, note }) {
  const id = useId();
  const value = Number(text) || 0;
  const input = (event) => onText(event.currentTarget.value);
  return html`<div class="field percent-field"><label for=${id}>${label}</label>
    <div class="percent-row">
      ${slider && html`<input type="range" min="0" max="100" step="1" value=${value} aria-label="${label}, slider"
        aria-valuetext=${percent(value)} onInput=${input} />`}
      <input id=${id} name=${name} class="percent-input" type="text" inputmode="decimal" autocomplete="off" autofocus=${focus}
        value=${text} onInput=${input} /><span>%</span>
    </div>${note && html`<p class="muted">${note}</p>`}</div>`;
}

export function TrafficDialog({ model, variant: name, verdicts, killed }) {
  const variant = model.variants.find((one) => one.name === name);
  // What was on view when the operator began. The page goes on moving beneath; only this may be changed.
  const [from] = useState({ epoch: model.epoch, weight: variant?.weight ?? 0, shadow: variant?.shadow ?? 0 });
  const [weightText, setWeightText] = useState(String(from.weight));
  const [shadowText, setShadowText] = useState(String(from.shadow));
  if (!variant) return null;
  const weight = parsePercent(weightText, "Weight");
  const shadow = parsePercent(shadowText, "Shadow");
  const others = candidates(model).filter((one) => one.name !== name).reduce((sum, one) => sum + (one.weight ?? 0), 0);
  const room = Math.max(0, 100 - others);
  const change = {};
  if (weight.value !== null && weight.value !== from.weight) change.weights = { [name]: weight.value };
  if (shadow.value !== null && shadow.value !== from.shadow) change.shadow = { [name]: shadow.value };
  const before = configuredSplit(model);
  const target = change.weights ? weight.value : variant.weight ?? 0;
  const after = before.map((share) => share.name === name ? { ...share, percent: target }
    : share.name === model.baseline ? { ...share, percent: Math.max(0, room - target) } : share);
  const changed = Object.keys(change).length > 0;
  const raises = weight.value > (variant.weight ?? 0) || shadow.value > (variant.shadow ?? 0);
  const over = weight.value !== null && weight.value > room;
  const invalid = movedOn(model, from.epoch) ?? weight.fault ?? shadow.fault
    ?? (over ? `Weight: ${percent(weight.value)} is more than the ${percent(room)} that the other candidates leave.` : null)
    ?? (changed ? null : "Nothing is changed yet.");
  const back = variant.rolled_back ? ` by ${variant.rolled_back.actor}: ${variant.rolled_back.reason}` : "";
  const failing = verdicts.filter((verdict) => verdict.variant === name && verdict.verdict === "fail");
  return html`<${ActionDialog} focusReason=${false} title="Set traffic of ${name}" invalid=${invalid}
      verb=${weight.value === null ? "Set traffic" : `Set ${name} to ${percent(weight.value)}`}
      onSubmit=${(body) => api.setTraffic(model.model, { ...change, ...body }, from.epoch)}
      success=${(view) => ({ title: `Traffic of ${model.model} is set`, text: `${splitWords(configuredSplit(view))}; epoch ${view.epoch}.` })}>
    <${PercentField} label="Weight: share of users answered by ${name}" name="weight" text=${weightText} onText=${setWeightText} />
    <${PercentField} label="Shadow: share of requests copied to it, answers never returned" name="shadow" text=${shadowText}
      onText=${setShadowText} slider=${false} />
    <div class="preview"><span>Now</span><${SplitBar} model=${model} split=${before} label="Split now" />
      <span>Then</span><${SplitBar} model=${model} split=${after} label="Split after the change" /></div>
    <ul class="outcome-list">
      ${before.map((share, i) => share.percent !== after[i].percent && html`<li key=${share.name}>
        <b>${share.name}</b> ${percent(share.percent)} → <b>${percent(after[i].percent)}</b></li>`)}
      ${change.shadow && html`<li>shadow of <b>${name}</b> ${percent(from.shadow)} → <b>${percent(shadow.value)}</b></li>`}</ul>
    ${killed && raises && html`<${Warn}>${model.model} is killed: the control plane refuses to give traffic until it is re-armed.<//>`}
    ${(variant.vetoed || variant.rolled_back) && raises && html`<${Warn}>${name} was rolled back${back}. Giving it traffic lifts that.<//>`}
    ${failing.map(({ guard, sentence }) => raises && html`<${Warn} key=${guard} level="bad">${words(guard)} fails now: ${sentence}<//>`)}
  <//>`;
}

export function ReferenceDialog({ model }) {
  const [from] = useState({ epoch: model.epoch, percent: model.reference_percent ?? 0 });
  const [text, setText] = useState(String(from.percent));
  const { value, fault } = parsePercent(text, "Reference share");
  const teacher = model.teacher ?? model.baseline;
  return html`<${ActionDialog} focusReason=${false} title="Reference share of ${model.model}"
      verb=${value === null ? "Set" : `Set to ${percent(value)}`}
      invalid=${movedOn(model, from.epoch) ?? fault ?? (value === from.percent ? "Nothing is changed yet." : null)}
      onSubmit=${(body) => api.setTraffic(model.model, { reference_percent: value, ...body }, from.epoch)}
      success=${(view) => ({
        title: "Reference share is set", text: `${percent(view.reference_percent)} of candidate answers of ${model.model} are re-scored.` })}>
    <p>Share of candidate answers re-scored by <b>${teacher}</b>, off the request path. It is what agreement is judged on:
      less of it means slower verdicts, more of it means more load on ${teacher}.</p>
    <${PercentField} label="Reference share" name="reference" text=${text} onText=${setText} />
    <ul class="outcome-list">${value !== null && value !== from.percent && html`<li>${percent(from.percent)} → <b>${percent(value)}</b></li>`}</ul>
  <//>`;
}

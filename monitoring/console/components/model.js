// One model: its headline, the killed banner, and the panels.
import { html } from "../html.js";
import { openDialog, useNow } from "../store.js";
import { candidates, effectiveSplit, globalKill, health, isLive, latest, ownKill, usable } from "../derive.js";
import { number } from "../format.js";
import { select } from "../sync.js";
import { Icon, Pill, Time } from "./parts.js";
import { SplitBar, Traffic } from "./traffic.js";
import { Variants } from "./variants.js";
import { Verdicts } from "./verdicts.js";
import { Rollouts } from "./rollouts.js";
import { Series, Slos } from "./series.js";
import { Calibration } from "./calibration.js";
import { Timeline } from "./timeline.js";

function KilledBanner({ title, text, mark, verb, onRearm }) {
  return html`<div class="banner killed" role="alert">
    <${Icon} name="stop" />
    <div><b>${title}</b> <span>${text}</span>
      ${mark && html`<p>By ${mark.actor} at <${Time} at=${mark.at} />: ${mark.reason}</p>`}</div>
    <button onClick=${onRearm}>${verb}</button>
  </div>`;
}

export function GlobalBanner({ state }) {
  const kill = globalKill(state);
  if (!kill.on) return null;
  return html`<${KilledBanner} title="ALL MODELS KILLED, kill_seq ${kill.seq}."
    text="The global kill-switch is on: every model is answered by its baseline only."
    mark=${kill.mark} verb="Re-arm all…" onRearm=${() => openDialog({ kind: "rearmAll" })} />`;
}

/** One button a model, shown when there are several: state in words, split, worst finding. */
export function ModelTabs({ state }) {
  const now = useNow();
  const models = state.status.models ?? [];
  const kill = globalKill(state);
  if (models.length < 2) return null;
  return html`<nav class="tabs" aria-label="Models">${models.map((model) => {
    const look = health(model, state.verdicts[model.model], kill.on, now);
    const current = model.model === state.selected;
    return html`<button key=${model.model} class="tab" aria-current=${current ? "page" : null} onClick=${() => select(model.model)}>
      <span class="tab-head"><b>${model.model}</b><${Pill} level=${look.level} icon=${look.icon}>${look.word}<//></span>
      <${SplitBar} model=${model} split=${effectiveSplit(model, model.killed || kill.on)} label="Traffic of ${model.model}" />
    </button>`;
  })}</nav>`;
}

function totalRate(slot, now) {
  const rates = Object.values(usable(slot, now) ? slot.data.variants ?? {} : {}).map(({ rps }) => latest(rps)).filter((rate) => rate !== null);
  return rates.length ? rates.reduce((sum, rate) => sum + rate, 0) : null;
}

function Headline({ model, state, killed }) {
  const now = useNow();
  const look = health(model, state.verdicts[model.model], globalKill(state).on, now);
  const rate = totalRate(state.series[model.model], now);
  const dialog = (kind) => () => openDialog({ kind, model: model.model });
  return html`<div class="headline ${look.level}">
    <div class="headline-main">
      <h1 tabindex="-1">${model.model}</h1>
      <p class="health" data-testid="health"><${Pill} level=${look.level} icon=${look.icon}>${look.word}<//> <span>${look.text}</span></p>
      <p class="meta">baseline <b>${model.baseline}</b> · teacher <b>${model.teacher ?? model.baseline}</b> · epoch <b>${model.epoch}</b> · ${" "}
        ${rate === null ? "request rate unknown" : html`<b>${number(rate)}</b> requests/s`}</p>
    </div>
    <div class="headline-actions">
      <button class="danger-outline" disabled=${!candidates(model).some(isLive)} onClick=${dialog("rollback")}>Roll back all…</button>
      ${killed && ownKill(model)
        ? html`<button key="rearm" onClick=${dialog("rearm")}>Re-arm…</button>`
        : html`<button key="kill" class="danger" onClick=${dialog("kill")}><${Icon} name="stop" />Kill ${model.model}…</button>`}
    </div>
  </div>`;
}

export function Model({ model, state }) {
  const now = useNow();
  const kill = globalKill(state);
  const killed = Boolean(model.killed) || kill.on;
  const verdicts = state.verdicts[model.model];
  const series = state.series[model.model];
  return html`<article aria-label="Model ${model.model}">
    <${Headline} model=${model} state=${state} killed=${killed} />
    ${ownKill(model) && html`<${KilledBanner} title="KILLED, kill_seq ${model.kill_seq}."
      text="Every request of ${model.model} is answered by the baseline, ${model.baseline}."
      mark=${model.kill} verb="Re-arm…" onRearm=${() => openDialog({ kind: "rearm", model: model.model })} />`}
    <div class="grid">
      <div class="column">
        <${Traffic} model=${model} killed=${killed} monitor=${state.status.monitor} />
        <${Rollouts} model=${model} killed=${killed} />
        <${Verdicts} model=${model} slot=${verdicts} monitor=${state.status.urls?.monitor} />
        <${Variants} model=${model} series=${usable(series, now) ? series.data : null} killed=${killed} />
        <${Series} model=${model} slot=${series} windowS=${state.windowS} />
        <${Calibration} key=${model.model} model=${model} slot=${state.calibration[model.model]} />
      </div>
      <div class="column side">
        <${Slos} model=${model} slot=${series} />
        <${Timeline} model=${model} audit=${state.audit} />
      </div>
    </div>
  </article>`;
}

// The page: header, what is wrong with the link, the models, dialogs and notices.
import { html, useEffect, useState } from "../html.js";
import { token } from "../api.js";
import { duration } from "../format.js";
import { connection, dismiss, useNow, useStore } from "../store.js";
import { globalKill, health } from "../derive.js";
import { restart } from "../sync.js";
import { Dialogs } from "./actions.js";
import { Header } from "./header.js";
import { GlobalBanner, Model, ModelTabs } from "./model.js";
import { Icon, Time } from "./parts.js";

function LinkBanner({ state }) {
  const now = useNow();
  const link = connection(state, now);
  if (state.needToken) return html`<${TokenForm} words=${state.needToken} />`;
  if (!state.status && !state.statusError) return html`<p class="loading" role="status">Asking the control plane…</p>`;
  if (!state.statusError && !link.stale) return null;
  return html`<div class="banner down" role="alert"><${Icon} name="cross" />
    <div><b>${state.status ? "This page is out of date." : "Nothing is known yet."}</b>
      ${state.status && html` <span>What you see is ${duration(link.ageMs / 1000)} old, from <${Time} at=${state.statusAt} />.</span>`}
      <p>${state.statusError ?? "No update has arrived."}</p>
      <p>Inference does not depend on the control plane. To kill without it, on the machine of the gateways: ${" "}
        <code>canarium kill MODEL --reason "…"</code></p></div></div>`;
}

function TokenForm({ words }) {
  const [value, setValue] = useState("");
  const submit = (event) => {
    event.preventDefault();
    token.set(value.trim());
    setValue("");
    restart();
  };
  return html`<form class="banner token" onSubmit=${submit}>
    <${Icon} name="warning" />
    <div><b>The control plane asks for a token.</b> <span data-testid="auth-error">${words}</span>
      <p class="token-row"><label for="token">Bearer token</label>
        <input id="token" name="token" type="password" autocomplete="off" value=${value} onInput=${(event) => setValue(event.currentTarget.value)} />
        <button class="primary" disabled=${!value.trim()}>Sign in</button></p>
      <p class="muted">It is kept in this tab only and forgotten when the tab is closed.</p></div></form>`;
}

const Notices = ({ notices }) => html`<div class="notices" role="status" aria-live="polite">
  ${notices.map(({ id, level, title, text }) => html`<div key=${id} class="notice ${level}"><${Icon} name=${level === "good" ? "check" : "cross"} />
    <div><b>${title}</b> ${text}</div>
    <button class="quiet" aria-label="Dismiss" onClick=${() => dismiss(id)}><${Icon} name="close" /></button></div>`)}
</div>`;

const Footer = ({ status }) => html`<footer class="foot">
  Canarium ${status.version} · started <${Time} at=${status.started_at} /> · rev ${status.rev} · lease ${status.lease}
  ${Object.entries(status.urls ?? {}).map(([name, url]) => html` · ${name} <code>${url}</code>`)} · times are local, UTC on hover
</footer>`;

/** The tab's title carries the worst news, so that it shows in a row of tabs. */
function titleOf(state) {
  const models = state.status?.models ?? [];
  const kill = globalKill(state);
  const bad = models
    .map((model) => [model.model, health(model, state.verdicts[model.model], kill.on, Date.now())])
    .filter(([, look]) => look.level === "bad");
  if (state.paused) return "⏸ paused · Canarium"; // what it said before may not be so any more
  if (state.statusError) return "⚠ stale · Canarium";
  if (kill.on) return "■ ALL KILLED · Canarium";
  if (bad.length) return `■ ${bad.map(([name, look]) => `${name}: ${look.word}`).join(", ")} · Canarium`;
  return state.status?.instance ? `${state.status.instance} · Canarium` : "Canarium";
}

export function App() {
  const state = useStore();
  const now = useNow();
  const { stale } = connection(state, now);
  const models = state.status?.models ?? [];
  const model = models.find((view) => view.model === state.selected);
  useEffect(() => { document.title = titleOf(state); }, [state]);
  return html`
    <${Header} state=${state} />
    <div class="page ${stale ? "is-stale" : ""}">
      <${LinkBanner} state=${state} />
      <${GlobalBanner} state=${state} />
      ${state.status && html`<${ModelTabs} state=${state} />`}
      <main>
        ${model && html`<${Model} key=${model.model} model=${model} state=${state} />`}
        ${state.status && !models.length && html`<p class="loading">The control plane serves no model yet.</p>`}
      </main>
    </div>
    ${state.status && html`<${Footer} status=${state.status} />`}
    <${Dialogs} state=${state} />
    <${Notices} notices=${state.notices} />`;
}

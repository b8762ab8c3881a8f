// The bar on top: which instance, is what I see current, is it being watched, is anything killed.
import { html } from "../html.js";
import { count, duration } from "../format.js";
import { connection, openDialog, useNow } from "../store.js";
import { globalKill } from "../derive.js";
import { token } from "../api.js";
import { restart } from "../sync.js";
import { Icon, Pill } from "./parts.js";

const ICON = { good: "check", warn: "warning", bad: "cross", idle: "empty" };

function ConnectionPill({ state }) {
  const now = useNow();
  const { level, word, ageMs } = connection(state, now);
  const age = ageMs === null ? "" : ` · ${duration(ageMs / 1000)} old`;
  return html`<${Pill} level=${level} icon=${ICON[level]} title=${state.statusError ?? "Age of the last status received"}>
    <span class="pill-key">Link</span> <span data-testid="connection">${word}</span><span class="age">${age}</span>
  <//>`;
}

function monitorLook(monitor) {
  if (!monitor) return { level: "warn", word: "unknown" };
  const age = duration(monitor.heartbeat_age_s);
  if (!monitor.alive) return { level: "bad", word: `silent${monitor.heartbeat_age_s == null ? "" : ` for ${age}`}` };
  if (monitor.mode && monitor.mode !== "ok") return { level: "warn", word: String(monitor.mode) };
  return { level: "good", word: "ok" };
}

function controlLook(control) {
  const database = control?.database;
  if (!database) return { level: "warn", word: "unknown" };
  return database === "ok" ? { level: "good", word: "ok" } : { level: "bad", word: "database error", title: database };
}

/** The facts of the last status; once the page is stale they are told as what was, without colour. */
function Facts({ state }) {
  const { status } = state;
  const monitor = monitorLook(status.monitor);
  const control = controlLook(status.control);
  const gateways = status.gateways ?? [];
  const behind = gateways.filter(({ rev }) => rev !== status.rev);
  const { stale } = connection(state, useNow());
  const look = (level, icon = ICON[level]) => (stale ? { level: "idle", icon: "empty" } : { level, icon });
  const was = stale ? "was " : "";
  const kill = globalKill(state);
  const gatewayLevel = !gateways.length ? "warn" : behind.length ? "warn" : "good";
  const gatewayTitle = gateways.map(({ id, node, rev, seen_age_s }) => `${id} on ${node}: rev ${rev}, seen ${duration(seen_age_s)} ago`).join("\n");
  return html`
    <${Pill} ...${look(monitor.level)} title="The monitor's last heartbeat: ${duration(status.monitor?.heartbeat_age_s)} ago">
      <span class="pill-key">Monitor</span> ${was}${monitor.word}<//>
    <${Pill} ...${look(control.level)} title=${control.title ?? `rev ${status.rev}, lease ${status.lease}`}>
      <span class="pill-key">Control</span> ${was}${control.word}<//>
    <${Pill} ...${look(gatewayLevel)} title=${gatewayTitle || "No gateway has reported"}>
      <span class="pill-key">Gateways</span> ${was}${count(gateways.length)}${behind.length ? `, ${behind.length} behind` : ""}<//>
    <${Pill} ...${kill.on ? { level: "bad", icon: "stop" } : look("idle", "check")} title="Global kill-switch over all models">
      <span class="pill-key">Kill-switch</span> ${" "}
      <span data-testid="global-kill">${kill.on ? `ON, all models (seq ${kill.seq})` : `${was}off`}</span><//>`;
}

function signOut() {
  token.set("");
  restart();
}

export function Header({ state }) {
  const { status } = state;
  const kill = globalKill(state);
  return html`<header class="top">
    <div class="brand">
      <svg class="logo" viewBox="0 0 20 20" aria-hidden="true">
        <path class="logo-a" d="M2 4h7l3 6-3 6H2l3-6Z" /><path class="logo-b" d="M11 4h3l4 6-4 6h-3l3-6Z" /></svg>
      <span class="brand-name">Canarium</span>
      ${status && html`<span class="instance" title="version ${status.version}">${status.instance}</span>`}
    </div>
    <div class="pills" role="status" aria-live="off"><${ConnectionPill} state=${state} />${status && html`<${Facts} state=${state} />`}</div>
    <div class="top-actions">
      ${token.get() && html`<button class="quiet" onClick=${signOut}>Forget token</button>`}
      ${status && (kill.on
        ? html`<button key="rearm" class="danger-outline" onClick=${() => openDialog({ kind: "rearmAll" })}>Re-arm all…</button>`
        : html`<button key="kill" class="danger-outline" onClick=${() => openDialog({ kind: "killAll" })}><${Icon} name="stop" />Kill all models…</button>`)}
    </div>
  </header>`;
}

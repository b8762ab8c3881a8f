// The audit trail, newest first: who did what to whom, why, what changed, and on what evidence.
import { html, useState } from "../html.js";
import { brief, changes, count, leaves, toMillis, words } from "../format.js";
import { notify } from "../store.js";
import { api } from "../api.js";
import { loadOlderAudit } from "../sync.js";
import { Empty, Icon, Panel, Time, Warn } from "./parts.js";

const ALL = "*";
const LOOK = { kill: ["stop", "bad"], rollback: ["back", "warn"], rearm: ["check", "good"], traffic: ["half", "info"] };
const actionOf = (entry) => String(entry.action ?? "").split(/[.:]/)[0];
const lookOf = (entry) => LOOK[actionOf(entry)] ?? ["empty", "idle"];

const hasEvidence = ({ evidence }) => evidence !== null && typeof evidence === "object" && Object.keys(evidence).length > 0;
const isTrip = (entry) => ["kill", "rollback"].includes(actionOf(entry));

/** `changes`, without bookkeeping that moves with every change. */
const told = (entry) => changes(entry.before, entry.after).filter(([path]) => !/(^|\.)(epoch|rev)$/.test(path));

const Diff = ({ rows }) => rows.length > 0 && html`<ul class="diff">${rows.map(([path, before, after]) => html`
  <li key=${path}>${words(path)}: <span class="was">${brief(before)}</span> <span aria-label="became">→</span> <b>${brief(after)}</b></li>`)}
</ul>`;

const isLong = ([path, before, after]) => path.startsWith("policy.") || brief(before).length + brief(after).length > 160;

/** What an entry changed; whole documents, such as a rollout's policy, only to whoever asks. */
function Changes({ rows }) {
  const long = rows.filter(isLong);
  return html`<${Diff} rows=${rows.filter((row) => !isLong(row))} />
    ${long.length > 0 && html`<details class="more"><summary>${count(long.length)} more</summary><${Diff} rows=${long} /></details>`}`;
}

function Evidence({ evidence }) {
  const rows = leaves(evidence).filter(([path]) => path !== "sentence");
  return html`<details class="more"><summary>Evidence</summary>
    ${evidence.sentence && html`<p class="sentence">${evidence.sentence}</p>`}
    <dl class="numbers">${rows.map(([path, value]) => html`<div key=${path}><dt>${words(path)}</dt><dd>${brief(value)}</dd></div>`)}</dl>
  </details>`;
}

function Entry({ entry, showModel }) {
  const [icon, level] = lookOf(entry);
  const target = [showModel && entry.model !== ALL ? entry.model : null, entry.variant].filter(Boolean).join(" / ");
  return html`<li class="entry ${isTrip(entry) ? `trip ${level}` : ""}">
    <div class="entry-icon ${level}"><${Icon} name=${icon} /></div>
    <div class="entry-body">
      <div class="entry-head"><b>${words(entry.action)}</b>
        ${entry.model === ALL && html`<span>all models</span>`}${target && html`<span>${target}</span>`}
        <span class="muted entry-when"><${Time} at=${entry.at} /> · <span title="audit row ${entry.seq}, hash ${entry.hash}">#${entry.seq}</span></span></div>
      <p class="entry-reason">${entry.reason || html`<span class="muted">no reason given</span>`} <span class="muted">(${entry.actor})</span></p>
      <${Changes} rows=${told(entry)} />
      ${hasEvidence(entry) && html`<${Evidence} evidence=${entry.evidence} />`}
    </div></li>`;
}

async function verifyChain() {
  try {
    const { ok, entries, first_bad: bad } = await api.auditVerify();
    if (ok) notify("good", "Audit chain intact", `${count(entries)} entries verified.`);
    else notify("bad", "Audit chain broken", `The first entry that does not verify is #${bad}.`);
  } catch (error) {
    notify("bad", "The audit chain could not be verified", error.message);
  }
}

export function Timeline({ model, audit }) {
  const [filter, setFilter] = useState("model");
  const [busy, setBusy] = useState(false);
  const keep = {
    model: (entry) => entry.model === model.model || entry.model === ALL || !entry.model,
    trips: (entry) => isTrip(entry) && (entry.model === model.model || entry.model === ALL),
    all: () => true,
  }[filter];
  const entries = audit.entries.filter(keep).sort((a, b) => b.seq - a.seq || (toMillis(b.at) ?? 0) - (toMillis(a.at) ?? 0));
  const older = async () => {
    setBusy(true);
    try { await loadOlderAudit(); } catch (error) { notify("bad", "Older entries could not be loaded", error.message); }
    setBusy(false);
  };
  const choice = (key, label) => html`<button aria-pressed=${filter === key} onClick=${() => setFilter(key)}>${label}</button>`;
  return html`<${Panel} title="Timeline" id="timeline-${model.model}" tone=${audit.error ? "stale" : ""}
      aside=${html`<button onClick=${verifyChain} title="Check the hash chain of the whole audit trail">Verify chain</button>`}>
    <div class="segmented" role="group" aria-label="Entries shown">
      ${choice("model", "This model")}${choice("trips", "Kills and rollbacks")}${choice("all", "All")}</div>
    ${audit.error && html`<${Warn} level="bad"><b>The timeline is not current.</b> ${audit.error}<//>`}
    ${entries.length === 0 && html`<${Empty}>${audit.at ? "Nothing recorded here yet." : "Waiting for the audit trail."}<//>`}
    <ol class="timeline">${entries.map((entry) => html`<${Entry} key=${entry.seq} entry=${entry} showModel=${filter === "all"} />`)}</ol>
    ${!audit.complete && audit.entries.length > 0 && html`
      <button class="wide" disabled=${busy} onClick=${older}>${busy ? "Loading…" : "Load older entries"}</button>`}
  <//>`;
}

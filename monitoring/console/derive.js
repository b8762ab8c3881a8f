// Conclusions drawn from API data: pure functions, no fetching, no rendering.
import { percent } from "./format.js";

/** Verdict words in the order in which they need attention. */
export const VERDICTS = {
  fail: { level: "bad", icon: "cross", word: "Fail", rank: 0 },
  degraded: { level: "warn", icon: "warning", word: "Degraded", rank: 1 },
  no_data: { level: "warn", icon: "empty", word: "No data", rank: 2 },
  inconclusive: { level: "info", icon: "half", word: "Inconclusive", rank: 3 },
  pass: { level: "good", icon: "check", word: "Pass", rank: 4 },
};
export const verdictLook = (verdict) => VERDICTS[verdict] ?? { level: "warn", icon: "empty", word: String(verdict ?? "unknown"), rank: 2 };

export const VERDICT_STALE_MS = 10_000;
const SERIES_STALE_MS = 10_000; // polled every 2 s

/** Whether a slot of the series is what is so now: what the monitor said before it fell silent is not. */
export const usable = (slot, now) => Boolean(slot?.data) && !slot.error && now - slot.at < SERIES_STALE_MS;

/** The kill-switch of all models: {on, seq, mark: null | {at, reason, actor}}. */
export function globalKill({ status }) {
  const { on = false, kill_seq: seq = 0, kill: mark = null } = status?.kill_switch ?? {};
  return { on, seq, mark };
}

/** A verdict's `variant` that means the model as a whole (its objectives). */
export const WHOLE = "*";

/** Whether the model's own latch is in force (it may also be killed by the global one). */
export const ownKill = (model) =>
  typeof model.kill_seq === "number" && typeof model.cleared_seq === "number"
    ? model.kill_seq > model.cleared_seq
    : Boolean(model.killed);

/** Index of a variant's colour and dash: its place in the model's list, so that it never changes on screen. */
export const slotOf = (model, name) => Math.max(0, model.variants.findIndex((variant) => variant.name === name)) % 6;

/** What to say of a table that is no longer at the epoch that was on view when a dialog opened; null while it is. */
export const movedOn = (model, epoch) => (model.epoch === epoch ? null
  : `The traffic of ${model.model} was changed since you opened this (epoch ${epoch}, now ${model.epoch}). Close it and look again.`);

export const candidates = (model) => model.variants.filter(({ name }) => name !== model.baseline);

/** A candidate with users or shadow copies. */
export const isLive = (variant) => !variant.vetoed && ((variant.weight ?? 0) > 0 || (variant.shadow ?? 0) > 0);

/** The split that is in force: kills and vetoes hand their share to the baseline. Percent by variant. */
export function effectiveSplit(model, killed) {
  const split = model.variants.map((variant) => ({
    name: variant.name,
    percent: variant.name === model.baseline || killed || variant.vetoed ? 0 : variant.weight ?? 0,
  }));
  const rest = 100 - split.reduce((sum, { percent: share }) => sum + share, 0);
  return split.map((share) => (share.name === model.baseline ? { ...share, percent: Math.max(0, rest) } : share));
}

/** The split written in the routing table, whether or not it is in force. */
export const configuredSplit = (model) => {
  const others = candidates(model).reduce((sum, { weight }) => sum + (weight ?? 0), 0);
  return model.variants.map(({ name, weight }) => ({ name, percent: name === model.baseline ? Math.max(0, 100 - others) : weight ?? 0 }));
};

/** The split that a re-arm brings back: a rollout that the kill ended goes back instead. */
export function rearmedSplit(model) {
  const ended = new Set((model.rollouts ?? []).filter(({ state }) => state === "killed").map(({ variant }) => variant));
  const split = configuredSplit(model);
  const back = split.filter(({ name }) => ended.has(name)).reduce((sum, { percent: share }) => sum + share, 0);
  return split.map(({ name, percent: share }) => ({
    name, percent: ended.has(name) ? 0 : name === model.baseline ? share + back : share,
  }));
}

export const splitWords = (split) =>
  split.filter(({ percent: share }) => share > 0).map(({ name, percent: share }) => `${name} ${percent(share)}`).join(", ");

/** How verdicts stand as data: absent, stale or usable. */
export function verdictsState(slot, now) {
  if (!slot?.data) return { usable: false, why: slot?.error ?? "No verdicts received yet." };
  if (slot.data.stale) return { usable: false, why: "The monitor has stopped reporting: these verdicts are its last." };
  if (now - slot.at > VERDICT_STALE_MS) return { usable: false, why: slot.error ?? "Verdicts are no longer being received." };
  return { usable: true, why: "" };
}

const say = (level, icon, word, text) => ({ level, icon, word, text });

/** One line on a model: {level, icon, word, text}. Anything unknown is said and is never a pass. */
export function health(model, slot, killedEverywhere, now) {
  if (killedEverywhere) return say("bad", "stop", "Killed", `Global kill-switch: every request is answered by ${model.baseline}.`);
  if (model.killed) return say("bad", "stop", "Killed", `Every request is answered by the baseline, ${model.baseline}.`);
  const live = candidates(model).filter(isLive);
  const back = candidates(model).filter((variant) => variant.rolled_back || variant.vetoed);
  const judged = new Set([WHOLE, model.baseline, ...live.map(({ name }) => name)]);
  const all = (slot?.data?.verdicts ?? []).filter(({ variant }) => judged.has(variant));
  const verdicts = all.filter(({ variant }) => live.some(({ name }) => name === variant));
  const worst = [...verdicts].sort((a, b) => verdictLook(a.verdict).rank - verdictLook(b.verdict).rank)[0];
  const failing = worst?.verdict === "fail" ? worst : all.find(({ verdict }) => verdict === "fail");
  if (failing) return say("bad", "cross", failing.guard.endsWith("_slo") ? "Objective missed" : "Guard failing", failing.sentence);
  if (!live.length && back.length) {
    const names = back.map(({ name }) => name).join(", ");
    return say("warn", "back", "Rolled back", `${names} rolled back; every request is answered by ${model.baseline}.`);
  }
  if (!live.length) return say("idle", "empty", "Baseline only", `No candidate takes traffic; ${model.baseline} answers everything.`);
  const { usable, why } = verdictsState(slot, now);
  if (!usable) return say("warn", "warning", "Not watched", why);
  const unwatched = live.find(({ name }) => !verdicts.some(({ variant }) => variant === name));
  if (unwatched) return say("warn", "empty", "No data", `There is no verdict on ${unwatched.name}, which takes traffic. No data is not a pass.`);
  if (worst.verdict === "pass") return say("good", "check", "Passing", "Every guard of every live candidate passes.");
  if (worst.verdict === "degraded") return say("warn", "warning", "Degraded", worst.sentence);
  const tally = (word) => verdicts.filter(({ verdict }) => verdict === word).length;
  const [passes, open, blind] = [tally("pass"), tally("inconclusive"), tally("no_data")];
  if (!passes && !open) return say("warn", "empty", "No data", `None of ${verdicts.length} verdicts has data. No data is not a pass.`);
  const parts = [`${passes} pass`, open && `${open} inconclusive`, blind && `${blind} without data`].filter(Boolean).join(", ");
  return say("info", "half", "Undecided", `No guard fails, not all have enough evidence: ${parts}.`);
}

/** The state of one variant: {level, icon, word}. */
export function variantState(model, variant, killed) {
  if (variant.name === model.baseline) return { level: "good", icon: "check", word: "Live" };
  if (variant.rolled_back) return { level: "warn", icon: "back", word: "Rolled back" };
  if (variant.vetoed) return { level: "bad", icon: "stop", word: "Vetoed" };
  if (killed && isLive(variant)) return { level: "bad", icon: "stop", word: "Killed" };
  if ((variant.weight ?? 0) > 0) return { level: "good", icon: "check", word: "Live" };
  if ((variant.shadow ?? 0) > 0) return { level: "info", icon: "half", word: "Shadow" };
  return { level: "idle", icon: "empty", word: "Idle" };
}

/** The last number of a series that is not older than `back` samples, or null. */
export function latest(values, back = 15) {
  if (!values) return null;
  for (let i = values.length - 1; i >= Math.max(0, values.length - back); i--) if (typeof values[i] === "number") return values[i];
  return null;
}

const ROLLOUTS = {
  pending: ["idle", "half", "Pending"],
  warmup: ["info", "half", "Warming up"],
  shadow: ["info", "half", "In the shadow"],
  ramping: ["info", "half", "Ramping"],
  paused: ["warn", "warning", "Paused"],
  promoting: ["info", "half", "Promoting"],
  monitoring: ["info", "half", "Promoted, watched"],
  succeeded: ["good", "check", "Succeeded"],
  rolling_back: ["bad", "back", "Rolling back"],
  rolled_back: ["warn", "back", "Rolled back"],
  killed: ["bad", "stop", "Killed"],
};

/** The state of a rollout: {level, icon, word}; a pause says why. */
export function rolloutLook({ state, hold }) {
  const [level, icon, word] = ROLLOUTS[state] ?? ["warn", "empty", String(state)];
  return { level, icon, word: hold ? `${word}: ${hold.replaceAll("_", " ")}` : word };
}

/** What may be asked of a rollout in its state, the likeliest first: [{action, verb, tone}]. */
export function rolloutActions({ state, hold, held, live }) {
  const one = (action, verb, tone = "") => ({ action, verb, tone });
  if (state === "rolled_back") return [one("retry", "Try again")];
  if (!live || state === "rolling_back" || state === "killed") return [];
  const next = state !== "paused" ? one("pause", "Pause")
    : hold === "approval" ? one("approve", "Approve", "primary") : one("resume", "Resume", hold === "manual" ? "primary" : "");
  const promotes = state === "ramping" || (state === "paused" && held === "ramping");
  return [next, ...(promotes ? [one("promote", "Promote")] : []), one("abort", "Abort", "danger-outline")];
}

/** The guards that pause a rollout now and that nobody has set aside: its verdicts of them. */
export const pausing = ({ verdicts, waived }) =>
  (verdicts ?? []).filter(({ guard, verdict, action }) => verdict === "fail" && action === "pause" && !(waived ?? []).includes(guard));

const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];

/** Where a report of the monitor is: on its address, or under this page's name where that is known on its machine only. */
export function reportUrl(monitor, path) {
  if (!monitor || typeof path !== "string" || !path.startsWith("/v1/reports/")) return null;
  const url = new URL(path, monitor);
  if (LOOPBACK.includes(url.hostname) && !LOOPBACK.includes(location.hostname)) url.hostname = location.hostname;
  return url.href;
}

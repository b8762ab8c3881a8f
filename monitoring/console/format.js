// Values to words. Every function takes null or undefined and says "–": a missing number is never a zero.
export const MISSING = "–";

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (value) => (isNumber(value) ? grouped.format(value) : MISSING);

/** A number with about `digits` significant digits, without exponent between 1e-3 and 1e6. */
export function number(value, digits = 3) {
  if (!isNumber(value)) return MISSING;
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return count(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(Math.max(digits, size >= 1 ? Math.ceil(Math.log10(size + 1)) : 0))));
}

/** A percentage that is already in percent (traffic weights have a resolution of 0.01 %). */
export const percent = (value) => (isNumber(value) ? `${Number(value.toFixed(2))} %` : MISSING);

/** A ratio in 0..1 as a percentage. */
export function ratio(value, decimals = 1) {
  return isNumber(value) ? `${(value * 100).toFixed(decimals)} %` : MISSING;
}

export function milliseconds(value) {
  if (!isNumber(value)) return MISSING;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

export function bytes(value) {
  if (!isNumber(value)) return MISSING;
  const units = ["B", "kB", "MB", "GB"];
  const step = Math.min(units.length - 1, value > 0 ? Math.floor(Math.log10(value) / 3) : 0);
  const scaled = value / 1000 ** step;
  return `${step && scaled < 100 ? scaled.toFixed(1) : scaled.toFixed(0)} ${units[step]}`;
}

/** A length of time in seconds, in the two largest units that say something. */
export function duration(seconds) {
  if (!isNumber(seconds)) return MISSING;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 && s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** ISO string, Unix seconds or Unix milliseconds → milliseconds, or null. */
export function toMillis(value) {
  if (isNumber(value)) return value > 1e12 ? value : value * 1000;
  const parsed = typeof value === "string" ? Date.parse(value) : NaN;
  return Number.isNaN(parsed) ? null : parsed;
}

const clockTime = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const dayTime = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
});

export const timeOfDay = (ms) => clockTime.format(ms);
export const dateTime = (ms) => dayTime.format(ms);
export const utc = (ms) => `${new Date(ms).toISOString().replace("T", " ").replace(/\.\d+Z$/, "")} UTC`;

/** Whether two instants fall on one local day. */
export const sameDay = (a, b) => new Date(a).toDateString() === new Date(b).toDateString();

/** A natural-log evidence value as the e-value it stands for: "37×", "0.2×", "3e12×". */
export function evidence(log) {
  if (!isNumber(log)) return MISSING;
  if (Math.abs(log) > 13.8) return `1e${Math.round(log / Math.LN10)}×`;
  const value = Number(Math.exp(log).toPrecision(2));
  return `${value >= 1000 ? count(value) : number(value, 2)}×`;
}

/** Any JSON value on one line, for before → after lists. */
export function brief(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return number(value, 4);
  if (typeof value === "string") return value === "" ? "none" : value;
  if (Array.isArray(value)) return value.length ? value.map(brief).join(", ") : "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Leaves of nested JSON as [path, value]; arrays count as leaves. */
export function leaves(value, path = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, inner]) => leaves(inner, path ? `${path}.${key}` : key));
  }
  return [[path, value]];
}

/** What changed between two JSON values, as [path, before, after]. */
export function changes(before, after) {
  const left = new Map(before === null || before === undefined ? [] : leaves(before));
  const right = new Map(after === null || after === undefined ? [] : leaves(after));
  const paths = [...new Set([...left.keys(), ...right.keys()])];
  return paths
    .filter((path) => JSON.stringify(left.get(path)) !== JSON.stringify(right.get(path)))
    .map((path) => [path, left.get(path), right.get(path)]);
}

/** Snake case to words; units at the end of a key stay recognisable. */
export const words = (key) => String(key).replaceAll("_", " ");

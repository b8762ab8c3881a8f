// The admin API: one function per operation. Every request has a timeout and stays on this origin.
const ROOT = new URL("admin/v1/", document.baseURI);
const TOKEN_KEY = "canarium.token";
const ACTOR_KEY = "canarium.actor";
const READ_TIMEOUT_MS = 5000;
const WRITE_TIMEOUT_MS = 15_000;

/** A refused or failed request. `status` is 0 when no answer came: a change may have been made all the same. `message` is the server's own text. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN_KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(TOKEN_KEY, value) : sessionStorage.removeItem(TOKEN_KEY)),
};

export const actor = {
  get: () => sessionStorage.getItem(ACTOR_KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(ACTOR_KEY, value) : sessionStorage.removeItem(ACTOR_KEY)),
};

function headers(extra = {}) {
  const secret = token.get();
  return secret ? { ...extra, Authorization: `Bearer ${secret}` } : extra;
}

function networkError(error, timeoutMs) {
  if (error.name === "TimeoutError") return new ApiError(`The control plane did not answer within ${timeoutMs / 1000} s.`);
  if (error.name === "AbortError") return error;
  return new ApiError("The control plane cannot be reached.");
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "string" && error) return new ApiError(error, response.status);
  } catch {
    // Not our JSON: a proxy in between answered. Its text is shown as it is.
  }
  return new ApiError(text.trim().slice(0, 500) || `${response.status} ${response.statusText}`, response.status);
}

async function request(method, path, body, epoch) {
  const timeoutMs = method === "GET" ? READ_TIMEOUT_MS : WRITE_TIMEOUT_MS;
  const init = { method, headers: headers({ Accept: "application/json" }), signal: AbortSignal.timeout(timeoutMs), cache: "no-store" };
  if (body !== undefined) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body);
    if (epoch !== undefined) init.headers["If-Match"] = `"${epoch}"`;
  }
  try {
    // "./": without it "kill-switch:rearm" would be read as a URL of the scheme "kill-switch".
    const response = await fetch(new URL(`./${path}`, ROOT), init);
    if (!response.ok) throw await errorOf(response);
    return await response.json();
  } catch (error) {
    if (error instanceof ApiError) throw error;
    if (error instanceof SyntaxError) throw new ApiError("The control plane's answer is not valid JSON.");
    throw networkError(error, timeoutMs);
  }
}

const at = (model) => `models/${encodeURIComponent(model)}`;

export const api = {
  status: () => request("GET", "status"),
  verdicts: (model) => request("GET", `${at(model)}/verdicts`),
  series: (model, seconds) => request("GET", `${at(model)}/series?seconds=${seconds}`),
  calibration: (model) => request("GET", `${at(model)}/calibration`),
  audit: ({ model = "", before = null, limit = 100 } = {}) => {
    const query = new URLSearchParams({ limit: String(limit) });
    if (model) query.set("model", model);
    if (before !== null) query.set("before", String(before));
    return request("GET", `audit?${query}`);
  },
  auditVerify: () => request("GET", "audit/verify"),
  /** Refused with 412 if the model's table is no longer at `epoch`, the one on the operator's screen. */
  setTraffic: (model, change, epoch) => request("PUT", `${at(model)}/traffic`, change, epoch),
  rollback: (model, body) => request("POST", `${at(model)}:rollback`, body),
  kill: (model, body) => request("POST", `${at(model)}:kill`, body),
  rearm: (model, body) => request("POST", `${at(model)}:rearm`, body),
  /** Both: refused with 412 if the model's table is no longer at `epoch`; without one they act on whatever there is. */
  startRollout: (body, epoch) => request("POST", "rollouts", body, epoch),
  askRollout: (id, action, body, epoch) => request("POST", `rollouts/${encodeURIComponent(id)}:${action}`, body, epoch),
  killAll: (body) => request("POST", "kill-switch", body),
  rearmAll: (body) => request("POST", "kill-switch:rearm", body),
};

/** Open the event stream. `fetch`, not EventSource: only fetch can carry the bearer token. */
export async function openEvents(signal, lastId) {
  const extra = { Accept: "text/event-stream" };
  if (lastId) extra["Last-Event-ID"] = lastId;
  const response = await fetch(new URL("events", ROOT), { headers: headers(extra), signal, cache: "no-store" });
  if (!response.ok) throw await errorOf(response);
  if (!response.body) throw new ApiError("The event stream has no body.");
  return response.body;
}

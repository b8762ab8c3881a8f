// The frame of every change: says what will happen, asks why, shows the answer word for word.
import { html, useEffect, useId, useRef, useState } from "../html.js";
import { actor as operator } from "../api.js";
import { closeDialog, notify } from "../store.js";
import { refreshAll } from "../sync.js";
import { Icon } from "./parts.js";

/**
 * Args: title; verb (the confirming button); tone "danger" | ""; invalid (why it cannot be sent, or null);
 * focusReason (false when the body has fields of its own first);
 * onSubmit({reason, actor}) → promise; success(result) → {title, text}; fallback (shown when no answer came).
 * A native modal <dialog> keeps the focus inside and closes on Esc.
 */
export function ActionDialog({ title, verb, tone = "", invalid = null, onSubmit, success, fallback, focusReason = true, children }) {
  const ref = useRef(null);
  const reasonRef = useRef(null);
  const id = useId();
  const [reason, setReason] = useState("");
  const [actor, setActor] = useState(operator.get());
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [missing, setMissing] = useState(false);

  useEffect(() => {
    const opener = document.activeElement;
    ref.current.showModal();
    return () => (opener?.isConnected ? opener : document.querySelector("h1"))?.focus();
  }, []);

  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    if (!reason.trim()) { setMissing(true); reasonRef.current.focus(); return; }
    if (invalid) return;
    setBusy(true);
    setError(null);
    operator.set(actor.trim());
    try {
      const result = await onSubmit({ reason: reason.trim(), ...(actor.trim() ? { actor: actor.trim() } : {}) });
      const told = success(result);
      closeDialog();
      notify("good", told.title, told.text);
      refreshAll();
    } catch (failure) {
      setError(failure);
      setBusy(false);
      refreshAll();
    }
  };
  const keepOpen = (event) => { if (busy) event.preventDefault(); };

  return html`<dialog ref=${ref} class="dialog ${tone}" aria-labelledby="${id}-title" onCancel=${keepOpen} onClose=${closeDialog}>
    <form onSubmit=${submit} noValidate>
      <h2 id="${id}-title">${tone === "danger" && html`<${Icon} name="stop" />`}${title}</h2>
      <div class="dialog-body">${children}</div>
      <div class="field"><label for="${id}-reason">Reason <span class="muted">(required, goes into the audit trail)</span></label>
        <input id="${id}-reason" ref=${reasonRef} name="reason" autocomplete="off" maxlength="500" autofocus=${focusReason}
          value=${reason} disabled=${busy}
          aria-required="true" aria-invalid=${missing} aria-describedby="${id}-missing"
          onInput=${(event) => { setReason(event.currentTarget.value); setMissing(false); }} />
        <p id="${id}-missing" class="field-error" role="alert">${missing ? "A reason is required." : ""}</p></div>
      <div class="field"><label for="${id}-actor">Your name <span class="muted">(optional)</span></label>
        <input id="${id}-actor" name="actor" autocomplete="off" maxlength="100" value=${actor} disabled=${busy}
          onInput=${(event) => setActor(event.currentTarget.value)} /></div>
      ${error && html`<div class="callout bad" role="alert"><${Icon} name="cross" /><div>
        <b>${error.status ? `Not done (HTTP ${error.status}).` : "It is not known whether this was done: look at the timeline."}</b> ${" "}
        <span data-testid="action-error">${error.message}</span>
        ${!error.status && fallback && html`<p>${fallback}</p>`}</div></div>`}
      ${invalid && !busy && html`<div class="callout warn" role="alert"><${Icon} name="warning" /><span>${invalid}</span></div>`}
      <div class="dialog-actions">
        <button type="button" disabled=${busy} onClick=${() => ref.current.close()}>Cancel</button>
        <button type="submit" class=${tone === "danger" ? "danger" : "primary"} disabled=${busy || Boolean(invalid)}>
          ${busy ? "Sending…" : verb}</button>
      </div>
    </form>
  </dialog>`;
}

// A small line chart in SVG: several variants over time, gaps where there is no data, a shared cursor.
import { html, useLayoutEffect, useMemo, useRef, useState } from "./html.js";
import { MISSING, timeOfDay, utc } from "./format.js";
import { Swatch } from "./components/parts.js";

const HEIGHT = 132;
const PAD = { left: 50, right: 8, top: 8, bottom: 20 };
const TICK_SECONDS = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

function niceStep(span, parts) {
  const raw = span / parts;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
}

/** The range of an axis that holds all values and ends on round numbers. */
export function axis(values, { zero = true, floor = null, ceiling = null, least = 1 } = {}) {
  let low = zero ? 0 : Infinity;
  let high = -Infinity;
  for (const list of values) for (const value of list) if (typeof value === "number") { low = Math.min(low, value); high = Math.max(high, value); }
  if (high === -Infinity) return null;
  if (high - low < least) { if (zero) high = low + least; else { low = high - least; } }
  const step = niceStep(high - low, 3);
  low = Math.floor(low / step + 1e-9) * step;
  high = Math.ceil(high / step - 1e-9) * step;
  if (floor !== null) low = Math.max(low, floor);
  if (ceiling !== null) high = Math.min(high, ceiling);
  const ticks = [];
  for (let tick = low; tick <= high + step / 1e3; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return { low, high: Math.max(high, low + step / 1e3), ticks };
}

const COMBINE = {
  max: (a, b) => Math.max(a, b),
  min: (a, b) => Math.min(a, b),
  mean: (a, b, n) => a + (b - a) / n,
};

/** The path of one series; points that share a pixel are combined (never hiding a spike), seconds without
 * a value leave a gap if there are more than `bridge` of them; nothing before `from` is drawn. */
export function linePath(at, values, x, y, keep, from, bridge) {
  const points = [];
  let column = null, value = 0, n = 0, known = Infinity;
  const flush = () => { if (n) points.push([column, value]); n = 0; };
  for (let i = 0; i < at.length; i++) {
    if (at[i] < from) continue;
    const pixel = Math.round(x(at[i]));
    if (typeof values[i] !== "number") continue;
    if (at[i] - known > bridge) { flush(); points.push(null); column = null; }
    known = at[i];
    if (pixel !== column) { flush(); column = pixel; value = values[i]; n = 1; continue; }
    value = COMBINE[keep](value, values[i], ++n);
  }
  flush();
  let path = "", pen = false;
  points.forEach((point, i) => {
    if (!point) { pen = false; return; }
    path += `${pen ? "L" : "M"}${point[0]} ${y(point[1]).toFixed(1)}`;
    if (!pen && !points[i + 1]) path += "h1.5"; // a lone point must be seen
    pen = true;
  });
  return path;
}

function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(360);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(160, Math.round(entry.contentRect.width))));
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

const nearest = (at, seconds) => {
  let low = 0, high = at.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (at[middle] < seconds) low = middle + 1; else high = middle; }
  return low;
};

/**
 * Args: title; at (Unix seconds, ascending); lines [{name, slot, values}]; format(value); keep max|min|mean;
 * scale (see `axis`); endMs and windowS (the time axis ends when data was received, so a silent monitor
 * leaves a visible gap); cursor (Unix seconds or null) and onCursor, shared by the charts of a panel.
 */
export function LineChart({ title, hint, at, lines, format, keep = "max", scale, endMs, windowS, cursor, onCursor }) {
  const [ref, width] = useWidth();
  const end = Math.max(endMs / 1000, at.at(-1) ?? 0);
  const inner = width - PAD.left - PAD.right;
  const x = (seconds) => PAD.left + ((seconds - (end - windowS)) / windowS) * inner;
  const drawn = useMemo(() => {
    const range = axis(lines.map(({ values }) => values), scale);
    if (!range) return null;
    const y = (value) => PAD.top + (1 - (value - range.low) / (range.high - range.low)) * (HEIGHT - PAD.top - PAD.bottom);
    return { ...range, y, paths: lines.map(({ values }) => linePath(at, values, x, y, keep, end - windowS, windowS / 60)) };
  }, [at, lines, width, end, windowS]);
  const index = cursor === null || !at.length ? null : nearest(at, cursor);
  const shown = (values) => {
    const value = index === null ? lastOf(values) : values[index];
    return typeof value === "number" ? format(value) : MISSING;
  };
  const step = TICK_SECONDS.find((seconds) => windowS / seconds <= Math.max(2, inner / 90)) ?? 7200;
  const times = [];
  for (let tick = Math.ceil((end - windowS) / step) * step; tick <= end; tick += step) times.push(tick);
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    onCursor(end - windowS + ((event.clientX - box.left - PAD.left) / inner) * windowS);
  };
  const key = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") onCursor(null);
    if (!move || !at.length) return;
    event.preventDefault();
    onCursor(at[Math.min(at.length - 1, Math.max(0, (index ?? at.length - 1) + move * (event.shiftKey ? 30 : 5)))]);
  };
  const summary = lines.map(({ name, values }) => `${name} ${shown(values)}`).join(", ");
  return html`<figure class="chart">
    <figcaption><span class="chart-title" title=${hint}>${title}</span>
      <span class="chart-values">${lines.map(({ name, slot, values }) => html`
        <span key=${name} class="chart-value"><${Swatch} slot=${slot} />${name} <b>${shown(values)}</b></span>`)}</span>
    </figcaption>
    <div ref=${ref} class="plot" tabindex="0" role="img" aria-label="${title}: ${drawn ? summary : "no data"}. Arrow keys move the cursor."
        onKeyDown=${key} onBlur=${() => onCursor(null)}>
      <svg width=${width} height=${HEIGHT} onPointerMove=${point} onPointerLeave=${() => onCursor(null)} aria-hidden="true">
        ${times.map((tick) => html`<g key=${tick}><path class="grid" d="M${x(tick)} ${PAD.top}V${HEIGHT - PAD.bottom}" />
          ${x(tick) > PAD.left + 8 && x(tick) < width - 18 && html`<text class="tick" x=${x(tick)} y=${HEIGHT - 6} text-anchor="middle">
            ${timeOfDay(tick * 1000).slice(0, step % 60 ? 8 : 5)}</text>`}</g>`)}
        ${drawn && drawn.ticks.map((tick) => html`<g key="y${tick}"><path class="grid" d="M${PAD.left} ${drawn.y(tick)}H${width - PAD.right}" />
          <text class="tick" x=${PAD.left - 6} y=${drawn.y(tick)} dy="0.35em" text-anchor="end">${format(tick)}</text></g>`)}
        ${drawn && lines.map(({ name, slot }, i) => html`<path key=${name} class="line v${slot}" d=${drawn.paths[i]} />`)}
        ${index !== null && html`<path class="cursor" d="M${x(at[index])} ${PAD.top}V${HEIGHT - PAD.bottom}" />`}
        ${!drawn && html`<text class="none" x=${width / 2} y=${HEIGHT / 2} text-anchor="middle">no data</text>`}
      </svg>
      ${index !== null && html`<span class="cursor-time" title=${utc(at[index] * 1000)}>${timeOfDay(at[index] * 1000)}</span>`}
    </div>
  </figure>`;
}

/** The newest number, looking back over a short gap only. */
function lastOf(values) {
  for (let i = values.length - 1; i >= Math.max(0, values.length - 15); i--) if (typeof values[i] === "number") return values[i];
  return null;
}

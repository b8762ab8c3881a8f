// The one place that binds the vendored libraries: everything else imports from here.
import { h, render, Component } from "./vendor/preact.js";
import { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-hooks.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);
export { h, render, Component, useEffect, useId, useLayoutEffect, useMemo, useRef, useState };

// Starts the console.
import { html, render } from "./html.js";
import { App } from "./components/app.js";
import { run } from "./sync.js";

render(html`<${App} />`, document.getElementById("app"));
run();

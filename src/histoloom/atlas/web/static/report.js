// The report's refresh: starts it, says how it stands, and shows the new report.

import { api, showError } from "./common.js";

const POLL = 1000; // ms
const button = document.getElementById("refresh");
const state = document.getElementById("report-state");

/** Show how the refresh stands, until it has ended; `started` is whether it was under way before. */
function show(report, { started = false } = {}) {
  const running = report.state === "running";
  button.disabled = running;
  if (running) state.textContent = "The report is being made; this takes seconds, or minutes where a flag has changed and samples are judged again …";
  else if (report.state === "failed") state.textContent = `Not made: ${report.message}`;
  if (running) setTimeout(poll, POLL);
  else if (started && report.state === "done") location.reload();
}

async function poll() {
  try {
    show(await api("/api/report"), { started: true });
  } catch (error) {
    showError(error);
    setTimeout(poll, 5 * POLL);
  }
}

button.addEventListener("click", () => api("/api/report/refresh", { body: {} }).then(show, showError));
if (button.disabled) poll();

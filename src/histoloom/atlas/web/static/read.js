// The page that starts a blinded reading: the form, and a table of the readings that exist.

import { api, element, showError } from "/static/common.js";

const form = document.getElementById("new-reading");
const problem = document.getElementById("problem");
const READER = "histoloom-reader"; // key of the reader's name in the browser's storage
const RATER = "histoloom-rater"; // that of the page Name
const KINDS = { "real-or-synthetic": "real or synthetic", "reconstruction-or-synthetic": "reconstruction or synthetic", naming: "which tissue" };

/** Show how precise this number of pictures is: the widest 95 % interval (Wilson), at half of the answers right. */
function showPrecision() {
  const n = Number(form.trials.value);
  const halfWidth = 1.96 / (2 * Math.sqrt(n + 1.96 ** 2));
  document.getElementById("trials-hint").textContent = n >= 4 ? `an accuracy of 50 % is known to ± ${Math.round(100 * halfWidth)} points` : "";
}

/** Start a session of the reading whose id `getReading` resolves to, and open it. */
async function startSession(getReading) {
  const reader = form.reader.value.trim();
  problem.textContent = reader ? "" : "Enter your name.";
  form.reader.setAttribute("aria-invalid", String(!reader));
  if (!reader) return form.reader.focus();
  const buttons = [...document.querySelectorAll("main button")];
  buttons.forEach((button) => (button.disabled = true));
  try {
    localStorage.setItem(READER, reader);
    const id = await getReading();
    const { session } = await api(`/api/readings/${encodeURIComponent(id)}/sessions`, { body: { reader } });
    location.href = `/read/${session}`;
  } catch (error) {
    problem.textContent = error.message;
    buttons.forEach((button) => (button.disabled = false));
    if (error.status === undefined) showError(error);
  }
}

async function listReadings() {
  const readings = await api("/api/readings");
  const columns = [["number", "text"], ["question", "text"], ["k"], ["pictures"], ["readers", "text"], [""]];
  const row = (reading) => {
    const readers = reading.readers.map(({ reader, answered }) => `${reader}: ${answered === reading.trials ? "done" : `${answered} of ${reading.trials}`}`);
    return element("tr", {},
      element("th", { scope: "row", class: "text" }, reading.id.split("-")[0]),
      element("td", { class: "text" }, KINDS[reading.kind] + (reading.feedback ? " (training)" : "")),
      element("td", {}, String(reading.k)),
      element("td", {}, String(reading.trials)),
      element("td", { class: "text who" }, readers.length ? readers.map((reader) => element("div", {}, reader)) : "nobody yet"),
      element("td", {}, element("button", { type: "button", "aria-label": `Read ${reading.id}`, onclick: () => startSession(async () => reading.id) }, "Read")));
  };
  document.getElementById("readings").replaceChildren(readings.length
    ? element("div", { class: "scroll" }, element("table", {},
      element("caption", { class: "hidden" }, "Readings, the newest first"),
      element("thead", {}, element("tr", {}, columns.map(([title, kind]) => (title ? element("th", { scope: "col", class: kind }, title) : element("td"))))),
      element("tbody", {}, readings.map(row))))
    : element("p", {}, "None yet."));
}

form.reader.value = localStorage.getItem(READER) ?? localStorage.getItem(RATER) ?? "";
form.trials.addEventListener("input", showPrecision);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  startSession(async () => {
    const body = { kind: form.kind.value, trials: Number(form.trials.value), k: Number(form.k.value), feedback: form.feedback.checked };
    return (await api("/api/readings", { body })).id;
  });
});
showPrecision();
listReadings().catch(showError);

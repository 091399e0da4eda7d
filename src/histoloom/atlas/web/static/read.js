// The page that begins a reading: the form, and the readings that there are.

import { api, complain, element } from "/static/common.js";

const form = document.getElementById("new-reading");
const problem = document.getElementById("problem");
const NAME = "histoloom-reader";
const KINDS = { "real-or-synthetic": "real or synthetic", "reconstruction-or-synthetic": "reconstruction or synthetic", naming: "which tissue" };

form.reader.value = localStorage.getItem(NAME) ?? "";
form.trials.addEventListener("input", hint);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  begin(async () => {
    const body = { kind: form.kind.value, trials: Number(form.trials.value), k: Number(form.k.value), feedback: form.feedback.checked };
    return (await api("/api/readings", { body })).id;
  });
});

/** What a number of pictures can show: the widest 95 % interval, at a half of right answers (Wilson). */
function hint() {
  const n = Number(form.trials.value);
  const half = 1.96 / (2 * Math.sqrt(n + 1.96 ** 2));
  document.getElementById("trials-hint").textContent = n >= 4 ? `an accuracy of 50 % is known to ± ${Math.round(100 * half)} points` : "";
}

async function begin(reading) {
  const reader = form.reader.value.trim();
  problem.textContent = reader ? "" : "Say who reads: your name.";
  form.reader.setAttribute("aria-invalid", String(!reader));
  if (!reader) return form.reader.focus();
  const buttons = [...document.querySelectorAll("main button")];
  buttons.forEach((button) => (button.disabled = true));
  try {
    localStorage.setItem(NAME, reader);
    const id = await reading();
    const state = await api(`/api/readings/${encodeURIComponent(id)}/sessions`, { body: { reader } });
    location.href = `/read/${state.session}`;
  } catch (error) {
    problem.textContent = error.message;
    buttons.forEach((button) => (button.disabled = false));
    if (error.status === undefined) complain(error);
  }
}

function row(reading) {
  const readers = reading.readers.map(({ reader, answered }) => `${reader}: ${answered === reading.trials ? "done" : `${answered} of ${reading.trials}`}`);
  return element("tr", {},
    element("th", { scope: "row", class: "text" }, reading.id.split("-")[0]),
    element("td", { class: "text" }, KINDS[reading.kind] + (reading.feedback ? " (training)" : "")),
    element("td", {}, String(reading.k)),
    element("td", {}, String(reading.trials)),
    element("td", { class: "text who" }, readers.length ? readers.map((reader) => element("div", {}, reader)) : "nobody yet"),
    element("td", {}, element("button", { type: "button", "aria-label": `Read ${reading.id}`, onclick: () => begin(async () => reading.id) }, "Read")));
}

async function list() {
  const found = await api("/api/readings");
  const titles = [["number", "text"], ["question", "text"], ["k"], ["pictures"], ["readers", "text"], [""]];
  document.getElementById("readings").replaceChildren(found.length
    ? element("div", { class: "scroll" }, element("table", {},
      element("caption", { class: "hidden" }, "Readings, the newest first"),
      element("thead", {}, element("tr", {}, titles.map(([title, kind]) => (title ? element("th", { scope: "col", class: kind }, title) : element("td"))))),
      element("tbody", {}, found.map(row))))
    : element("p", {}, "None yet."));
}

hint();
list().catch(complain);

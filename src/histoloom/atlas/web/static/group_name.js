// Naming on a group's own page: its name and flag, for all of its clusters, by one rater.

import { api, element, showError, toast } from "./common.js";

const form = document.getElementById("group-name");
const k = Number(form.dataset.k);
const clusters = form.dataset.clusters.split(",").map(Number);
const name = document.getElementById("group-name-field");
const rater = document.getElementById("group-rater");
const problem = document.getElementById("group-problem");
const flags = [...form.querySelectorAll("[data-flag]")];
const RATER = "histoloom-rater"; // key of the browser's storage, as on the page Name
const normalised = (text) => text.normalize("NFC").toLowerCase().trim().split(/\s+/).join(" ");
const newEdit = () => crypto.randomUUID?.() ?? `e${Date.now()}`;

let typed = false; // whether the name in the field is not saved yet

/** Show the rater's own name and flag. What is being typed stays. */
function show(names) {
  if (!typed) name.value = names.clusters[clusters[0]].name;
  for (const button of flags) button.setAttribute("aria-pressed", String(clusters.every((one) => names.clusters[one].flag === button.dataset.flag)));
  document.getElementById("group-suggestions").replaceChildren(...names.suggestions.map((text) => element("option", { value: text })));
}

/** Set the same label for all clusters of the group, as one step; resolves to the rater's names. */
async function save(label) {
  const by = rater.value.trim();
  problem.textContent = by ? "" : "Enter your own name first: names are saved under it.";
  rater.setAttribute("aria-invalid", String(!by));
  if (!by) {
    rater.focus();
    return null;
  }
  localStorage.setItem(RATER, by);
  const edit = newEdit();
  let names = null;
  try {
    for (const cluster of clusters) names = await api(`/api/names/${k}/${cluster}`, { body: { rater: by, edit, ...label } });
  } catch (error) {
    if (error.status === 0) throw error;
    problem.textContent = `Not saved: ${error.message}`;
    return null;
  }
  if ("name" in label) typed = false;
  show(names);
  return { names, by };
}

/** Undo exactly this step, and show what the page is then. */
async function undo(step, by) {
  await api(`/api/names/${k}/undo`, { body: { rater: by, step } });
  location.reload();
}

async function saveName(event) {
  event.preventDefault();
  const saved = await save({ name: name.value });
  if (!saved) return;
  const { names, by } = saved;
  const given = names.clusters[clusters[0]].name;
  const counts = !names.reference || names.reference === by;
  const sameName = given ? names.clusters.filter((one) => normalised(one.name) === normalised(given)).map((one) => one.cluster) : clusters.slice(0, 1);
  if (counts && sameName.join() !== clusters.join()) {
    location.assign(`/clusters/${k}/${sameName[0]}`); // it is one group with others now, or no longer
    return;
  }
  const title = document.getElementById("group-title");
  if (counts) title.replaceChildren(...(given ? [element("span", { class: "number" }, clusters.join(", ")), ` ${given}`] : [`Group ${clusters[0]}`]));
  toast(`${given ? `Saved: ${given}` : "The name is removed"}${counts ? "" : `; only the names of ${names.reference} count`}`, {
    action: { title: "Undo this name", run: () => undo(names.step, by).catch(showError) }, key: "name",
  });
}

async function saveFlag(button) {
  const flag = button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.flag;
  const saved = await save({ flag });
  if (saved) location.reload(); // the page says elsewhere what the flag means
}

form.addEventListener("submit", (event) => saveName(event).catch(showError));
for (const button of flags) button.addEventListener("click", () => saveFlag(button).catch(showError));
name.addEventListener("input", () => { typed = true; });
rater.value = localStorage.getItem(RATER) ?? "";
for (const control of form.querySelectorAll(":disabled")) control.disabled = false; // Enter before this would lose what was typed
const load = () => api(`/api/names/${k}?${new URLSearchParams({ rater: rater.value.trim() })}`).then(show, showError);
rater.addEventListener("change", load);
load();

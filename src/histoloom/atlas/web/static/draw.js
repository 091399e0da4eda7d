// The page that generates: the form, the pictures that it starts from, and the list of jobs.

import { BASKET_CHANGED, addToBasket, basket, removeFromBasket, setBasket } from "./basket.js";
import { announce, api, element, formProblem, showError } from "./common.js";
import { poll, strengthText } from "./job_state.js";
import { showJobs } from "./jobs.js";
import { showOwn } from "./own.js";

const byId = (id) => document.getElementById(id);
const form = byId("form");
const query = new URLSearchParams(location.search);
const k = Number(document.body.dataset.k);
const KEPT = `histoloom-draw:${document.body.dataset.run}`; // key of the form in this tab's storage
const KEPT_FIELDS = ["tissue", "strength", "n", "seed", "method", "steps", "guidance"];
const SOURCES_NEEDED = { tissue: 0, like: 1, between: 2 }; // by mode
const START_STRENGTH = { like: 0.7, between: 0.5 };
const SEEDS = 1_000_000_000; // random seeds are below it: short enough to be written down
const SLOW = 600; // ms after which the button says that the generator is loading

/** The visible effect of a strength, as seen on real tissue: [highest strength, effect on one source, effect between two]. */
const EFFECTS = [
  [0.4, "The same picture with other details.", "One picture fades into the other."],
  [0.6, "The same layout, cells made anew.", "Made anew from a mixture of both."],
  [0.8, "The same kind and coarse layout, other cells.", "The tissue changes at once half-way."],
  [1, "Only the tissue and its colours stay.", "Little of either stays but the tissue."],
];

let options; // of the server: tissues, methods, defaults, limits
let mode = "tissue"; // tissue, like, between
let like = null; // the picture that "more like this" starts from
let pair = []; // the pictures in the basket, at most two

const sources = () => (mode === "like" ? [like].filter(Boolean) : mode === "between" ? pair : []);

function setMode(newMode) {
  if (newMode !== mode && newMode !== "tissue") byId("strength").value = START_STRENGTH[newMode];
  mode = newMode;
  for (const button of form.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
  byId("sources").hidden = mode === "tissue";
  byId("own").hidden = mode === "tissue";
  byId("strength-field").hidden = mode === "tissue";
  byId("tissue-field").hidden = mode === "between";
  const n = byId("n");
  n.min = mode === "between" ? 2 : 1;
  if (Number(n.value) < Number(n.min)) n.value = 8;
  showSources();
  fillTissues();
  showStrength();
}

/** Show the sources of this mode, each with a button to remove it, and an empty slot for each that is missing. */
function showSources() {
  const titles = mode === "between" ? ["From", "To"] : ["More like this"];
  byId("sources").replaceChildren(...titles.map((title, index) => {
    const source = sources()[index];
    if (!source) {
      const help = `Choose “${mode === "between" ? "Between two" : "More like this"}” at any enlarged picture, or give one of your own.`;
      return element("figure", { class: "slot" }, element("div", { class: "empty" }, help), element("figcaption", {}, title));
    }
    const remove = () => {
      if (mode === "between") removeFromBasket(index);
      else useLike(null);
    };
    return element("figure", { class: "slot" },
      element("img", { src: source.src, alt: source.title, width: 160, height: 160 }),
      element("figcaption", {}, `${title}: ${source.title}`),
      element("button", { type: "button", class: "quiet", onclick: remove }, "Remove"));
  }));
}

function fillTissues() {
  const select = byId("tissue");
  const selected = select.value;
  select.replaceChildren(
    element("option", { value: "" }, mode === "like" ? "Its own tissue" : "All tissues, by their frequency"),
    ...options.tissues.map(({ name, title, share }) => element("option", { value: name }, `${title} · ${(100 * share).toFixed(1)} %`)));
  select.value = options.tissues.some(({ name }) => name === selected) ? selected : "";
  showTissueHint();
}

function showTissueHint() {
  const tissue = options.tissues.find(({ name }) => name === byId("tissue").value);
  const artefacts = options.tissues.filter(({ artefact }) => artefact).map(({ title }) => title);
  byId("tissue-hint").textContent = tissue
    ? (tissue.clusters.length > 1 ? `Over its ${tissue.clusters.length} groups, by their frequency.` : "")
    : mode === "tissue" && artefacts.length ? `Without artefacts: ${artefacts.join(", ")}.` : "";
}

function showStrength() {
  const strength = Number(byId("strength").value);
  const [limit, onOne, onTwo] = EFFECTS.find(([highest]) => strength <= highest);
  const fromReal = limit <= 0.8 && sources().some((source) => source.real);
  const warning = fromReal ? " It starts from a real patch and may pass for a copy of it: treat it as you treat that patch." : "";
  byId("strength-value").textContent = strengthText(strength);
  byId("strength").setAttribute("aria-valuetext", strengthText(strength));
  byId("strength-hint").textContent = (mode === "between" ? onTwo : onOne) + warning;
}

function fillMethods() {
  byId("method").replaceChildren(...options.methods.map((method) => element("option", { value: method },
    method === "student" ? "student (few steps, fixed by its training)" : method)));
  byId("method").value = options.method;
  byId("steps").value = options.steps;
  byId("steps").max = options.most_steps;
  byId("guidance").value = options.guidance;
  byId("n").max = options.most_pictures;
}

/** The student has its own steps and guidance. Heun's method makes two evaluations a step and one at the end: an odd number. */
function fitToMethod() {
  const student = byId("method").value === "student";
  byId("steps-field").hidden = student;
  byId("guidance-field").hidden = student;
  if (byId("method").value === "heun" && Number(byId("steps").value) % 2 === 0) byId("steps").value = Number(byId("steps").value) - 1;
}

function newSeed() {
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;
}

/** Keep the form for this tab: another k, another page or a reload loses neither the pictures nor the settings. */
function keepForm() {
  const values = Object.fromEntries(KEPT_FIELDS.map((id) => [id, byId(id).value]));
  sessionStorage.setItem(KEPT, JSON.stringify({ mode, like: like?.name, fixed: byId("seed-fixed").checked, values }));
}

/** Fill the form as it was left. A picture that was deleted since, a tissue that this k does not have, are left out. */
async function restoreForm() {
  newSeed();
  await loadPair();
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  if (kept === null) return setMode("tissue");
  if (kept.like) like = await sourceOf(kept.like).catch(() => null);
  setMode(kept.mode);
  byId("seed-fixed").checked = kept.fixed;
  for (const [id, value] of Object.entries(kept.values)) {
    const field = byId(id);
    if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
  }
  fitToMethod();
  showStrength();
  showTissueHint();
}

/** The form as the body of a request. */
function requestBody() {
  const method = byId("method").value;
  const body = { n: Number(byId("n").value), seed: Number(byId("seed").value), k, method };
  if (method !== "student") Object.assign(body, { steps: Number(byId("steps").value), guidance: Number(byId("guidance").value) });
  if (mode !== "between" && byId("tissue").value) body.tissues = [byId("tissue").value];
  if (mode === "tissue") return body;
  body.strength = Number(byId("strength").value);
  if (mode === "like") body.like = like.name;
  else body.between = pair.map(({ name }) => name);
  return body;
}

/** The first error of the form, or "". */
function validate() {
  const missing = SOURCES_NEEDED[mode] - sources().length;
  if (missing > 0) return missing === 2 ? "Choose two pictures first." : mode === "like" ? "Choose a picture first." : "Choose a second picture first.";
  return formProblem(form);
}

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

async function submit(event) {
  event.preventDefault();
  const problem = validate();
  showProblem(problem);
  if (problem) return;
  const button = byId("go");
  const label = button.textContent;
  button.disabled = true;
  // The first request after the start waits until the server has loaded torch and the networks, which takes seconds.
  const slow = setTimeout(() => { button.textContent = "Loading the generator …"; }, SLOW);
  try {
    const job = await api("/api/jobs", { body: requestBody() });
    announce(`${job.title} is in the queue`);
    if (!byId("seed-fixed").checked) newSeed();
    keepForm();
    await poll();
    jobs.show(job.id);
  } catch (error) {
    if ([400, 409, 422].includes(error.status)) showProblem(error.message);
    else showError(error);
  } finally {
    clearTimeout(slow);
    button.textContent = label;
    button.disabled = false;
  }
}

const sourceOf = (name) => api(`/api/draw/source?name=${encodeURIComponent(name)}`);

function useLike(source) {
  like = source;
  byId("tissue").value = "";
  setMode("like");
  keepForm();
}

/** Load the pictures of the basket; those that are gone leave it. */
async function loadPair() {
  const names = basket();
  const found = await Promise.all(names.map((name) => sourceOf(name).catch((error) => error)));
  pair = found.filter((source) => !(source instanceof Error));
  const gone = found.map((source) => [400, 404].includes(source.status));
  if (gone.some(Boolean)) setBasket(names.filter((_, index) => !gone[index]));
}

async function showBasket() {
  await loadPair();
  showSources();
  showStrength();
}

/** Start from a picture of a job: alone, or as one of two. */
async function useAsSource(name, newMode) {
  if (newMode === "like") useLike(await sourceOf(name));
  else {
    setMode("between");
    addToBasket(name);
    keepForm();
  }
  byId("strength").focus({ preventScroll: true });
}

async function start() {
  for (const name of query.getAll("between").slice(0, 2)) addToBasket(name);
  options = await api(`/api/draw/options?k=${k}`);
  fillMethods();
  await restoreForm();
  if (query.get("tissue")) {
    setMode("tissue");
    byId("tissue").value = query.get("tissue");
    showTissueHint();
  }
  if (query.get("mode") === "between" || query.get("between")) setMode("between");
  if (query.get("like")) useLike(await sourceOf(query.get("like")));
  document.addEventListener(BASKET_CHANGED, () => showBasket().catch(showError));
  keepForm();
  await showOwn({ tissues: options.tissues, k, use: (source) => (mode === "between" ? addToBasket(source.name) : useLike(source)) });
  byId("go").disabled = false; // not before: what is pressed earlier would not be what the form shows later
  history.replaceState(null, "", `?k=${k}${location.hash}`); // what the address asked for is in the form now, and a reload keeps what it becomes
}

for (const button of form.querySelectorAll("[data-mode]")) button.addEventListener("click", () => { setMode(button.dataset.mode); keepForm(); });
byId("tissue").addEventListener("change", showTissueHint);
byId("strength").addEventListener("input", showStrength);
byId("method").addEventListener("change", fitToMethod);
byId("seed").addEventListener("input", () => { byId("seed-fixed").checked = true; }); // whoever types a seed wants that one
byId("seed-new").addEventListener("click", () => { byId("seed-fixed").checked = false; newSeed(); keepForm(); });
form.addEventListener("change", keepForm);
form.addEventListener("submit", submit);
const jobs = showJobs(byId("jobs"), { empty: byId("none"), useAsSource: (name, newMode) => useAsSource(name, newMode).catch(showError) });
start().catch(showError);

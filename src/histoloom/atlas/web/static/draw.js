// The page to draw on: the form, the pictures that a drawing begins from, and the jobs as they go.

import { api, complain, element, say, toast } from "./common.js";
import { showJobs } from "./jobs.js";

const at = (id) => document.getElementById(id);
const form = at("form");
const query = new URLSearchParams(location.search);
const k = Number(document.body.dataset.k);
const MODES = { tissue: 0, like: 1, between: 2 };

let options;
let mode = "tissue";
let sources = [];

/** What a strength does, as seen on real tissue: [up to, like one, between two]. */
const STRENGTHS = [
  [0.4, "The same picture with other details.", "One picture fades into the other."],
  [0.6, "The same layout, cells drawn anew.", "Drawn anew from a mixture of both."],
  [0.8, "The same kind and coarse layout, other cells.", "The tissue changes at once half-way."],
  [1, "Little but the tissue and its colours stays.", "Little of either stays but the tissue."],
];

function setMode(wanted) {
  if (wanted !== mode && wanted !== "tissue") at("strength").value = wanted === "like" ? 0.7 : 0.5;
  mode = wanted;
  for (const button of form.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
  at("sources").hidden = mode === "tissue";
  at("strength-field").hidden = mode === "tissue";
  at("tissue-field").hidden = mode === "between";
  const n = at("n");
  n.min = mode === "between" ? 2 : 1;
  if (Number(n.value) < Number(n.min)) n.value = 8;
  showSources();
  fillTissues();
  sayStrength();
}

function showSources() {
  const titles = mode === "between" ? ["From", "To"] : ["More like this"];
  at("sources").replaceChildren(...titles.map((title, place) => slot(title, place)));
}

function slot(title, place) {
  const source = sources[place];
  if (!source) {
    const how = "Choose “More like this” or “Between” at a picture below, or at a patch on another page.";
    return element("figure", { class: "slot" }, element("div", { class: "empty" }, how), element("figcaption", {}, title));
  }
  const remove = element("button", { type: "button", class: "quiet", onclick: () => take(place) }, "Remove");
  return element("figure", { class: "slot" },
    element("img", { src: source.src, alt: source.title, width: 160, height: 160 }),
    element("figcaption", {}, `${title}: ${source.title}`), remove);
}

function take(place) {
  sources = sources.filter((_, other) => other !== place);
  showSources();
  fillTissues();
}

function fillTissues() {
  const select = at("tissue");
  const before = select.value;
  const own = mode === "like" ? "Its own tissue" : "All tissues, by their frequency";
  select.replaceChildren(
    element("option", { value: "" }, own),
    ...options.tissues.map(({ name, title, share }) => element("option", { value: name }, `${title} · ${(100 * share).toFixed(1)} %`)));
  select.value = options.tissues.some(({ name }) => name === before) ? before : "";
  hint();
}

function hint() {
  const chosen = options.tissues.find(({ name }) => name === at("tissue").value);
  at("tissue-hint").textContent = chosen && chosen.clusters.length > 1 ? `Over its ${chosen.clusters.length} clusters, by their frequency.` : "";
}

function sayStrength() {
  const value = Number(at("strength").value);
  const [limit, like, between] = STRENGTHS.find(([upTo]) => value <= upTo);
  const copy = limit <= 0.8 && sources.some((source) => source.real) ? " Begun from a real patch, it may pass for a copy: treat it as you treat that patch." : "";
  at("strength-said").textContent = value.toFixed(2);
  at("strength-hint").textContent = (mode === "between" ? between : like) + copy;
}

function fillMethods() {
  const student = () => at("method").value === "student";
  at("method").replaceChildren(...options.methods.map((method) => element("option", { value: method },
    method === "student" ? "student (few steps, as it has learnt)" : method)));
  at("method").value = options.method;
  at("steps").value = options.steps;
  at("steps").max = options.most_steps;
  at("guidance").value = options.guidance;
  at("n").max = options.most_pictures;
  at("method").addEventListener("change", () => {
    at("steps-field").hidden = student();
    at("guidance-field").hidden = student();
    if (at("method").value === "heun" && Number(at("steps").value) % 2 === 0) at("steps").value = Number(at("steps").value) - 1;
  });
}

function asked() {
  const method = at("method").value;
  const body = { n: Number(at("n").value), seed: Number(at("seed").value), k, method };
  if (method !== "student") Object.assign(body, { steps: Number(at("steps").value), guidance: Number(at("guidance").value) });
  if (mode !== "between" && at("tissue").value) body.tissues = [at("tissue").value];
  if (mode === "tissue") return body;
  body.strength = Number(at("strength").value);
  if (mode === "like") body.like = sources[0].name;
  else body.between = [sources[0].name, sources[1].name];
  return body;
}

function wrong() {
  const missing = MODES[mode] - sources.length;
  if (missing > 0) return missing === 2 ? "Choose two pictures first." : mode === "like" ? "Choose a picture first." : "Choose a second picture first.";
  const bad = [...form.querySelectorAll("input")].find((input) => !input.closest("[hidden]") && !input.checkValidity());
  for (const input of form.querySelectorAll("input")) input.setAttribute("aria-invalid", input === bad);
  return bad ? `${bad.labels[0].firstChild.textContent.trim()}: ${bad.validationMessage}` : "";
}

async function submit(event) {
  event.preventDefault();
  const problem = wrong();
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
  if (problem) return;
  at("go").disabled = true;
  const label = at("go").textContent;
  // The first request after the start waits for torch and the networks: seconds, on a busy computer many.
  const slow = setTimeout(() => { at("go").textContent = "Loading the generator …"; }, 600);
  try {
    const job = await api("/api/jobs", { body: asked() });
    say(`${job.title} waits to be drawn`);
    jobs.look();
  } catch (error) {
    if (error.status !== 400 && error.status !== 422 && error.status !== 409) complain(error);
    else {
      at("problem").textContent = error.message;
      at("problem").hidden = false;
    }
  } finally {
    clearTimeout(slow);
    at("go").textContent = label;
    at("go").disabled = false;
  }
}

/** Put a picture into the form; for "between" it takes the first free slot, or the second. */
async function begin(name, wanted) {
  const source = await api(`/api/draw/source?name=${encodeURIComponent(name)}`);
  if (wanted === "like") sources = [source];
  else sources = mode === "between" && sources.length ? [sources[0], source] : [source];
  at("tissue").value = "";
  setMode(wanted);
  at("strength").focus({ preventScroll: true });
  if (wanted === "between" && sources.length < 2) toast("Now choose “Between” at a second picture.");
}

async function start() {
  options = await api(`/api/draw/options?k=${k}`);
  fillMethods();
  setMode("tissue");
  if (query.get("tissue")) at("tissue").value = query.get("tissue");
  if (query.get("like")) await begin(query.get("like"), "like");
  for (const name of query.getAll("between").slice(0, 2)) await begin(name, "between");
}

for (const button of form.querySelectorAll("[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode));
at("tissue").addEventListener("change", hint);
at("strength").addEventListener("input", sayStrength);
form.addEventListener("submit", submit);
const jobs = showJobs(at("jobs"), { none: at("none"), begin: (name, wanted) => begin(name, wanted).catch(complain) });
start().catch(complain);

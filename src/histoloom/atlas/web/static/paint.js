// The page that paints fields: joins the palette, the drawing surface, the settings, previews and the list of fields.

import { announce, api, element, enlarge, formProblem, showError, toast } from "./common.js";
import { duration, poll } from "./job_state.js";
import { showFields } from "./paint-fields.js";
import { importDialog } from "./paint-import.js";
import { EMPTY, Layout, fromServer } from "./paint-layout.js";
import { slideDialog } from "./paint-slide.js";
import { HINTS, Surface } from "./paint-surface.js";

const byId = (id) => document.getElementById(id);
const form = byId("form");
const k = Number(document.body.dataset.k);
const KEPT = `histoloom-paint:${document.body.dataset.run}:${k}`; // key of the layout and the settings in this browser's storage
const KEPT_FIELDS = ["background", "seed", "method", "steps", "guidance", "softness", "brush"];
const SEEDS = 1_000_000_000;
const PATCHES = 8; // along a side of the first layout
const PREVIEW_PATCHES = 3; // along a side of a preview, as the server
const TOOL_KEYS = { b: "brush", p: "polygon", r: "rectangle", f: "fill", e: "eraser", m: "frame" };

let options; // of the server
let layout;
let surface;
let value = 0; // the tissue that is drawn, a place in the palette
let part = "whole"; // what is previewed: whole, frame
let previewed = null; // the place of the last preview, {x, y, width, height} in px of the field
let ready = false; // whether the form is as it was left: not before is anything kept

const names = () => options.tissues.map(({ name }) => name);
const number = (id) => Number(byId(id).value);
const count = (figure) => Math.round(figure).toLocaleString("en");

/** What the surface and the dialogs ask of the page. */
const page = {
  k,
  value: () => value,
  background: () => number("background"),
  brush: () => number("brush"),
  name: (place) => (place === EMPTY ? "no tissue" : options.tissues[place].title),
  frameSize: () => (part === "frame" ? frameSize() : null),
  size: () => ({ width: layout.width, height: layout.height }),
  under: (place) => { byId("under").textContent = place === null ? "" : page.name(place); },
  /** The size of a field that is a whole slide: as large, in steps of the generator. */
  fitted: ({ width, height }) => ({ width: fitted(width), height: fitted(height) }),
};

/** The title of a tissue by its name; the name where this k has no such tissue. */
const titleOf = (name) => options.tissues.find((tissue) => tissue.name === name)?.title ?? name;
const fitted = (length) => Math.max(Math.ceil(options.patch / options.factor), Math.round(length / options.factor)) * options.factor;
const frameSize = () => ({ width: Math.min(layout.width, PREVIEW_PATCHES * options.patch), height: Math.min(layout.height, PREVIEW_PATCHES * options.patch) });

function showPalette() {
  byId("palette").append(...options.tissues.map((tissue, place) => element("label", { class: "tissue" },
    element("input", { type: "radio", name: "tissue", value: place, checked: place === value, onchange: () => choose(place) }),
    element("span", { class: "ink", vars: { "--c": tissue.colour }, "aria-hidden": "true" }),
    element("img", { src: tissue.example || null, alt: "", width: 44, height: 44, hidden: !tissue.example }),
    element("span", { class: "name" }, tissue.title, tissue.artefact ? element("span", { class: "flag" }, "artefact") : null))));
  byId("background").replaceChildren(...options.tissues.map(({ title }, place) => new Option(title, place)));
}

/** Where there are no real patches, the generator draws a picture of each tissue. */
async function showExamples() {
  if (options.tissues.some(({ example }) => example)) return;
  const drawn = await api(`/api/paint/examples?k=${k}`);
  byId("palette").querySelectorAll("img").forEach((image, place) => Object.assign(image, { src: drawn[options.tissues[place].name], hidden: false }));
  byId("palette").after(element("p", { class: "small soft" }, "The pictures are synthetic."));
}

function choose(place) {
  if (!options.tissues[place]) return;
  value = place;
  byId("palette").querySelectorAll("input")[place].checked = true;
  if (surface.tool === "eraser" || surface.tool === "frame") surface.setTool("brush"); // whoever chooses a tissue wants to draw it
}

function onTool(tool) {
  for (const button of document.querySelectorAll("button[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  byId("surface-hint").textContent = HINTS[tool];
  if (tool === "frame") setPart("frame");
}

function onKey(key) {
  const letter = key.toLowerCase();
  if (TOOL_KEYS[letter]) surface.setTool(TOOL_KEYS[letter]);
  else if (/^[1-9]$/.test(key)) choose(Number(key) - 1);
  else if (key === "[" || key === "]") {
    byId("brush").value = number("brush") + (key === "]" ? 2 : -2);
    showBrush();
  } else return false;
  return true;
}

function showBrush() {
  byId("brush-value").textContent = `${count(number("brush") * layout.cell * options.mpp)} µm`;
  surface.redraw();
}

function setPart(chosen) {
  part = chosen;
  for (const button of form.querySelectorAll("[data-part]")) button.setAttribute("aria-pressed", button.dataset.part === part);
  showPart();
  surface.moveFrame(surface.frame);
}

function showPart() {
  const { width, height } = frameSize(), um = `${count(width * options.mpp)} × ${count(height * options.mpp)} µm`;
  const complete = width === layout.width && height === layout.height;
  byId("part-hint").textContent = complete ? "The field is so small that the preview shows all of it at full size."
    : part === "frame" ? `${um} at full size. Move the frame with the tool Frame.`
    : "All tissues in their places. Cells keep their size, so they are too large for the small picture.";
}

/** Everything that depends on the layout follows it. */
function layoutChanged() {
  byId("undo").disabled = !layout.past.length;
  byId("redo").disabled = !layout.future.length;
  byId("width").value = layout.width;
  byId("height").value = layout.height;
  const [width, height] = [layout.width, layout.height].map((px) => count(px * options.mpp));
  byId("size-hint").textContent = `${width} × ${height} µm at ${Number(options.mpp.toPrecision(3))} µm/px. One cell of the layout: ${count(layout.cell * options.mpp)} µm.`;
  showOnLayout(false); // whoever draws wants to see the layout
  showBrush();
  showPart();
  surface.changed();
  keep();
}

let keeping;
function keep() {
  if (!ready) return;
  clearTimeout(keeping);
  keeping = setTimeout(keepNow, 300);
}

function keepNow() {
  const values = Object.fromEntries(KEPT_FIELDS.map((id) => [id, byId(id).value]));
  values.background = names()[number("background")];
  try {
    localStorage.setItem(KEPT, JSON.stringify({ layout: layout.toServer(names()), values, tissue: names()[value] }));
  } catch { /* the storage is full or not allowed: the layout can still be saved as a file */ }
}

/** The layout and the settings as they were left, else an empty layout of the most frequent tissue. */
function restore() {
  const side = PATCHES * options.patch;
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(KEPT) ?? "null");
  } catch { /* as if there was none */ }
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;
  Object.assign(layout, { width: side, height: side, cell: layout.cellFor(side, side) });
  layout.cells = new Uint8Array(layout.columns * layout.rows);
  const fits = kept && [kept.layout.width, kept.layout.height, kept.layout.cell].every((px) => px > 0 && px % options.factor === 0);
  if (!fits) return; // none, or one of another generator of this name
  const background = Math.max(0, names().indexOf(kept.values.background));
  for (const id of KEPT_FIELDS) {
    const field = byId(id);
    if (id !== "background" && (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === kept.values[id]))) field.value = kept.values[id];
  }
  byId("background").value = background;
  Object.assign(layout, fromServer(kept.layout, names(), background));
  choose(Math.max(0, names().indexOf(kept.tissue)));
}

function fillSettings() {
  byId("method").replaceChildren(...options.methods.map((method) => new Option(method === "student" ? "student (few steps, fixed by its training)" : method, method)));
  byId("method").value = options.method;
  byId("steps").value = options.steps;
  byId("steps").max = options.most_steps;
  byId("guidance").value = options.guidance;
  byId("softness").value = options.softness;
  for (const id of ["width", "height"]) Object.assign(byId(id), { min: fitted(options.patch), max: options.most, step: options.factor });
}

function fitToMethod() {
  const student = byId("method").value === "student";
  byId("steps-field").hidden = student;
  byId("guidance-field").hidden = student;
  if (byId("method").value === "heun" && number("steps") % 2 === 0) byId("steps").value = number("steps") - 1;
}

/** The form as the body of a request. */
function requestBody() {
  const method = byId("method").value;
  const body = { layout: layout.toServer(names()), k, seed: number("seed"), method, softness: number("softness") };
  return method === "student" ? body : { ...body, steps: number("steps"), guidance: number("guidance") };
}

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

/** Send the form while `button` says what takes long; an answer that refuses it is shown in the form. */
async function send(button, slowText, request) {
  const problem = formProblem(form);
  showProblem(problem);
  if (problem) return null;
  const label = button.textContent;
  button.disabled = true;
  const slow = setTimeout(() => { button.textContent = slowText; }, 400);
  try {
    return await request();
  } catch (error) {
    if ([400, 409, 422].includes(error.status)) showProblem(error.message);
    else showError(error);
    return null;
  } finally {
    clearTimeout(slow);
    button.textContent = label;
    button.disabled = false;
  }
}

async function preview() {
  const place = part === "frame" ? { ...surface.frame, ...frameSize() } : { x: 0, y: 0, ...page.size() };
  const body = { ...requestBody(), part: part === "frame" ? [place.x, place.y] : null };
  const shown = await send(byId("preview"), "Painting the preview …", () => api("/api/paint/preview", { body }));
  if (!shown) return;
  byId("preview-picture").src = shown.src;
  byId("preview-picture").alt = `Synthetic preview of ${part === "frame" ? "the frame" : "the whole field, small"}`;
  const how = `${shown.method}, ${shown.steps} steps, ${duration(shown.seconds)}`;
  byId("preview-caption").textContent = `Synthetic, not for diagnosis. ${how}. The whole field: about ${duration(shown.field_seconds)}.`;
  byId("preview-figure").hidden = false;
  previewed = place;
  showOnLayout(false);
  announce(`The preview is there. The whole field takes about ${duration(shown.field_seconds)}`);
}

/** Show the preview in its place on the layout, or the layout alone. */
function showOnLayout(shown) {
  byId("on-layout").checked = shown;
  surface.preview = shown ? { image: byId("preview-picture"), ...previewed } : null;
  surface.redraw();
}

async function submit(event) {
  event.preventDefault();
  const job = await send(byId("go"), "Loading the generator …", () => api("/api/paint/fields", { body: requestBody() }));
  if (!job) return;
  announce("The field is in the queue");
  await poll();
  fields.show(job.id);
}

/** Save the layout as GeoJSON, and show the command that paints it. */
async function save() {
  const file = await send(byId("save"), "Saving …", () => api("/api/paint/layout", { body: requestBody() }));
  if (!file) return;
  const href = URL.createObjectURL(new Blob([file.geojson], { type: "application/geo+json" }));
  element("a", { href, download: "layout.geojson" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
  byId("command").textContent = file.command;
  byId("saved").hidden = false;
}

/** Take over a layout of the server; what has no tissue there becomes background. */
function takeOver(drawn, empty) {
  layout.replace(fromServer(drawn, names(), page.background()));
  const left = empty > 0.0005 ? ` ${(100 * empty).toFixed(1)} % had no tissue and is background now: ${page.name(page.background())}.` : "";
  toast(`The layout is taken over.${left}`, { action: { title: "Undo", run: () => layout.undo() }, key: "layout" });
}

async function useLayout(job) {
  if (job.request.k !== k) {
    location.assign(`/paint?k=${job.request.k}&layout=${job.id}`);
    return;
  }
  const { layout: drawn, empty } = await api(`/api/paint/fields/${job.id}/layout`);
  takeOver(drawn, empty);
  byId("seed").value = job.request.seed;
  byId("surface").scrollIntoView({ block: "center" });
}

function resized() {
  const [width, height] = ["width", "height"].map((id) => number(id));
  if (![width, height].every((side) => side >= options.patch && side <= options.most)) return; // the form says so when it is sent
  const [w, h] = [fitted(width), fitted(height)];
  if (w !== layout.width || h !== layout.height) layout.resize(w, h);
  else layoutChanged();
}

/** Ctrl+Z and Ctrl+Y undo and redo wherever no text is written. */
function undoKeys(event) {
  const letter = event.key.toLowerCase();
  const writes = event.target.matches("textarea, select, input:not([type=radio], [type=range], [type=checkbox])");
  if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(letter) || writes || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  if (letter === "y" || event.shiftKey) layout.redo();
  else layout.undo();
}

function addListeners() {
  for (const button of document.querySelectorAll("button[data-tool]")) button.addEventListener("click", () => surface.setTool(button.dataset.tool));
  for (const button of form.querySelectorAll("[data-part]")) button.addEventListener("click", () => setPart(button.dataset.part));
  for (const id of ["width", "height"]) byId(id).addEventListener("change", resized);
  byId("undo").addEventListener("click", () => layout.undo());
  byId("redo").addEventListener("click", () => layout.redo());
  byId("brush").addEventListener("input", showBrush);
  byId("fill-all").addEventListener("click", () => layout.fillAll(value));
  byId("stripes").addEventListener("click", () => layout.stripes(options.tissues.flatMap(({ artefact }, place) => (artefact ? [] : [place]))));
  byId("smooth").addEventListener("click", () => layout.smooth(number("brush")));
  byId("seed-new").addEventListener("click", () => { byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS; keep(); });
  byId("method").addEventListener("change", fitToMethod);
  byId("preview").addEventListener("click", () => preview().catch(showError));
  byId("enlarge-preview").addEventListener("click", () => enlarge([{ src: byId("preview-picture").src, text: byId("preview-picture").alt, facts: [["Synthetic", byId("preview-caption").textContent]] }], 0));
  byId("save").addEventListener("click", () => save().catch(showError));
  byId("on-layout").addEventListener("change", () => showOnLayout(byId("on-layout").checked));
  document.addEventListener("keydown", undoKeys);
  form.addEventListener("change", keep);
  form.addEventListener("submit", (event) => submit(event).catch(showError));
  addEventListener("pagehide", () => ready && keepNow());
}

async function start() {
  options = await api(`/api/paint/options?k=${k}`);
  Object.assign(page, { mpp: options.mpp, most: options.most, names: names(), colours: options.tissues.map(({ colour }) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))) });
  layout = new Layout({ factor: options.factor, onChange: layoutChanged });
  surface = new Surface({ surface: byId("surface"), canvas: byId("drawing"), layout, page, onTool, onFrame: () => {}, onKey });
  fields = showFields(byId("jobs"), { empty: byId("none"), mpp: options.mpp, titleOf, useLayout });
  showPalette();
  fillSettings();
  restore();
  fitToMethod();
  addListeners();
  surface.setTool("brush");
  layoutChanged();
  surface.frameAt({ x: layout.columns / 2, y: layout.rows / 2 });
  importDialog({ k, use: takeOver });
  const slides = byId("from-slide") && slideDialog({ page, use: takeOver });
  ready = true;
  for (const id of ["preview", "go"]) byId(id).disabled = false;
  byId("surface").dataset.ready = "true";
  showExamples().catch(() => {}); // the palette serves without them
  const query = new URLSearchParams(location.search);
  history.replaceState(null, "", `?k=${k}${location.hash}`); // what the address asked for is done once
  if (query.get("layout")) await useLayout(await api(`/api/jobs/${encodeURIComponent(query.get("layout"))}`));
  if (query.get("slide") && slides) await slides.open(query.get("slide"));
}

let fields;
start().catch(showError);

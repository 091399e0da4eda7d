// The map of patches on a canvas. Dragging or the arrow keys move it, the wheel or plus and minus zoom, the pointer shows a patch.
// An outline selects patches, which can be sent to another group. The address holds what is shown.

import { announce, api, debounce, element, enlarge, gallery, refreshParts, setQuery, showError } from "./common.js";
import { CORRECTED, correctionForm, groupTitle } from "./correct.js";
import { MapSelection } from "./map-selection.js";
import { laterPicture } from "./patch.js";

const byId = (id) => document.getElementById(id);
const canvas = byId("map"), preview = byId("map-hover"), colouredBy = byId("coloured-by"), selectMode = byId("select-mode");
const context = canvas.getContext("2d");
const { k } = canvas.dataset;
const MAX_SCALE = 60;
const MIN_SCALE = 0.8;
const HIT_RADIUS = 14; // CSS px from the pointer to a patch
const CLICK_TOLERANCE = 5; // CSS px that the pointer may move during a click
const ENLARGED = 60; // patches to step through, from the one that was opened
const THUMBNAILS = 12;
const [ALL, NONE] = ["all", "none"]; // of the filter, beside the groups' own keys

let data, points, method; // of the server; the coordinates of the selected method: x0, y0, x1, y1, ..., each 0..1
let filter = ALL; // ALL, NONE (no group), or the key of the only group shown
let hovered = -1; // index of the patch under the pointer
let drag = null; // {x, y, moved} while the map is dragged
let frameRequested = false;
let addressWritten = ""; // the parts of the address as they were written last
const view = { scale: 1, x: 0.5, y: 0.5 }; // magnification, and the point of the map in the middle of the canvas

const mapSize = () => Math.min(canvas.clientWidth, canvas.clientHeight) * 0.94 * view.scale; // CSS px
const toScreenX = (x) => canvas.clientWidth / 2 + (x - view.x) * mapSize();
const toScreenY = (y) => canvas.clientHeight / 2 - (y - view.y) * mapSize();
const placeOf = (index) => [toScreenX(points[2 * index]), toScreenY(points[2 * index + 1])];
/** What stands for a group in the address: its first cluster, or its name where no cluster has it. */
const groupKey = (group) => (group ? String(group.clusters[0] ?? group.name) : NONE);
const groupOf = (index) => data.groups.groups[data.groups.values[index]]; // undefined for none
const isShown = (index) => filter === ALL || groupKey(groupOf(index)) === filter;
const titleOf = (group) => (group ? groupTitle(group) : "No tissue");

/** The values, names and colours by which points are coloured. */
function colouring() {
  if (colouredBy.value !== "group") return data.colourings[colouredBy.value];
  const { values, groups } = data.groups;
  return { values, names: groups.map(groupTitle), colours: groups.map(({ colour }) => colour) };
}

const selection = new MapSelection({
  canvas, place: (index) => (isShown(index) ? placeOf(index) : null), pan: (dx, dy) => pan(dx, dy), redraw: () => redraw(), onChange: () => showSelection(),
  onCircle: debounce((inside) => announce(inside.length ? `In the circle: ${inGroups(inside)}` : "No patch is in the circle"), 400),
});

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const { values, colours } = colouring();
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, card, accent] = ["--ink", "--soft", "--card", "--accent"].map((name) => style.getPropertyValue(name));
  const radius = Math.min(9, 3.2 + Math.log2(view.scale));
  // The patches that the filter hides are drawn first, faint, below the others.
  // Those that are selected are drawn last.
  const rank = (index) => isShown(index) + 2 * selection.points.has(index);
  const order = data.ids.map((_, index) => [rank(index), index]).sort(([a], [b]) => a - b);
  for (const [, index] of order) {
    const [x, y] = placeOf(index), isSelected = selection.points.has(index);
    if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
    context.globalAlpha = isSelected ? 1 : isShown(index) ? (selection.points.size ? 0.35 : 0.9) : 0.08;
    context.fillStyle = colours[values[index]] ?? soft;
    context.beginPath();
    context.arc(x, y, index === hovered ? radius + 3 : radius, 0, 2 * Math.PI);
    context.fill();
    context.lineWidth = index === hovered ? 2.5 : 0.6;
    context.strokeStyle = index === hovered ? ink : "rgb(0 0 0 / .45)";
    context.stroke();
    if (isSelected) ring(x, y, radius, [card, ink]);
  }
  context.globalAlpha = 1;
  selection.draw(context, { ink, page: card, accent });
  updateAddress();
}

/** Mark a point as selected: two rings about it. */
function ring(x, y, radius, colours) {
  context.globalAlpha = 1;
  colours.forEach((colour, place) => {
    context.beginPath();
    context.arc(x, y, radius + 0.5 + 1.5 * place, 0, 2 * Math.PI);
    context.lineWidth = 1.5;
    context.strokeStyle = colour;
    context.stroke();
  });
}

/** The colours and what they stand for, where they are not those of the groups, which have a legend of their own. */
function fillKey() {
  const { names, colours } = colouring();
  const key = byId("colour-key");
  key.hidden = colouredBy.value === "group";
  key.replaceChildren(...names.map((name, place) => element("li", {}, element("span", { class: "swatch", vars: { "--c": colours[place] }, "aria-hidden": "true" }), name)));
}

/** Draw in the next frame, once however often this is called before it. */
function redraw() {
  if (frameRequested) return;
  frameRequested = true;
  requestAnimationFrame(() => {
    frameRequested = false;
    draw();
  });
}

/** The index of the shown patch that is nearest to a point of the canvas, -1 if none is near. */
function patchAt(x, y) {
  let [best, bestDistance] = [-1, HIT_RADIUS ** 2];
  for (let index = 0; index < data.ids.length; index += 1) {
    if (!isShown(index)) continue;
    const distance = (toScreenX(points[2 * index]) - x) ** 2 + (toScreenY(points[2 * index + 1]) - y) ** 2;
    if (distance < bestDistance) [best, bestDistance] = [index, distance];
  }
  return best;
}

/** Mark a patch and show its preview beside the pointer; -1 hides it. */
function hover(index, x, y) {
  if (index !== hovered) {
    hovered = index;
    preview.hidden = index < 0;
    if (index >= 0) {
      preview.querySelector("img").src = data.pictures[index];
      const { values, names } = colouring();
      preview.querySelector("p").textContent = colouredBy.value === "group" ? titleOf(groupOf(index)) : `${colouredBy.value} ${names[values[index]]}`;
    }
    redraw();
  }
  if (index < 0) return;
  preview.style.left = `${x + (x > canvas.clientWidth * 0.7 ? -160 : 18)}px`;
  preview.style.top = `${canvas.offsetTop + y + (y > canvas.clientHeight * 0.7 ? -180 : 18)}px`;
}

/** Zoom about a point of the canvas, which stays where it is; about its middle by default. */
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const sizeBefore = mapSize();
  view.scale = Math.min(MAX_SCALE, Math.max(MIN_SCALE, view.scale * factor));
  const shift = 1 / sizeBefore - 1 / mapSize();
  view.x += (x - canvas.clientWidth / 2) * shift;
  view.y -= (y - canvas.clientHeight / 2) * shift;
  redraw();
}

/** Move the map by CSS px. */
function pan(dx, dy) {
  view.x = Math.min(1.2, Math.max(-0.2, view.x - dx / mapSize()));
  view.y = Math.min(1.2, Math.max(-0.2, view.y + dy / mapSize()));
  redraw();
}

function resetView() {
  Object.assign(view, { scale: 1, x: 0.5, y: 0.5 });
  redraw();
}

/** Enlarge a patch; the next ones are those nearest to it on the map. */
function openPatch(index) {
  const distance = (other) => (points[2 * other] - points[2 * index]) ** 2 + (points[2 * other + 1] - points[2 * index + 1]) ** 2;
  const nearest = data.ids.map((_, other) => other).filter((other) => other === index || isShown(other));
  nearest.sort((a, b) => distance(a) - distance(b) || (b === index) - (a === index));
  enlarge(nearest.slice(0, ENLARGED).map(pictureOf), 0);
}

/** Show the map that a method made (PCA, t-SNE, UMAP), the whole of it. */
function selectMethod(wanted) {
  method = wanted;
  points = data.maps[method];
  for (const button of document.querySelectorAll("[data-method]")) button.setAttribute("aria-pressed", button.dataset.method === method);
  resetView();
}

// --- the address -----------------------------------------------------------------------------------------------------

const updateAddress = debounce(() => {
  const parts = addressParts();
  if (JSON.stringify(parts) === addressWritten) return; // it draws for other reasons too, such as the pointer over a patch
  addressWritten = JSON.stringify(parts);
  setQuery(parts);
}, 200);

/** What the address says of the view: the method, the place (`at=x,y,zoom`), the colouring, and the only group shown. */
function addressParts() {
  const isWhole = view.scale === 1 && view.x === 0.5 && view.y === 0.5;
  return {
    method: method === Object.keys(data.maps)[0] ? null : method,
    at: isWhole ? null : [view.x, view.y, view.scale].map((value) => value.toFixed(3)).join(","),
    colour: colouredBy.value === "group" ? null : colouredBy.value,
    group: filter === ALL ? null : filter,
  };
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  if (Object.hasOwn(data.colourings, query.get("colour") ?? "")) colouredBy.value = query.get("colour");
  selectMethod(Object.hasOwn(data.maps, query.get("method") ?? "") ? query.get("method") : Object.keys(data.maps)[0]);
  const at = (query.get("at") ?? "").split(",").map(Number);
  if (at.length === 3 && at.every(Number.isFinite)) {
    const within = (value, [least, most]) => Math.min(most, Math.max(least, value));
    Object.assign(view, { x: within(at[0], [-0.2, 1.2]), y: within(at[1], [-0.2, 1.2]), scale: within(at[2], [MIN_SCALE, MAX_SCALE]) });
  }
  const wanted = query.get("group");
  if (wanted === NONE || data.groups.groups.some((group) => groupKey(group) === wanted)) filter = wanted;
}

// --- legend and selection --------------------------------------------------------------------------------------------

/** Fill the legend: each group can be shown alone, and selected as a whole. */
function fillLegend() {
  const { groups, values } = data.groups;
  const count = (group) => values.filter((place) => groups[place] === group).length;
  const shown = [...groups, ...(values.includes(-1) ? [undefined] : [])];
  if (filter !== ALL && !shown.some((group) => groupKey(group) === filter)) filter = ALL; // its last correction was undone
  const radio = (value) => element("input", { type: "radio", name: "shown", value, checked: value === filter, onchange: () => {
    filter = value;
    redraw();
  } });
  byId("map-legend").replaceChildren(
    element("div", { class: "legend-row" }, element("label", {}, radio(ALL), " all groups")),
    ...shown.map((group) => element("div", { class: "legend-row" },
      element("label", {}, radio(groupKey(group)), " ", element("span", { class: "swatch", vars: { "--c": group?.colour ?? "var(--soft)" }, "aria-hidden": "true" }),
        titleOf(group), element("span", { class: "soft" }, ` ${count(group)}`)),
      element("button", { type: "button", class: "quiet", "aria-label": `Select all of ${titleOf(group)}`, onclick: () => selectGroup(group) }, "Select"))));
}

const selectGroup = (group) => selection.select(data.ids.map((_, index) => index).filter((index) => groupOf(index) === group));

/** "20 of Group 3, 4 of fat". */
function inGroups(indices) {
  const counts = new Map();
  for (const index of indices) {
    const group = groupOf(index), title = group ? groupTitle(group) : "no tissue";
    counts.set(title, (counts.get(title) ?? 0) + 1);
  }
  return [...counts].sort(([, a], [, b]) => b - a).map(([title, n]) => `${n} of ${title}`).join(", ");
}

const form = correctionForm({ k, patches: () => [...selection.points].map((index) => data.ids[index]), onSent: () => selection.select([]), onCancel: () => selection.select([]), cancelTitle: "Clear" });

/** Say what is selected, and show some of it. */
function showSelection() {
  const indices = [...selection.points], n = indices.length;
  byId("selection-body").hidden = !n;
  byId("selection-help").hidden = n > 0;
  byId("selection-number").textContent = n ? `${n.toLocaleString("en")} selected: ${inGroups(indices)}` : "";
  const some = indices.filter((_, place) => place % Math.ceil(n / THUMBNAILS) === 0);
  gallery(byId("selection-pictures"), some.map(pictureOf));
  redraw();
}

const pictureOf = (index) => laterPicture({ id: data.ids[index], src: data.pictures[index] }, { k });

/** Corrections have changed: colours, legend and words follow. */
async function refresh() {
  data.groups = await api(`/api/map/groups?k=${k}`);
  fillLegend();
  fillKey();
  showSelection();
  await refreshParts("#map-words");
}

// --- input -----------------------------------------------------------------------------------------------------------

const KEYS = {
  ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
  "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: resetView,
};

function onPointerDown(event) {
  if (!event.isPrimary || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  hover(-1);
  if (selection.mode || event.shiftKey) selection.begin(event.offsetX, event.offsetY);
  else drag = { x: event.offsetX, y: event.offsetY, moved: 0 };
}

function onPointerMove(event) {
  if (!event.isPrimary) return;
  const { offsetX: x, offsetY: y } = event;
  if (selection.line) {
    selection.extend(x, y);
  } else if (drag) {
    const [dx, dy] = [x - drag.x, y - drag.y];
    pan(dx, dy);
    drag = { x, y, moved: drag.moved + Math.abs(dx) + Math.abs(dy) };
  } else {
    hover(patchAt(x, y), x, y);
  }
}

function onPointerUp(event) {
  const index = patchAt(event.offsetX, event.offsetY);
  if (selection.line) {
    const drawn = selection.finish({ add: event.ctrlKey || event.metaKey, remove: event.altKey });
    if (!drawn && index >= 0) selection.toggle(index);
    return;
  }
  const clicked = drag && drag.moved < CLICK_TOLERANCE;
  drag = null;
  if (clicked && index >= 0) openPatch(index);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter" && selection.circle && selection.middle >= 0) openPatch(selection.middle);
  else if (!selection.onKey(event)) {
    if (!(event.key in KEYS)) return;
    KEYS[event.key]();
  }
  event.preventDefault();
}

function setSelectMode(on) {
  selection.mode = on;
  selectMode.setAttribute("aria-pressed", String(on));
  canvas.parentElement.classList.toggle("selecting", on);
  announce(on ? "Draw a line around patches; or, on the map, move the circle by arrow keys and press Space." : "");
}

function addListeners() {
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", onPointerDown);
  canvas.addEventListener("pointermove", onPointerMove);
  canvas.addEventListener("pointerup", onPointerUp);
  canvas.addEventListener("pointercancel", () => {
    drag = null;
    selection.cancel();
  });
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("keydown", onKey);

  const zoomActions = { in: () => zoom(1.6), out: () => zoom(1 / 1.6), all: resetView };
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", zoomActions[button.dataset.zoom]);
  for (const button of document.querySelectorAll("[data-method]")) button.addEventListener("click", () => selectMethod(button.dataset.method));
  selectMode.addEventListener("click", () => setSelectMode(!selection.mode));
  byId("map-words").addEventListener("click", ({ target }) => {
    const button = target.closest("[data-patch]");
    if (button) openPatch(data.ids.indexOf(button.dataset.patch));
  });
  colouredBy.addEventListener("change", () => {
    fillKey();
    redraw();
  });
  // The links to other k keep the place and the colouring; groups are others there.
  for (const link of document.querySelectorAll(".k-switch a")) {
    link.addEventListener("click", () => {
      const query = new URLSearchParams(link.search);
      for (const [name, value] of Object.entries({ ...addressParts(), group: null })) if (value !== null) query.set(name, value);
      link.search = query;
    });
  }
  document.addEventListener(CORRECTED, () => refresh().catch(showError));
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

try {
  data = await api(`/api/map?k=${k}`);
  selection.size = data.ids.length;
  readAddress();
  fillLegend();
  fillKey();
  byId("selection-body").append(form);
  addListeners();
} catch (error) {
  showError(error);
}

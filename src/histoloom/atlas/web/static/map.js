// The map of patches on a canvas. Dragging or the arrow keys move it, the wheel or plus and minus zoom, the pointer shows a patch.

import { api, element, enlarge, setQuery, showError } from "./common.js";
import { laterPicture } from "./patch.js";

const canvas = document.getElementById("map");
const preview = document.getElementById("map-hover");
const context = canvas.getContext("2d");
const colouredBy = document.getElementById("coloured-by");
const MAX_SCALE = 60;
const MIN_SCALE = 0.8;
const HIT_RADIUS = 14; // CSS px from the pointer to a patch
const CLICK_TOLERANCE = 5; // CSS px that the pointer may move during a click
const ENLARGED = 60; // patches to step through, from the one that was opened

let data, points; // of the server, and the coordinates of the selected method: x0, y0, x1, y1, ..., each 0..1
let filter = "all"; // "all", or the label of the only cluster shown
let hovered = -1; // index of the patch under the pointer
let drag = null; // {x, y, moved} while the map is dragged
let frameRequested = false;
const view = { scale: 1, x: 0.5, y: 0.5 }; // magnification, and the point of the map in the middle of the canvas

const mapSize = () => Math.min(canvas.clientWidth, canvas.clientHeight) * 0.94 * view.scale; // CSS px
const toScreenX = (x) => canvas.clientWidth / 2 + (x - view.x) * mapSize();
const toScreenY = (y) => canvas.clientHeight / 2 - (y - view.y) * mapSize();
const isShown = (index) => filter === "all" || data.labels[index] === Number(filter);

function clusterTitle(label) {
  const input = document.querySelector(`.map-legend input[value="${label}"]`);
  return input?.parentElement.textContent.trim().replace(/\s+/g, " ") ?? "";
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const { values, colours } = data.colourings[colouredBy.value];
  const textColour = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  const radius = Math.min(9, 3.2 + Math.log2(view.scale));
  // The patches that the filter hides are drawn first, faint, below the others.
  const order = data.labels.map((_, index) => index).sort((a, b) => isShown(a) - isShown(b));
  for (const index of order) {
    const [x, y] = [toScreenX(points[2 * index]), toScreenY(points[2 * index + 1])];
    if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
    context.globalAlpha = isShown(index) ? 0.9 : 0.08;
    context.fillStyle = colours[values[index]] ?? textColour;
    context.beginPath();
    context.arc(x, y, index === hovered ? radius + 3 : radius, 0, 2 * Math.PI);
    context.fill();
    context.lineWidth = index === hovered ? 2.5 : 0.6;
    context.strokeStyle = index === hovered ? textColour : "rgb(0 0 0 / .45)";
    context.stroke();
  }
  context.globalAlpha = 1;
}

/** The colours and what they stand for, where they are not those of the groups, which have a legend of their own. */
function fillKey() {
  const { names, colours } = data.colourings[colouredBy.value];
  const key = document.getElementById("colour-key");
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
      const { values, names } = data.colourings[colouredBy.value];
      preview.querySelector("p").textContent = colouredBy.value === "group" ? clusterTitle(data.labels[index]) : `${colouredBy.value} ${names[values[index]]}`;
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
  enlarge(nearest.slice(0, ENLARGED).map((other) => laterPicture({ id: data.ids[other], src: data.pictures[other] }, { k: data.k })), 0);
}

/** Show the map that a method made (PCA, t-SNE, UMAP). */
function selectMethod(method) {
  points = data.maps[method];
  for (const button of document.querySelectorAll("[data-method]")) button.setAttribute("aria-pressed", button.dataset.method === method);
  resetView();
}

const KEYS = {
  ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
  "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: resetView,
};

function addListeners() {
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, y: event.offsetY, moved: 0 };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      hover(patchAt(event.offsetX, event.offsetY), event.offsetX, event.offsetY);
      return;
    }
    const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
    pan(dx, dy);
    drag = { x: event.offsetX, y: event.offsetY, moved: drag.moved + Math.abs(dx) + Math.abs(dy) };
  });
  canvas.addEventListener("pointerup", (event) => {
    const clicked = drag && drag.moved < CLICK_TOLERANCE;
    drag = null;
    const index = patchAt(event.offsetX, event.offsetY);
    if (clicked && index >= 0) openPatch(index);
  });
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  const zoomActions = { in: () => zoom(1.6), out: () => zoom(1 / 1.6), all: resetView };
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", zoomActions[button.dataset.zoom]);
  for (const button of document.querySelectorAll("[data-method]")) button.addEventListener("click", () => selectMethod(button.dataset.method));
  for (const input of document.querySelectorAll('input[name="shown"]')) {
    input.addEventListener("change", () => {
      filter = input.value;
      redraw();
    });
  }
  for (const button of document.querySelectorAll("[data-patch]")) button.addEventListener("click", () => openPatch(data.ids.indexOf(button.dataset.patch)));
  colouredBy.addEventListener("change", () => {
    setQuery({ colour: colouredBy.value === "group" ? null : colouredBy.value });
    fillKey();
    redraw();
  });
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

try {
  data = await api(`/api/map?k=${canvas.dataset.k}`);
  const colour = new URLSearchParams(location.search).get("colour");
  if (Object.hasOwn(data.colourings, colour ?? "")) colouredBy.value = colour;
  fillKey();
  selectMethod(document.querySelector("[data-method]").dataset.method);
  addListeners();
} catch (error) {
  showError(error);
}

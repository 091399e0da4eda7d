// The map of patches on a canvas: drag or arrow keys move it, wheel or plus and minus zoom, the pointer shows a patch.

import { api, complain, enlarge } from "./common.js";

const canvas = document.getElementById("map");
const hover = document.getElementById("map-hover");
const pen = canvas.getContext("2d");
const FAR = 60; // times that the map can be enlarged
const REACH = 14; // px from the pointer to a patch

let data, points, shown = "all", pointed = -1, dragged = null;
const view = { scale: 1, x: 0.5, y: 0.5 }; // the map's middle, and how far it is enlarged

const colours = () => [...document.querySelectorAll(".map-legend .swatch")].map((one) => getComputedStyle(one).backgroundColor);
const side = () => Math.min(canvas.clientWidth, canvas.clientHeight) * 0.94 * view.scale;
const placeX = (x) => canvas.clientWidth / 2 + (x - view.x) * side();
const placeY = (y) => canvas.clientHeight / 2 - (y - view.y) * side();
const isShown = (place) => shown === "all" || data.labels[place] === Number(shown);

function draw() {
  const density = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
  }
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, width, height);
  const hues = colours();
  const radius = Math.min(9, 3.2 + Math.log2(view.scale));
  const edge = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  const order = data.labels.map((_, place) => place).sort((a, b) => isShown(a) - isShown(b));
  for (const place of order) {
    const [x, y] = [placeX(points[2 * place]), placeY(points[2 * place + 1])];
    if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
    pen.globalAlpha = isShown(place) ? 0.9 : 0.08;
    pen.fillStyle = hues[data.labels[place]] ?? edge;
    pen.beginPath();
    pen.arc(x, y, place === pointed ? radius + 3 : radius, 0, 2 * Math.PI);
    pen.fill();
    pen.lineWidth = place === pointed ? 2.5 : 0.6;
    pen.strokeStyle = place === pointed ? edge : "rgb(0 0 0 / .45)";
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

let asked = false;
function redraw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    draw();
  });
}

function nearest(x, y) {
  let [best, distance] = [-1, REACH ** 2];
  for (let place = 0; place < data.ids.length; place += 1) {
    if (!isShown(place)) continue;
    const away = (placeX(points[2 * place]) - x) ** 2 + (placeY(points[2 * place + 1]) - y) ** 2;
    if (away < distance) [best, distance] = [place, away];
  }
  return best;
}

function point(place, x, y) {
  if (place !== pointed) {
    pointed = place;
    hover.hidden = place < 0;
    if (place >= 0) {
      hover.querySelector("img").src = data.pictures[place];
      hover.querySelector("p").textContent = title(data.labels[place]);
    }
    redraw();
  }
  if (place < 0) return;
  hover.style.left = `${x + (x > canvas.clientWidth * 0.7 ? -160 : 18)}px`;
  hover.style.top = `${canvas.offsetTop + y + (y > canvas.clientHeight * 0.7 ? -180 : 18)}px`;
}

const title = (label) => document.querySelector(`.map-legend input[value="${label}"]`)?.parentElement.textContent.trim().replace(/\s+/g, " ") ?? "";

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const before = side();
  view.scale = Math.min(FAR, Math.max(0.8, view.scale * factor));
  const grown = 1 / before - 1 / side();
  view.x += (x - canvas.clientWidth / 2) * grown;
  view.y -= (y - canvas.clientHeight / 2) * grown;
  redraw();
}

function move(dx, dy) {
  view.x = Math.min(1.2, Math.max(-0.2, view.x - dx / side()));
  view.y = Math.min(1.2, Math.max(-0.2, view.y + dy / side()));
  redraw();
}

function all() {
  Object.assign(view, { scale: 1, x: 0.5, y: 0.5 });
  redraw();
}

const KEYS = {
  ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
  "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: all,
};

function open(place) {
  const picture = (at) => ({
    src: data.pictures[at],
    text: `Patch ${data.ids[at]}`,
    facts: [["Patch", data.ids[at]], ["Cluster", title(data.labels[at])]],
    actions: [{ title: "To its cluster", href: `/clusters/${data.k}/${data.labels[at]}` }],
  });
  enlarge([picture(place)], 0);
}

function listen() {
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    dragged = { x: event.offsetX, y: event.offsetY, moved: 0 };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!dragged) return point(nearest(event.offsetX, event.offsetY), event.offsetX, event.offsetY);
    const [dx, dy] = [event.offsetX - dragged.x, event.offsetY - dragged.y];
    move(dx, dy);
    dragged = { x: event.offsetX, y: event.offsetY, moved: dragged.moved + Math.abs(dx) + Math.abs(dy) };
    return undefined;
  });
  canvas.addEventListener("pointerup", (event) => {
    const still = dragged && dragged.moved < 5;
    dragged = null;
    const place = nearest(event.offsetX, event.offsetY);
    if (still && place >= 0) open(place);
  });
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  for (const button of document.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => ({ in: () => zoom(1.6), out: () => zoom(1 / 1.6), all })[button.dataset.zoom]());
  for (const button of document.querySelectorAll("[data-method]")) button.addEventListener("click", () => choose(button.dataset.method));
  for (const input of document.querySelectorAll('input[name="shown"]'))
    input.addEventListener("change", () => {
      shown = input.value;
      redraw();
    });
  for (const button of document.querySelectorAll("[data-patch]"))
    button.addEventListener("click", () => open(data.ids.indexOf(button.dataset.patch)));
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function choose(method) {
  points = data.maps[method];
  for (const button of document.querySelectorAll("[data-method]")) button.setAttribute("aria-pressed", button.dataset.method === method);
  all();
}

try {
  data = await api(`/api/map?k=${canvas.dataset.k}`);
  choose(document.querySelector("[data-method]").dataset.method);
  listen();
} catch (error) {
  complain(error);
}

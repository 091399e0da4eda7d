// The parts around the slide: legend, scale bar, overview.

import { element } from "./common.js";

const MAX_BAR = 150; // CSS px of the scale bar
const OVERVIEW = { width: 176, height: 132 }; // CSS px at most

/** "3 · necrotic tumour", or "Cluster 3" if it has no name. */
export function clusterTitle({ cluster, name }) {
  return name === `cluster ${cluster}` ? `Group ${cluster}` : `${cluster} · ${name}`;
}

/** Fill the legend; `onSelect` is called with a cluster. */
export function fillLegend(list, { slide, onSelect }) {
  list.replaceChildren(...slide.clusters.map((entry) => element("li", { class: entry.patches ? null : "none" },
    element("button", { type: "button", class: "entry", "aria-pressed": "false", data: { cluster: entry.cluster }, onclick: () => onSelect(entry.cluster) },
      element("span", { class: "swatch", vars: { "--c": entry.colour }, "aria-hidden": "true" }),
      element("span", { class: "name" }, clusterTitle(entry)),
      element("span", { class: "count" }, entry.patches.toLocaleString("en"))),
    element("a", { href: `/clusters/${slide.k}/${entry.cluster}`, "aria-label": `Open the page of ${clusterTitle(entry)}`, title: "Open its page" }, "→"))));
}

/** Mark the highlighted cluster in the legend; null for none. */
export function markLegend(list, highlighted) {
  for (const button of list.querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.cluster) === highlighted));
  list.classList.toggle("one", highlighted !== null);
}

/** Draw the scale bar: the longest round length (1, 2 or 5 times a power of ten) that fits, in um or mm, or in level-0 px if um/px is unknown. */
export function drawScaleBar({ svg, bar, text }, { zoom, mpp }) {
  const unitsPerPixel = mpp ?? 1; // per level-0 px
  const longest = (MAX_BAR / zoom) * unitsPerPixel;
  const power = 10 ** Math.floor(Math.log10(longest));
  const length = [5, 2, 1].find((digit) => digit * power <= longest) * power;
  const round = (value) => Number(value.toPrecision(1));
  const label = mpp === null ? `${round(length).toLocaleString("en")} px`
    : length >= 1000 ? `${round(length / 1000).toLocaleString("en")} mm` : `${round(length)} µm`;
  const end = (2 + (length / unitsPerPixel) * zoom).toFixed(1);
  svg.setAttribute("width", ((length / unitsPerPixel) * zoom + 4).toFixed(1));
  bar.setAttribute("d", `M2 1 V9 M2 5 H${end} M${end} 1 V9`);
  text.textContent = label;
}

/** A small picture of the whole slide with a frame around the visible part; pressing or dragging on it moves the camera. */
export class Overview {
  constructor({ canvas, slide, camera }) {
    const scale = Math.min(OVERVIEW.width / slide.width, OVERVIEW.height / slide.height);
    Object.assign(this, { canvas, slide, camera, scale, picture: null });
    Object.assign(this, { width: Math.max(8, Math.round(slide.width * scale)), height: Math.max(8, Math.round(slide.height * scale)) });
    canvas.style.width = `${this.width}px`;
    canvas.style.height = `${this.height}px`;
    const onPointer = (event) => {
      if (!(event.buttons & 1)) return;
      const { left, top } = canvas.getBoundingClientRect();
      const position = { x: (event.clientX - left) / scale, y: (event.clientY - top) / scale };
      if (event.type === "pointerdown") {
        canvas.setPointerCapture(event.pointerId);
        camera.animate(position);
      } else {
        camera.stop();
        camera.set(position);
      }
    };
    canvas.addEventListener("pointerdown", onPointer);
    canvas.addEventListener("pointermove", onPointer);
  }

  draw() {
    const ratio = devicePixelRatio, { canvas, camera, scale } = this;
    const context = canvas.getContext("2d");
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
    const { left, top, right, bottom } = camera.visible;
    const toOverview = (value, limit) => Math.min(limit, Math.max(0, value * scale * ratio));
    const [x0, y0] = [toOverview(left, width), toOverview(top, height)];
    const [x1, y1] = [toOverview(right, width), toOverview(bottom, height)];
    for (const [colour, lineWidth] of [["#ffffff", 3.5], ["#0b5cad", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = lineWidth * ratio;
      context.strokeRect(x0 + ratio, y0 + ratio, Math.max(2 * ratio, x1 - x0 - 2 * ratio), Math.max(2 * ratio, y1 - y0 - 2 * ratio));
    }
  }
}

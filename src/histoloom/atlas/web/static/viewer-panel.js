// The parts around the slide: legend, scale bar, overview.

import { element } from "./common.js";
import { groupTitle } from "./viewer-patches.js";

const MAX_BAR = 150; // CSS px of the scale bar
const OVERVIEW = { width: 176, height: 132 }; // CSS px at most

/** Fill the legend with a checkbox for each group; `onChange` is called with the set of those that are checked. */
export function fillLegend(list, { slide, shown, onChange }) {
  const boxes = slide.groups.map((_, group) => element("input", { type: "checkbox", checked: shown.has(group), onchange: () => onChange(checked()) }));
  const checked = () => new Set(boxes.flatMap((box, group) => (box.checked ? [group] : [])));
  const check = (wanted) => {
    boxes.forEach((box, group) => (box.checked = wanted(group)));
    onChange(checked());
  };
  list.replaceChildren(...slide.groups.map((group, place) => element("li", { class: group.patches ? null : "none" },
    element("label", {}, boxes[place],
      element("span", { class: "swatch", vars: { "--c": group.colour }, "aria-hidden": "true" }),
      element("span", { class: "name" }, groupTitle(group)),
      element("span", { class: "count" }, group.patches.toLocaleString("en"))),
    element("button", { type: "button", class: "quiet", "aria-label": `Show ${groupTitle(group)} alone`, onclick: () => check((other) => other === place) }, "only"),
    element("a", { href: group.page, "aria-label": `Open the page of ${groupTitle(group)}`, title: "Open its page" }, "→"))));
  return { all: () => check(() => true), none: () => check(() => false) };
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

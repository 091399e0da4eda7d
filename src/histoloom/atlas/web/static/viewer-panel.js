// What stands around the picture: legend, scale bar, overview.

import { element } from "./common.js";

const LONGEST = 150; // CSS px of the scale bar

/** "3 · necrotic tumour", or "Cluster 3" where nobody has named it. */
export function title({ cluster, name }) {
  return name === `cluster ${cluster}` ? `Cluster ${cluster}` : `${cluster} · ${name}`;
}

/** Fill the legend; `press` is called with a cluster. */
export function legend(list, { slide, press }) {
  list.replaceChildren(...slide.clusters.map((entry) => element("li", { class: entry.patches ? null : "none" },
    element("button", { type: "button", class: "entry", "aria-pressed": "false", data: { cluster: entry.cluster }, onclick: () => press(entry.cluster) },
      element("span", { class: "swatch", vars: { "--c": entry.colour }, "aria-hidden": "true" }),
      element("span", { class: "name" }, title(entry)),
      element("span", { class: "count" }, entry.patches.toLocaleString("en"))),
    element("a", { href: `/clusters/${slide.k}/${entry.cluster}`, "aria-label": `Open the page of ${title(entry)}`, title: "Open its page" }, "→"))));
}

/** Show which cluster is highlighted, null for none. */
export function mark(list, alone) {
  for (const button of list.querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.cluster) === alone));
  list.classList.toggle("one", alone !== null);
}

/** The longest round length that fits: [CSS px, text]. Without um/px it is in pixels of the slide. */
export function roundLength(zoom, mpp) {
  const unit = mpp ?? 1; // a level-0 px in um, or itself
  const most = (LONGEST / zoom) * unit;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].find((digit) => digit * power <= most) * power;
  const pixels = (length / unit) * zoom;
  if (mpp === null) return [pixels, `${Number(length.toPrecision(1)).toLocaleString("en")} px`];
  return [pixels, length >= 1000 ? `${Number((length / 1000).toPrecision(1)).toLocaleString("en")} mm` : `${Number(length.toPrecision(1))} µm`];
}

/** Draw the scale bar. */
export function scaleBar({ svg, bar, text }, { zoom, mpp }) {
  const [length, said] = roundLength(zoom, mpp);
  svg.setAttribute("width", (length + 4).toFixed(1));
  bar.setAttribute("d", `M2 1 V9 M2 5 H${(2 + length).toFixed(1)} M${(2 + length).toFixed(1)} 1 V9`);
  text.textContent = said;
}

/** A small picture of the whole slide with what is seen of it; a press or a drag on it moves there. */
export class Overview {
  constructor({ canvas, slide, camera }) {
    const scale = Math.min(176 / slide.width, 132 / slide.height);
    Object.assign(this, { canvas, slide, camera, scale, picture: null });
    [this.across, this.down] = [Math.max(8, Math.round(slide.width * scale)), Math.max(8, Math.round(slide.height * scale))];
    canvas.style.width = `${this.across}px`;
    canvas.style.height = `${this.down}px`;
    const go = (event) => {
      if (!(event.buttons & 1)) return;
      const { left, top } = canvas.getBoundingClientRect();
      const wanted = { x: (event.clientX - left) / scale, y: (event.clientY - top) / scale };
      if (event.type === "pointerdown") {
        canvas.setPointerCapture(event.pointerId);
        camera.glide(wanted);
      } else {
        camera.stop();
        camera.set(wanted);
      }
    };
    canvas.addEventListener("pointerdown", go);
    canvas.addEventListener("pointermove", go);
  }

  draw() {
    const ratio = devicePixelRatio, { canvas, camera, scale } = this;
    const context = canvas.getContext("2d");
    const [width, height] = [Math.round(this.across * ratio), Math.round(this.down * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
    const { left, top, right, bottom } = camera.seen;
    const clip = (value, most) => Math.min(most, Math.max(0, value * scale * ratio));
    const [x0, y0] = [clip(left, width), clip(top, height)];
    const [x1, y1] = [clip(right, width), clip(bottom, height)];
    for (const [colour, wide] of [["#ffffff", 3.5], ["#0b5cad", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide * ratio;
      context.strokeRect(x0 + ratio, y0 + ratio, Math.max(2 * ratio, x1 - x0 - 2 * ratio), Math.max(2 * ratio, y1 - y0 - 2 * ratio));
    }
  }
}

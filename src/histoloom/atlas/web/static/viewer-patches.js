// The patches on the slide, each in the colour of its group.

import { api, debounce, showError } from "./common.js";
import { Cells } from "./viewer-cells.js";

const APART = 160; // CSS px between two names of one group on the map

export class Patches {
  /** `onLoad` is called when patches have been loaded. */
  constructor({ slide, onLoad }) {
    Object.assign(this, { slide, onLoad, x: [], y: [], extent: [], cluster: [], group: [], total: 0, loadedBox: null, request: null });
    this.cells = new Cells();
    this.loadSoon = debounce((box) => this.load(box), 120);
  }

  /** Load the patches of the whole slide. The server sends a part of them if there are too many; then `loadVisible` loads more. */
  loadAll() {
    return this.load({ left: 0, top: 0, right: this.slide.width, bottom: this.slide.height });
  }

  /** Load the patches of the visible part and its surroundings, unless they are loaded. */
  loadVisible({ left, top, right, bottom }) {
    const { loadedBox } = this;
    if (!loadedBox || loadedBox.complete) return;
    const inside = left >= loadedBox.left && top >= loadedBox.top && right <= loadedBox.right && bottom <= loadedBox.bottom;
    const detailed = this.x.length === this.total || right - left > 0.45 * (loadedBox.right - loadedBox.left);
    if (inside && detailed) return;
    const marginX = (right - left) / 2, marginY = (bottom - top) / 2;
    this.loadSoon({ left: left - marginX, top: top - marginY, right: right + marginX, bottom: bottom + marginY });
  }

  /** Load what is loaded once more: groups have changed. */
  reload() {
    return this.loadedBox ? this.load(this.loadedBox) : null;
  }

  async load(box) {
    this.request?.abort();
    const request = (this.request = new AbortController());
    const { slide_id: id, width, height, k } = this.slide;
    const query = new URLSearchParams({ k, ...box });
    try {
      const response = await api(`/api/slides/${encodeURIComponent(id)}/patches?${query}`, { signal: request.signal });
      Object.assign(this, response); // x, y, extent, cluster, group, total
      const wholeSlide = box.left <= 0 && box.top <= 0 && box.right >= width && box.bottom >= height;
      this.loadedBox = { ...box, complete: wholeSlide && response.total === response.x.length };
      this.cells.clear();
      this.onLoad();
    } catch (error) {
      showError(error);
    }
  }

  /** The index of the patch that covers a point of the slide, of several the one with the nearest centre; -1 if none does. */
  indexAt({ x, y }) {
    let best = -1, bestDistance = Infinity;
    for (let i = 0; i < this.x.length; i++) {
      const half = this.extent[i] / 2;
      const distance = Math.max(Math.abs(x - this.x[i] - half), Math.abs(y - this.y[i] - half));
      if (distance <= half && distance < bestDistance) [best, bestDistance] = [i, distance];
    }
    return best;
  }

  /** The index of the patch whose upper left corner is this point; -1 if there is none. */
  indexOfCorner({ x, y }) {
    return this.x.findIndex((left, i) => left === x && this.y[i] === y);
  }

  /** Draw the groups in the set `shown`, tinted by `fill` (0..1). */
  draw(context, { visible, toScreen, zoom, fill, shown }) {
    this.cells.draw(context, { patches: this, groups: this.slide.groups, visible, toScreen, zoom, fill, shown });
  }

  /** Write the names of the groups in `shown` over their areas; a name that would cover another one is left out. */
  drawNames(context, { toScreen, shown }) {
    const ratio = devicePixelRatio, taken = [];
    Object.assign(context, { font: `600 ${13 * ratio}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle", lineJoin: "round" });
    for (const { group, x, y } of this.cells.labels(shown)) {
      const text = groupTitle(this.slide.groups[group]);
      const [left, top] = toScreen(x, y), half = context.measureText(text).width / 2 + 4 * ratio, height = 9 * ratio;
      const near = (other) => other.group === group && Math.hypot(other.left - left, other.top - top) < APART * ratio;
      if (taken.some((other) => near(other) || (Math.abs(other.left - left) < other.half + half && Math.abs(other.top - top) < 2 * height))) continue;
      taken.push({ group, left, top, half });
      Object.assign(context, { lineWidth: 4 * ratio, strokeStyle: "#ffffff", fillStyle: "#101418" });
      context.strokeText(text, left, top);
      context.fillText(text, left, top);
    }
  }
}

/** "necrotic tumour", or "Group 3" if it has no name. */
export function groupTitle({ name, clusters }) {
  return name === `cluster ${clusters[0]}` ? `Group ${clusters[0]}` : name;
}

// The patches over the slide, each in the colour of its cluster.

import { api, complain, delayed } from "./common.js";
import { Cells } from "./viewer-cells.js";

export class Patches {
  /** `came` is called when other patches have come. */
  constructor({ slide, came }) {
    Object.assign(this, { slide, came, x: [], y: [], extent: [], cluster: [], total: 0, covered: null, request: null });
    this.colours = slide.clusters.map(({ colour }) => colour);
    this.cells = new Cells();
    this.load = delayed((box) => this.fetch(box), 120);
  }

  /** All of the slide at once; where these are too many, parts of it follow as they are looked at. */
  start() {
    return this.fetch({ left: 0, top: 0, right: this.slide.width, bottom: this.slide.height });
  }

  /** See to it that the patches of this part of the slide are there. */
  want({ left, top, right, bottom }) {
    if (!this.covered || this.covered.whole) return;
    const { covered } = this;
    const inside = left >= covered.left && top >= covered.top && right <= covered.right && bottom <= covered.bottom;
    const enough = this.x.length === this.total || right - left > 0.45 * (covered.right - covered.left);
    if (inside && enough) return;
    const wide = (right - left) / 2, high = (bottom - top) / 2;
    this.load({ left: left - wide, top: top - high, right: right + wide, bottom: bottom + high });
  }

  async fetch(box) {
    this.request?.abort();
    const request = (this.request = new AbortController());
    const { slide_id: id, width, height, k } = this.slide;
    const query = new URLSearchParams({ k, ...box });
    try {
      const found = await api(`/api/slides/${encodeURIComponent(id)}/patches?${query}`, { signal: request.signal });
      Object.assign(this, found);
      const all = box.left <= 0 && box.top <= 0 && box.right >= width && box.bottom >= height;
      this.covered = { ...box, whole: all && found.total === found.x.length };
      this.cells.forget();
      this.came();
    } catch (error) {
      complain(error);
    }
  }

  /** The number of the patch at a place of the slide, of several that whose middle is nearest; -1 where there is none. */
  at({ x, y }) {
    let best = -1, nearest = Infinity;
    for (let i = 0; i < this.x.length; i++) {
      const half = this.extent[i] / 2;
      const away = Math.max(Math.abs(x - this.x[i] - half), Math.abs(y - this.y[i] - half));
      if (away <= half && away < nearest) [best, nearest] = [i, away];
    }
    return best;
  }

  /** The number of the patch whose corner lies there; -1 where there is none. */
  from({ x, y }) {
    return this.x.findIndex((left, i) => left === x && this.y[i] === y);
  }

  /** Draw them at `opacity` (0..1); `alone` is the cluster to highlight, null for all. */
  draw(context, { seen, toScreen, zoom, ratio, opacity, alone }) {
    context.globalAlpha = opacity;
    this.cells.draw(context, { patches: this, colours: this.colours, seen, toScreen, zoom, alone });
    context.globalAlpha = 1;
  }

  /** Draw a frame around a patch. */
  outline(context, number, { toScreen, zoom, ratio }) {
    const [across, down] = toScreen(this.x[number], this.y[number]);
    const side = this.extent[number] * zoom * ratio;
    for (const [colour, wide] of [["#ffffff", 4], ["#101418", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide * ratio;
      context.strokeRect(across, down, side, side);
    }
  }
}

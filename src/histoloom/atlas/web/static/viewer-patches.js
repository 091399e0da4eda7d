// The patches over the slide, each a square in the colour of its cluster.

import { api, complain, delayed } from "./common.js";

const FAINT = 0.12; // how much is seen of the clusters beside the one that is highlighted
const OUTLINED = 14; // CSS px from which a square also has an outline

export class Patches {
  /** `came` is called when other patches have come. */
  constructor({ slide, came }) {
    Object.assign(this, { slide, came, x: [], y: [], extent: [], cluster: [], total: 0, covered: null, request: null });
    this.canvas = document.createElement("canvas");
    this.load = delayed((box) => this.fetch(box), 120);
  }

  /** See to it that the patches of this part of the slide are there. */
  want({ left, top, right, bottom }) {
    const inside = this.covered && left >= this.covered.left && top >= this.covered.top && right <= this.covered.right && bottom <= this.covered.bottom;
    if (inside && (this.complete || this.x.length === this.total)) return;
    if (inside && right - left > 0.45 * (this.covered.right - this.covered.left)) return;
    const wide = (right - left) / 2, high = (bottom - top) / 2;
    this.load({ left: left - wide, top: top - high, right: right + wide, bottom: bottom + high });
  }

  /** All of the slide at once; where these are too many, parts of it follow as they are looked at. */
  start() {
    return this.fetch({ left: 0, top: 0, right: this.slide.width, bottom: this.slide.height });
  }

  async fetch(box) {
    this.request?.abort();
    const request = (this.request = new AbortController());
    const { left, top, right, bottom } = box;
    const query = new URLSearchParams({ k: this.slide.k, left, top, right, bottom });
    try {
      const found = await api(`/api/slides/${encodeURIComponent(this.slide.slide_id)}/patches?${query}`, { signal: request.signal });
      Object.assign(this, found);
      this.covered = box;
      if (left <= 0 && top <= 0 && right >= this.slide.width && bottom >= this.slide.height && found.total === found.x.length) {
        this.covered = { left: -Infinity, top: -Infinity, right: Infinity, bottom: Infinity };
      }
      this.came();
    } catch (error) {
      complain(error);
    }
  }

  /** How many are in a part of the slide. */
  count({ left, top, right, bottom }) {
    let found = 0;
    for (let i = 0; i < this.x.length; i++) {
      found += this.x[i] < right && this.y[i] < bottom && this.x[i] + this.extent[i] > left && this.y[i] + this.extent[i] > top;
    }
    return found;
  }

  /** The number of the patch at a place of the slide, of several that whose middle is nearest; -1 where there is none. */
  at({ x, y }) {
    let best = -1, nearest = Infinity;
    for (let i = 0; i < this.x.length; i++) {
      const across = x - this.x[i] - this.extent[i] / 2, down = y - this.y[i] - this.extent[i] / 2;
      const away = Math.max(Math.abs(across), Math.abs(down));
      if (away <= this.extent[i] / 2 && away < nearest) [best, nearest] = [i, away];
    }
    return best;
  }

  /** Draw them at `opacity` (0..1); `alone` is the cluster to highlight, null for all. `scale` is screen px a level-0 px. */
  draw(context, { seen, toScreen, scale, ratio, opacity, alone, hovered }) {
    const { width, height } = context.canvas;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const layer = this.canvas.getContext("2d");
    layer.clearRect(0, 0, width, height);
    const paths = this.paths(seen, toScreen, scale);
    // Filled on a layer of their own: where squares overlap nothing gets darker, and each fill is one call.
    for (const [cluster, path] of paths) {
      layer.globalAlpha = alone === null || alone === cluster ? 1 : FAINT;
      layer.fillStyle = this.slide.clusters[cluster].colour;
      layer.fill(path);
    }
    context.globalAlpha = opacity;
    context.drawImage(this.canvas, 0, 0);
    const side = (this.extent[0] ?? 0) * scale / ratio;
    context.lineWidth = ratio;
    if (side > OUTLINED) {
      for (const [cluster, path] of paths) {
        context.globalAlpha = (alone === null || alone === cluster ? 1 : FAINT) * Math.min(1, opacity * 1.8);
        context.strokeStyle = this.slide.clusters[cluster].colour;
        context.stroke(path);
      }
    }
    context.globalAlpha = 1;
    if (hovered >= 0) this.outline(context, hovered, { toScreen, scale, ratio });
  }

  paths({ left, top, right, bottom }, toScreen, scale) {
    const paths = new Map();
    for (let i = 0; i < this.x.length; i++) {
      const x = this.x[i], y = this.y[i], extent = this.extent[i];
      if (x > right || y > bottom || x + extent < left || y + extent < top) continue;
      let path = paths.get(this.cluster[i]);
      if (!path) paths.set(this.cluster[i], (path = new Path2D()));
      const [across, down] = toScreen(x, y);
      const side = Math.max(1, extent * scale);
      path.rect(across, down, side, side);
    }
    return paths;
  }

  outline(context, number, { toScreen, scale, ratio }) {
    const [across, down] = toScreen(this.x[number], this.y[number]);
    const side = this.extent[number] * scale;
    for (const [colour, wide] of [["#ffffff", 4], ["#101418", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide * ratio;
      context.strokeRect(across, down, side, side);
    }
  }
}

// Patches as a map: every place under at least one patch belongs to the patch whose middle is nearest. Squares that lie
// alone stay squares; where many overlap, as randomly drawn ones do, they share the ground instead of hiding each other.

const FINE = 2.2; // CSS px a cell, at most a factor of 1.42 more or less
const INSIDE = 196, EDGE = 255, FAINT = 30; // alpha (0..255) within a cluster, along its border, and beside the highlighted one

export class Cells {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.forget();
  }

  /** The patches are others now. */
  forget() {
    this.area = null;
    this.painted = undefined;
  }

  /** Draw the patches {x, y, extent, cluster} in `colours` (#rrggbb by cluster); `alone` is the one to highlight, or null. */
  draw(context, { patches, colours, seen, toScreen, zoom, alone }) {
    const step = 2 ** Math.round(Math.log2(FINE / zoom));
    if (!this.holds(seen, step)) {
      this.divide(patches, seen, step);
      this.painted = undefined;
    }
    if (this.painted !== alone) this.paint(patches, colours.map(packed), alone);
    this.painted = alone;
    const { column, row, across, down } = this.area;
    const [left, top] = toScreen(column * step, row * step), [right, bottom] = toScreen((column + across) * step, (row + down) * step);
    const smooth = context.imageSmoothingEnabled;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.canvas, left, top, right - left, bottom - top);
    context.imageSmoothingEnabled = smooth;
  }

  holds({ left, top, right, bottom }, step) {
    if (!this.area || this.area.step !== step) return false;
    const { column, row, across, down } = this.area;
    return left >= column * step && top >= row * step && right <= (column + across) * step && bottom <= (row + down) * step;
  }

  /** Give each cell of what is seen, and of a rim around it, to a patch: its number, or -1. Cells lie on a grid of the slide. */
  divide({ x, y, extent }, { left, top, right, bottom }, step) {
    const rim = 0.15, wide = (right - left) * rim, high = (bottom - top) * rim;
    const column = Math.floor((left - wide) / step), row = Math.floor((top - high) / step);
    const across = Math.ceil((right + wide) / step) - column, down = Math.ceil((bottom + high) / step) - row;
    const owner = new Int32Array(across * down).fill(-1), away = new Float32Array(across * down).fill(Infinity);
    for (let i = 0; i < x.length; i++) {
      // In cells, counted from the middle of the first one.
      const half = extent[i] / 2 / step, middleX = x[i] / step + half - column - 0.5, middleY = y[i] / step + half - row - 0.5;
      const from = Math.max(0, Math.ceil(middleX - half)), to = Math.min(across - 1, Math.floor(middleX + half));
      const upper = Math.max(0, Math.ceil(middleY - half)), lower = Math.min(down - 1, Math.floor(middleY + half));
      for (let j = upper; j <= lower; j++) {
        const apart = Math.abs(j - middleY);
        for (let place = j * across + from, c = from; c <= to; c++, place++) {
          const distance = Math.max(apart, Math.abs(c - middleX));
          if (distance < away[place]) [away[place], owner[place]] = [distance, i];
        }
      }
    }
    this.area = { column, row, across, down, step, owner };
  }

  paint({ cluster }, colours, alone) {
    const { across, down, owner } = this.area;
    Object.assign(this.canvas, { width: across, height: down });
    const context = this.canvas.getContext("2d"), image = context.createImageData(across, down);
    const pixels = new Uint32Array(image.data.buffer);
    const label = (place) => (owner[place] < 0 ? -1 : cluster[owner[place]]);
    for (let j = 0, place = 0; j < down; j++) {
      for (let i = 0; i < across; i++, place++) {
        const own = label(place);
        if (own < 0) continue;
        const edge = (i && label(place - 1) !== own) || (i + 1 < across && label(place + 1) !== own)
          || (j && label(place - across) !== own) || (j + 1 < down && label(place + across) !== own);
        const alpha = alone !== null && alone !== own ? FAINT : edge ? EDGE : INSIDE;
        pixels[place] = (alpha << 24) | colours[own];
      }
    }
    context.putImageData(image, 0, 0);
  }
}

/** `#rrggbb` as the lower three bytes of a pixel: red first, as a little-endian number. */
function packed(colour) {
  const number = Number.parseInt(colour.slice(1), 16);
  return ((number & 0xff) << 16) | (number & 0xff00) | (number >> 16);
}

// The patches as a coloured map: each cell of a grid belongs to the patch with the nearest centre among those that cover it.
// A patch on its own stays a square. Where patches overlap, as randomly sampled ones do, they divide the area between them.

const CELL_SIZE = 2.2; // CSS px; powers of two in level-0 px make it up to 1.42 times smaller or larger
const MARGIN = 0.15; // of the visible part, computed on each side, so that small moves need no new grid
const INSIDE = 196, EDGE = 255, FAINT = 30; // alpha (0..255) within a cluster, along its edge, and of clusters that are not highlighted

export class Cells {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.clear();
  }

  /** The patches have changed: compute the grid again. */
  clear() {
    this.grid = null;
    this.painted = undefined; // the highlighted cluster in the painted canvas
  }

  /** Draw the patches {x, y, extent, cluster} in `colours` (#rrggbb by cluster); `highlighted` is a cluster, or null. */
  draw(context, { patches, colours, visible, toScreen, zoom, highlighted }) {
    const step = 2 ** Math.round(Math.log2(CELL_SIZE / zoom)); // level-0 px per cell
    if (!this.covers(visible, step)) {
      this.assign(patches, visible, step);
      this.painted = undefined;
    }
    if (this.painted !== highlighted) this.paint(patches, colours.map(toPixel), highlighted);
    this.painted = highlighted;
    const { column, row, columns, rows } = this.grid;
    const [left, top] = toScreen(column * step, row * step), [right, bottom] = toScreen((column + columns) * step, (row + rows) * step);
    const smoothing = context.imageSmoothingEnabled;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.canvas, left, top, right - left, bottom - top);
    context.imageSmoothingEnabled = smoothing;
  }

  covers({ left, top, right, bottom }, step) {
    if (!this.grid || this.grid.step !== step) return false;
    const { column, row, columns, rows } = this.grid;
    return left >= column * step && top >= row * step && right <= (column + columns) * step && bottom <= (row + rows) * step;
  }

  /** Give each cell of the visible part and its margin to a patch: its index, or -1. The cells lie on a grid of the slide. */
  assign({ x, y, extent }, { left, top, right, bottom }, step) {
    const marginX = (right - left) * MARGIN, marginY = (bottom - top) * MARGIN;
    const column = Math.floor((left - marginX) / step), row = Math.floor((top - marginY) / step);
    const columns = Math.ceil((right + marginX) / step) - column, rows = Math.ceil((bottom + marginY) / step) - row;
    const owner = new Int32Array(columns * rows).fill(-1), nearest = new Float32Array(columns * rows).fill(Infinity);
    for (let i = 0; i < x.length; i++) {
      // In cells, counted from the centre of the first cell.
      const half = extent[i] / 2 / step, centreX = x[i] / step + half - column - 0.5, centreY = y[i] / step + half - row - 0.5;
      const firstX = Math.max(0, Math.ceil(centreX - half)), lastX = Math.min(columns - 1, Math.floor(centreX + half));
      const firstY = Math.max(0, Math.ceil(centreY - half)), lastY = Math.min(rows - 1, Math.floor(centreY + half));
      for (let cellY = firstY; cellY <= lastY; cellY++) {
        const distanceY = Math.abs(cellY - centreY);
        for (let cellX = firstX, cell = cellY * columns + firstX; cellX <= lastX; cellX++, cell++) {
          const distance = Math.max(distanceY, Math.abs(cellX - centreX));
          if (distance < nearest[cell]) [nearest[cell], owner[cell]] = [distance, i];
        }
      }
    }
    this.grid = { column, row, columns, rows, step, owner };
  }

  /** Paint one pixel per cell; cells at the edge of a cluster are opaque. */
  paint({ cluster }, pixelOfCluster, highlighted) {
    const { columns, rows, owner } = this.grid;
    Object.assign(this.canvas, { width: columns, height: rows });
    const context = this.canvas.getContext("2d"), image = context.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const clusterAt = (cell) => (owner[cell] < 0 ? -1 : cluster[owner[cell]]);
    for (let row = 0, cell = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, cell++) {
        const own = clusterAt(cell);
        if (own < 0) continue;
        const edge = (column && clusterAt(cell - 1) !== own) || (column + 1 < columns && clusterAt(cell + 1) !== own)
          || (row && clusterAt(cell - columns) !== own) || (row + 1 < rows && clusterAt(cell + columns) !== own);
        const alpha = highlighted !== null && highlighted !== own ? FAINT : edge ? EDGE : INSIDE;
        pixels[cell] = (alpha << 24) | pixelOfCluster[own];
      }
    }
    context.putImageData(image, 0, 0);
  }
}

/** `#rrggbb` as the lower three bytes of a pixel in a little-endian Uint32Array: red is the lowest byte. */
function toPixel(colour) {
  const number = Number.parseInt(colour.slice(1), 16);
  return ((number & 0xff) << 16) | (number & 0xff00) | (number >> 16);
}

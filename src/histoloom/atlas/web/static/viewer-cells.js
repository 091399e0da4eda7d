// The patches as a map of groups: each cell of a grid belongs to the patch with the nearest centre among those that cover it.
// A patch on its own stays a square. Where patches overlap, as randomly sampled ones do, they divide the area between them.
// Each group is tinted and has an outline inside its area, with a white line around it, which shows on any tissue.

const CELL_SIZE = 3; // CSS px; powers of two in level-0 px make it up to 1.42 times smaller or larger
const PIXELS = 4; // of the painted canvas in a cell, across and down: one of the white line and three of the outline
const MARGIN = 0.15; // of the visible part, computed on each side, so that small moves need no new grid
const WHITE = (230 << 24) | 0xffffff;
const DIMMED = (160 << 24) | 0xffffff; // over what is not shown, where only some groups are
const LABELLED_CELLS = 60; // an area with fewer is too small for its name
const MAX_LABELS = 40;

export class Cells {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.clear();
  }

  /** The patches have changed: compute the grid again. */
  clear() {
    this.grid = null;
    this.painted = null; // what the painted canvas shows
    this.areas = null; // the places of names
  }

  /**
   * Draw the patches {x, y, extent, group}; `groups` have a `colour` (#rrggbb), `shown` is the set of those to show, and `fill` is how
   * strong their tint is (0..1).
   */
  draw(context, { patches, groups, visible, toScreen, zoom, shown, fill }) {
    const step = 2 ** Math.round(Math.log2(CELL_SIZE / zoom)); // level-0 px per cell
    if (!this.covers(visible, step)) {
      this.assign(patches, visible, step);
      this.painted = this.areas = null;
    }
    const wanted = `${[...shown].sort()} ${fill} ${groups.map(({ colour }) => colour)}`;
    if (this.painted !== wanted) this.paint({ colours: groups.map(({ colour }) => toPixel(colour)), shown, fill });
    this.painted = wanted;
    const { column, row, columns, rows } = this.grid;
    const [left, top] = toScreen(column * step, row * step), [right, bottom] = toScreen((column + columns) * step, (row + rows) * step);
    const smoothing = context.imageSmoothingEnabled;
    context.imageSmoothingEnabled = true;
    context.drawImage(this.canvas, left, top, right - left, bottom - top);
    context.imageSmoothingEnabled = smoothing;
  }

  covers({ left, top, right, bottom }, step) {
    if (!this.grid || this.grid.step !== step) return false;
    const { column, row, columns, rows } = this.grid;
    return left >= column * step && top >= row * step && right <= (column + columns) * step && bottom <= (row + rows) * step;
  }

  /** Give each cell of the visible part and its margin to a patch: its index, or -1. The cells lie on a grid of the slide. */
  assign({ x, y, extent, group }, { left, top, right, bottom }, step) {
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
    const groupOf = Int16Array.from(owner, (i) => (i < 0 ? -1 : group[i]));
    this.grid = { column, row, columns, rows, step, groupOf };
  }

  paint({ colours, shown, fill }) {
    const { columns, rows, groupOf } = this.grid;
    const width = columns * PIXELS;
    Object.assign(this.canvas, { width, height: rows * PIXELS });
    const context = this.canvas.getContext("2d"), image = context.createImageData(width, rows * PIXELS);
    const pixels = new Uint32Array(image.data.buffer);
    const tints = colours.map((colour) => (Math.round(255 * fill) << 24) | colour), lines = colours.map((colour) => (255 << 24) | colour);
    const rest = shown.size < colours.length ? DIMMED : 0;
    const differs = (column, row, own) => column >= 0 && row >= 0 && column < columns && row < rows && groupOf[row * columns + column] !== own;
    for (let row = 0, cell = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, cell++) {
        const own = groupOf[cell], first = row * PIXELS * width + column * PIXELS;
        if (!shown.has(own)) {
          if (rest) for (let y = 0; y < PIXELS; y++) pixels.fill(rest, first + y * width, first + y * width + PIXELS);
          continue;
        }
        const left = differs(column - 1, row, own), right = differs(column + 1, row, own), above = differs(column, row - 1, own), below = differs(column, row + 1, own);
        const corners = [differs(column - 1, row - 1, own), differs(column + 1, row - 1, own), differs(column - 1, row + 1, own), differs(column + 1, row + 1, own)];
        const inside = !left && !right && !above && !below && !corners.includes(true);
        for (let y = 0; y < PIXELS; y++) {
          for (let x = 0; x < PIXELS; x++) {
            let colour = tints[own];
            if (!inside) {
              // An outer row of pixels beside another group is white; all others of this cell are the outline.
              const [isLeft, isRight, isTop, isBottom] = [x === 0, x === PIXELS - 1, y === 0, y === PIXELS - 1];
              const outer = (left && isLeft) || (right && isRight) || (above && isTop) || (below && isBottom) || (corners[0] && isLeft && isTop)
                || (corners[1] && isRight && isTop) || (corners[2] && isLeft && isBottom) || (corners[3] && isRight && isBottom);
              colour = outer ? WHITE : lines[own];
            }
            pixels[first + y * width + x] = colour;
          }
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  /** The places of names: {group, x, y} in level-0 px, the middle of each large connected area, the largest first. */
  labels(shown) {
    this.areas ??= this.findAreas();
    const { column, row, step } = this.grid;
    return this.areas.filter(({ group }) => shown.has(group)).slice(0, MAX_LABELS)
      .map(({ group, across, down }) => ({ group, x: (column + across + 0.5) * step, y: (row + down + 0.5) * step }));
  }

  /** The connected areas of the grid: {group, cells, across, down}, with the cell that lies deepest inside. */
  findAreas() {
    const { columns, rows, groupOf } = this.grid;
    const depth = depthInside(groupOf, columns, rows);
    const seen = new Uint8Array(columns * rows), areas = [];
    for (let start = 0; start < seen.length; start++) {
      if (seen[start] || groupOf[start] < 0) continue;
      const group = groupOf[start], waiting = [start];
      let cells = 0, deepest = start;
      seen[start] = 1;
      while (waiting.length) {
        const cell = waiting.pop(), column = cell % columns;
        cells++;
        if (depth[cell] > depth[deepest]) deepest = cell;
        for (const [next, there] of [[cell - 1, column > 0], [cell + 1, column + 1 < columns], [cell - columns, cell >= columns], [cell + columns, cell + columns < seen.length]]) {
          if (there && !seen[next] && groupOf[next] === group) {
            seen[next] = 1;
            waiting.push(next);
          }
        }
      }
      if (cells >= LABELLED_CELLS) areas.push({ group, cells, across: deepest % columns, down: Math.floor(deepest / columns) });
    }
    return areas.sort((a, b) => b.cells - a.cells);
  }
}

/** How many cells each cell lies inside its group's area, the grid's border counted as an edge: two passes over the grid. */
function depthInside(groupOf, columns, rows) {
  const depth = new Int32Array(columns * rows);
  const from = (cell, other, there) => (there && groupOf[other] === groupOf[cell] ? depth[other] + 1 : 1);
  for (let cell = 0; cell < depth.length; cell++) {
    depth[cell] = Math.min(from(cell, cell - 1, cell % columns > 0), from(cell, cell - columns, cell >= columns));
  }
  for (let cell = depth.length - 1; cell >= 0; cell--) {
    depth[cell] = Math.min(depth[cell], from(cell, cell + 1, (cell + 1) % columns > 0), from(cell, cell + columns, cell + columns < depth.length));
  }
  return depth;
}

/** `#rrggbb` as the lower three bytes of a pixel in a little-endian Uint32Array: red is the lowest byte. */
function toPixel(colour) {
  const number = Number.parseInt(colour.slice(1), 16);
  return ((number & 0xff) << 16) | (number & 0xff00) | (number >> 16);
}

// The layout that is drawn: a grid of cells, each with the place of its tissue in the palette; drawing on it, undo and redo.

const MOST_CELLS = 512; // along the longer side, as the server
const MOST_UNDO = 60;
export const EMPTY = 255; // a cell without a tissue, in what the server sends

export class Layout {
  /** Cells are squares of `factor` px or several times that. `onChange` is called after every change. */
  constructor({ factor, onChange }) {
    Object.assign(this, { factor, onChange, width: factor, height: factor, cell: factor, cells: new Uint8Array(1), past: [], future: [] });
  }

  get columns() {
    return Math.ceil(this.width / this.cell);
  }

  get rows() {
    return Math.ceil(this.height / this.cell);
  }

  /** The px of a cell for a field of this size. */
  cellFor(width, height) {
    return this.factor * Math.max(1, Math.ceil(Math.max(width, height) / (this.factor * MOST_CELLS)));
  }

  get state() {
    const { width, height, cell, cells } = this;
    return { width, height, cell, cells: cells.slice() };
  }

  /** Remember the present state, to which undo returns: before a change, or at the beginning of a stroke. */
  begin() {
    this.past.push(this.state);
    if (this.past.length > MOST_UNDO) this.past.shift();
    this.future = [];
  }

  undo() {
    this.swap(this.past, this.future);
  }

  redo() {
    this.swap(this.future, this.past);
  }

  swap(from, to) {
    if (!from.length) return;
    to.push(this.state);
    Object.assign(this, from.pop());
    this.onChange();
  }

  /** Take over another grid as one step. */
  replace({ width, height, cell, cells }) {
    this.begin();
    Object.assign(this, { width, height, cell, cells });
    this.onChange();
  }

  /** Another size of the field: the layout is stretched with it. */
  resize(width, height) {
    const cell = this.cellFor(width, height), columns = Math.ceil(width / cell), rows = Math.ceil(height / cell);
    const cells = new Uint8Array(columns * rows);
    for (let row = 0; row < rows; row++) {
      const sourceRow = Math.min(this.rows - 1, Math.floor(((row + 0.5) * this.rows) / rows));
      for (let column = 0; column < columns; column++) cells[row * columns + column] = this.cells[sourceRow * this.columns + Math.min(this.columns - 1, Math.floor(((column + 0.5) * this.columns) / columns))];
    }
    this.replace({ width, height, cell, cells });
  }

  at(x, y) {
    return this.cells[Math.min(this.rows - 1, Math.max(0, y)) * this.columns + Math.min(this.columns - 1, Math.max(0, x))];
  }

  /** A stroke of a round brush, `size` cells wide, from one place to another (in cells). It belongs to the step that `begin` began. */
  stroke(from, to, size, value) {
    const radius = size / 2, steps = Math.max(1, Math.ceil((2 * Math.hypot(to.x - from.x, to.y - from.y)) / Math.max(1, radius)));
    for (let step = 0; step <= steps; step++) {
      const x = from.x + ((to.x - from.x) * step) / steps, y = from.y + ((to.y - from.y) * step) / steps;
      for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(this.rows, y + radius); row++) {
        for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(this.columns, x + radius); column++) {
          if (size <= 1 ? column === Math.floor(x) && row === Math.floor(y) : Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) this.cells[row * this.columns + column] = value;
        }
      }
    }
    this.onChange();
  }

  /** Everything between two corners, in cells, both included. */
  rectangle(one, other, value) {
    this.begin();
    const span = (a, b, most) => [Math.max(0, Math.min(Math.floor(a), Math.floor(b))), Math.min(most - 1, Math.max(Math.floor(a), Math.floor(b)))];
    const [left, right] = span(one.x, other.x, this.columns), [top, bottom] = span(one.y, other.y, this.rows);
    for (let row = top; row <= bottom; row++) this.cells.fill(value, row * this.columns + left, row * this.columns + right + 1);
    this.onChange();
  }

  /** The cells whose middle lies in a polygon of corners in cells (even-odd rule). */
  polygon(corners, value) {
    this.begin();
    for (let row = 0; row < this.rows; row++) {
      const y = row + 0.5, crossings = [];
      corners.forEach((corner, index) => {
        const next = corners[(index + 1) % corners.length];
        if (corner.y <= y !== next.y <= y) crossings.push(corner.x + ((y - corner.y) / (next.y - corner.y)) * (next.x - corner.x));
      });
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const from = Math.max(0, Math.ceil(crossings[i] - 0.5)), to = Math.min(this.columns, Math.ceil(crossings[i + 1] - 0.5));
        if (to > from) this.cells.fill(value, row * this.columns + from, row * this.columns + to);
      }
    }
    this.onChange();
  }

  /** The connected area of one tissue at a cell, or at the nearest one, becomes another one. */
  fill(atX, atY, value) {
    const x = Math.min(this.columns - 1, Math.max(0, atX)), y = Math.min(this.rows - 1, Math.max(0, atY));
    const old = this.at(x, y);
    if (old === value) return;
    this.begin();
    const { columns, rows, cells } = this, waiting = [y * columns + x];
    while (waiting.length) {
      const place = waiting.pop();
      if (cells[place] !== old) continue;
      cells[place] = value;
      const column = place % columns;
      if (column > 0) waiting.push(place - 1);
      if (column < columns - 1) waiting.push(place + 1);
      if (place >= columns) waiting.push(place - columns);
      if (place < columns * (rows - 1)) waiting.push(place + columns);
    }
    this.onChange();
  }

  fillAll(value) {
    this.begin();
    this.cells.fill(value);
    this.onChange();
  }

  /** Upright stripes of these values, equally wide. */
  stripes(values) {
    this.begin();
    const { columns } = this;
    this.cells.forEach((_, place) => (this.cells[place] = values[Math.floor(((place % columns) * values.length) / columns)]));
    this.onChange();
  }

  /** Round the edges of all areas: each cell gets the tissue that is most frequent about it, within about `size` cells. */
  smooth(size) {
    this.begin();
    const { cells, columns, rows } = this, radius = Math.max(1, Math.round(size / 2));
    const most = new Float32Array(cells.length).fill(-1), result = new Uint8Array(cells.length);
    for (const value of new Set(cells)) {
      let share = Float32Array.from(cells, (cell) => Number(cell === value));
      for (let pass = 0; pass < 2; pass++) {
        share = blurred(share, { lines: rows, length: columns, step: 1, next: columns, radius });
        share = blurred(share, { lines: columns, length: rows, step: columns, next: 1, radius });
      }
      share.forEach((one, place) => {
        if (one <= most[place]) return;
        most[place] = one;
        result[place] = value;
      });
    }
    this.cells = result;
    this.onChange();
  }

  /** As the server has it; `tissues`: the names of the palette. */
  toServer(tissues) {
    let binary = "";
    for (let start = 0; start < this.cells.length; start += 8192) binary += String.fromCharCode(...this.cells.subarray(start, start + 8192));
    return { width: this.width, height: this.height, cell: this.cell, tissues, cells: btoa(binary) };
  }
}

/** Means of `radius` cells to both sides along lines; `step` leads to the next cell of a line, `next` to the next line. */
function blurred(values, { lines, length, step, next, radius }) {
  const result = new Float32Array(values.length), sums = new Float64Array(length + 1);
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < length; i++) sums[i + 1] = sums[i] + values[line * next + i * step];
    for (let i = 0; i < length; i++) {
      const from = Math.max(0, i - radius), to = Math.min(length, i + radius + 1);
      result[line * next + i * step] = (sums[to] - sums[from]) / (to - from);
    }
  }
  return result;
}

/** What the server sends, as a grid; cells without a tissue get `background`. Names that are not in the palette `tissues` too. */
export function fromServer({ width, height, cell, tissues: names, cells }, tissues, background) {
  const places = names.map((name) => tissues.indexOf(name));
  const binary = atob(cells), values = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) {
    const place = binary.charCodeAt(i) === EMPTY ? -1 : places[binary.charCodeAt(i)];
    values[i] = place >= 0 ? place : background;
  }
  return { width, height, cell, cells: values };
}

/** Draw a grid into a canvas of one px a cell, in `colours` ([[r, g, b]]). A cell without a tissue (`EMPTY`) is left clear. */
export function gridPicture({ width, height, cell, cells }, colours, canvas = document.createElement("canvas")) {
  const columns = Math.ceil(width / cell), rows = Math.ceil(height / cell);
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const inks = new Uint32Array(256); // clear where there is no colour
  new Uint8Array(inks.buffer).set(colours.flatMap((colour) => [...colour, 255]));
  cells.forEach((value, place) => (pixels[place] = inks[value]));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

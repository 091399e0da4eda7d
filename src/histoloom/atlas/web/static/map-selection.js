// Selecting points of the map: a free outline with the pointer, or a circle that keys move.

const STEP = 20; // CSS px that a key moves the circle
const RADIUS = { start: 32, least: 8, most: 240, factor: 1.3 }; // CSS px
const CLICK = 5; // CSS px: a shorter line is a click
const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

export class MapSelection {
  /**
   * `place(index)` is where a point stands on the canvas ([x, y], CSS px), or null where it is not shown. `onChange`: what is selected
   * changed; `redraw`: how it looks did; `pan(dx, dy)` moves the map; `onCircle` is called with the points in the circle when it moved.
   */
  constructor({ canvas, place, pan, redraw, onChange, onCircle }) {
    Object.assign(this, { canvas, place, pan, redraw, onChange, onCircle });
    this.size = 0; // how many points there are
    this.points = new Set(); // indices of what is selected
    this.line = null; // [[x, y]] while the outline is drawn
    this.circle = null; // {x, y, radius}
    this.mode = false; // whether the pointer draws without Shift, and keys move the circle without it
  }

  // --- the outline ---------------------------------------------------------------------------------------------------

  begin(x, y) {
    this.line = [[x, y]];
    this.redraw();
  }

  extend(x, y) {
    this.line.push([x, y]);
    this.redraw();
  }

  /** Close the outline, and select what is in it; returns false where it was only a click. */
  finish({ add, remove }) {
    const line = this.line;
    this.line = null;
    const [x0, y0] = line[0];
    if (!line.some(([x, y]) => Math.hypot(x - x0, y - y0) >= CLICK)) {
      this.redraw();
      return false;
    }
    this.select(this.within(line), { add, remove });
    return true;
  }

  cancel() {
    this.line = null;
    this.redraw();
  }

  within(line) {
    return this.inside((x, y) => {
      let odd = false;
      for (let i = 0, j = line.length - 1; i < line.length; j = i, i += 1) {
        const [ax, ay] = line[i], [bx, by] = line[j];
        if (ay > y !== by > y && x < ax + ((y - ay) / (by - ay)) * (bx - ax)) odd = !odd;
      }
      return odd;
    });
  }

  inside(test) {
    const found = [];
    for (let index = 0; index < this.size; index += 1) {
      const at = this.place(index);
      if (at && test(...at)) found.push(index);
    }
    return found;
  }

  // --- what is selected ----------------------------------------------------------------------------------------------

  /** Select these points alone; or add them to the selection, or remove them from it. */
  select(indices, { add = false, remove = false } = {}) {
    if (!add && !remove) this.points.clear();
    for (const index of indices) remove ? this.points.delete(index) : this.points.add(index);
    this.onChange();
  }

  toggle(index) {
    this.select([index], this.points.has(index) ? { remove: true } : { add: true });
  }

  // --- the circle, by keys -------------------------------------------------------------------------------------------

  get inCircle() {
    const { x, y, radius } = this.circle;
    return this.inside((px, py) => Math.hypot(px - x, py - y) <= radius);
  }

  /** The point nearest to the middle of the circle, -1 if none is in it. */
  get middle() {
    const { x, y } = this.circle;
    const distance = (index) => Math.hypot(this.place(index)[0] - x, this.place(index)[1] - y);
    return this.inCircle.reduce((best, index) => (best < 0 || distance(index) < distance(best) ? index : best), -1);
  }

  /** Act on a key; returns whether it was one of the selection's. */
  onKey({ key, shiftKey }) {
    if (key in MOVES && (shiftKey || this.mode)) {
      this.move(...MOVES[key]);
    } else if (key === "Escape") {
      if (this.points.size || this.line) {
        this.line = null;
        this.select([]);
      } else {
        this.circle = null;
        this.redraw();
      }
    } else if (!this.circle) {
      return false;
    } else if (key === " ") {
      this.select(this.inCircle, { add: true });
    } else if (key === "Backspace" || key === "Delete") {
      this.select(this.inCircle, { remove: true });
    } else if (key === "+" || key === "=") {
      this.resize(RADIUS.factor);
    } else if (key === "-" || key === "_") {
      this.resize(1 / RADIUS.factor);
    } else {
      return false;
    }
    return true;
  }

  /** Show the circle in the middle, or move it; at the edge the map moves instead. */
  move(dx, dy) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!this.circle) {
      this.circle = { x: width / 2, y: height / 2, radius: RADIUS.start };
    } else {
      const x = Math.min(width, Math.max(0, this.circle.x + dx)), y = Math.min(height, Math.max(0, this.circle.y + dy));
      this.pan(x - this.circle.x - dx, y - this.circle.y - dy);
      Object.assign(this.circle, { x, y });
    }
    this.moved();
  }

  resize(factor) {
    this.circle.radius = Math.min(RADIUS.most, Math.max(RADIUS.least, this.circle.radius * factor));
    this.moved();
  }

  moved() {
    this.redraw();
    this.onCircle(this.inCircle);
  }

  // --- how it looks --------------------------------------------------------------------------------------------------

  /** Draw the outline and the circle: a light line with a dark one on it, which shows on any points. */
  draw(context, { ink, page, accent }) {
    const shape = new Path2D();
    if (this.line) this.line.forEach(([x, y], place) => (place ? shape.lineTo(x, y) : shape.moveTo(x, y)));
    if (this.circle) {
      const { x, y, radius } = this.circle;
      shape.moveTo(x + radius, y);
      shape.arc(x, y, radius, 0, 2 * Math.PI);
      for (const [ax, ay, bx, by] of [[x - 5, y, x + 5, y], [x, y - 5, x, y + 5]]) {
        shape.moveTo(ax, ay);
        shape.lineTo(bx, by);
      }
    }
    if (this.line) {
      context.globalAlpha = 0.12;
      context.fillStyle = accent;
      context.fill(shape);
      context.globalAlpha = 1;
    }
    for (const [colour, width] of [[page, 5], [this.line ? accent : ink, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke(shape);
    }
  }
}

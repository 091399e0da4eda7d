// The surface on which a layout is drawn: the canvas, and the tools by mouse, touch, pen and keys.

import { announce, oncePerFrame } from "./common.js";
import { gridPicture } from "./paint-layout.js";

const MOST_HEIGHT = 0.74; // of the window
const CLOSE = 10; // CSS px within which a click on the first corner closes a polygon

export const HINTS = {
  brush: "Drag to draw the chosen tissue.",
  eraser: "Drag to draw the background.",
  polygon: "Click the corners, and the first one again (or double-click) to close; or drag an outline.",
  rectangle: "Drag from one corner to the opposite one.",
  fill: "Click an area: all of it becomes the chosen tissue.",
  frame: "Click or drag to move the frame: the part of the field that the preview shows at full size.",
};

export class Surface {
  /**
   * `page`: {colours, value(), background(), brush(), frameSize(), name(value), mpp}, what is chosen on the page;
   * `onTool(tool)`, `onFrame()`, and `onKey(key)` for keys that belong to the page, which returns whether it used one.
   */
  constructor({ surface, canvas, layout, page, onTool, onFrame, onKey }) {
    Object.assign(this, { surface, canvas, layout, page, onTool, onFrame, onKey });
    this.context = canvas.getContext("2d");
    this.grid = document.createElement("canvas");
    this.stale = true; // whether the grid's picture is older than the layout
    this.tool = "brush";
    this.corners = []; // of the polygon or rectangle that is being drawn, in cells
    this.pointer = null; // where the mouse is, in cells; null where it is elsewhere
    this.cursor = { x: 0, y: 0 }; // the keyboard's, in whole cells
    this.down = false; // whether the keyboard's brush is on the layout
    this.dragged = null; // the last place of the pointer that is held down, in cells
    this.frame = { x: 0, y: 0 }; // the upper left px of the preview
    this.preview = null; // {image, x, y, width, height} in px of the field, while it is shown on the layout
    this.redraw = oncePerFrame(() => this.draw());
    new ResizeObserver(() => this.resize()).observe(surface.parentElement);
    addEventListener("resize", () => this.resize());
    this.listen();
  }

  /** CSS px of a cell. */
  get scale() {
    return (this.canvas.clientWidth / this.layout.width) * this.layout.cell;
  }

  setTool(tool) {
    this.tool = tool;
    this.giveUp();
    this.surface.dataset.tool = tool;
    this.onTool(tool);
    this.redraw();
  }

  giveUp() {
    this.corners = [];
    this.down = false;
    this.dragged = null;
    this.redraw();
  }

  changed() {
    this.stale = true;
    this.cursor.x = Math.min(this.cursor.x, this.layout.columns - 1);
    this.cursor.y = Math.min(this.cursor.y, this.layout.rows - 1);
    this.moveFrame(this.frame);
    const shape = `${this.layout.width}/${this.layout.height}`;
    if (this.shape !== shape) this.resize();
    this.shape = shape;
    this.redraw();
  }

  resize() {
    const { width, height } = this.layout, room = this.surface.parentElement.clientWidth;
    const fit = Math.min(room / width, (MOST_HEIGHT * innerHeight) / height);
    this.canvas.style.width = `${Math.max(40, Math.floor(width * fit))}px`;
    this.canvas.style.height = `${Math.max(40, Math.floor(height * fit))}px`;
    Object.assign(this.canvas, { width: Math.round(this.canvas.clientWidth * devicePixelRatio), height: Math.round(this.canvas.clientHeight * devicePixelRatio) });
    this.redraw();
  }

  draw() {
    const { context, canvas, layout, page } = this, scale = this.scale * devicePixelRatio, px = scale / layout.cell;
    if (this.stale) gridPicture(layout, page.colours, this.grid);
    this.stale = false;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.grid, 0, 0, layout.columns * scale, layout.rows * scale);

    if (this.preview) {
      const { image, x, y, width, height } = this.preview;
      context.imageSmoothingEnabled = true;
      context.drawImage(image, x * px, y * px, width * px, height * px);
      const ratio = devicePixelRatio;
      context.fillStyle = "rgb(16 20 26 / .72)";
      context.fillRect(x * px + 6 * ratio, y * px + 6 * ratio, 62 * ratio, 19 * ratio);
      Object.assign(context, { fillStyle: "#ffffff", font: `${12 * ratio}px system-ui, sans-serif` });
      context.fillText("synthetic", x * px + 11 * ratio, y * px + 20 * ratio, 52 * ratio);
    }
    const twice = (path, dashed = false) => {
      for (const [style, width] of [["#ffffff", 4], ["#101418", 2]]) {
        Object.assign(context, { strokeStyle: style, lineWidth: width * devicePixelRatio });
        context.setLineDash(dashed && style !== "#ffffff" ? [6 * devicePixelRatio, 4 * devicePixelRatio] : []);
        context.stroke(path);
      }
    };
    if (page.frameSize()) {
      const path = new Path2D(), { width, height } = page.frameSize();
      path.rect(this.frame.x * px, this.frame.y * px, width * px, height * px);
      twice(path, true);
    }
    const byKeys = this.surface.matches(":focus-visible"), place = byKeys ? { x: this.cursor.x + 0.5, y: this.cursor.y + 0.5 } : this.pointer;
    if (this.corners.length) {
      const path = new Path2D(), end = place ?? this.corners.at(-1), [first] = this.corners;
      if (this.tool === "rectangle") {
        const low = (a, b) => Math.min(Math.floor(a), Math.floor(b)), span = (a, b) => Math.abs(Math.floor(a) - Math.floor(b)) + 1;
        path.rect(low(first.x, end.x) * scale, low(first.y, end.y) * scale, span(first.x, end.x) * scale, span(first.y, end.y) * scale);
      } else for (const [index, { x, y }] of [...this.corners, end].entries()) path[index ? "lineTo" : "moveTo"](x * scale, y * scale);
      twice(path);
    }
    if (place) {
      const path = new Path2D(), x = place.x * scale, y = place.y * scale, arm = 8 * devicePixelRatio;
      if (["brush", "eraser"].includes(this.tool)) path.arc(x, y, Math.max(scale / 2, (page.brush() * scale) / 2), 0, 2 * Math.PI);
      if (byKeys) path.addPath(new Path2D(`M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`));
      twice(path);
    }
    Object.assign(this.surface.dataset, { columns: layout.columns, rows: layout.rows, cursor: `${this.cursor.x},${this.cursor.y}` });
  }

  /** The place of an event, in cells. */
  placeOf({ clientX, clientY }) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return { x: (clientX - left) / this.scale, y: (clientY - top) / this.scale };
  }

  get ink() {
    return this.tool === "eraser" ? this.page.background() : this.page.value();
  }

  moveFrame({ x, y }) {
    const size = this.page.frameSize() ?? { width: 0, height: 0 }, { width, height } = this.layout;
    const inside = (value, length, most) => Math.round(Math.max(0, Math.min(value, most - length)));
    this.frame = { x: inside(x, size.width, width), y: inside(y, size.height, height) };
    this.onFrame();
    this.redraw();
  }

  /** Move the frame so that its middle is at a place, in cells. */
  frameAt({ x, y }) {
    const { width, height } = this.page.frameSize() ?? { width: 0, height: 0 }, { cell } = this.layout;
    this.moveFrame({ x: x * cell - width / 2, y: y * cell - height / 2 });
  }

  closePolygon() {
    if (this.corners.length >= 3) this.layout.polygon(this.corners, this.ink);
    this.giveUp();
  }

  listen() {
    const { surface } = this;
    surface.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      surface.setPointerCapture(event.pointerId);
      this.press(this.placeOf(event), event);
    });
    surface.addEventListener("pointermove", (event) => {
      this.pointer = this.placeOf(event);
      if (this.dragged) for (const one of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) this.drag(this.placeOf(one));
      this.page.under(this.layout.at(Math.floor(this.pointer.x), Math.floor(this.pointer.y)));
      this.redraw();
    });
    surface.addEventListener("pointerup", (event) => this.release(this.placeOf(event)));
    surface.addEventListener("pointercancel", () => this.giveUp());
    surface.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.page.under(null);
      this.redraw();
    });
    surface.addEventListener("dblclick", () => this.tool === "polygon" && this.closePolygon());
    surface.addEventListener("focus", () => this.redraw());
    surface.addEventListener("blur", () => {
      this.down = false; // what the keys do elsewhere must not draw
      this.redraw();
    });
    surface.addEventListener("keydown", (event) => this.key(event));
  }

  press(place) {
    this.dragged = place;
    if (["brush", "eraser"].includes(this.tool)) {
      this.layout.begin();
      this.layout.stroke(place, place, this.page.brush(), this.ink);
    } else if (this.tool === "fill") this.layout.fill(Math.floor(place.x), Math.floor(place.y), this.ink);
    else if (this.tool === "rectangle") this.corners = [place];
    else if (this.tool === "frame") this.frameAt(place);
    else {
      const [first] = this.corners;
      const closes = first && this.corners.length >= 3 && Math.hypot(first.x - place.x, first.y - place.y) * this.scale < CLOSE;
      if (closes) this.closePolygon();
      else this.corners.push(place);
      this.outlined = 0; // corners that come from dragging
    }
    this.redraw();
  }

  drag(place) {
    if (["brush", "eraser"].includes(this.tool)) this.layout.stroke(this.dragged, place, this.page.brush(), this.ink);
    if (this.tool === "frame") this.frameAt(place);
    if (this.tool === "polygon") {
      if (!this.corners.length || Math.hypot(place.x - this.dragged.x, place.y - this.dragged.y) < 1) return;
      this.corners.push(place);
      this.outlined += 1;
    }
    this.dragged = place;
  }

  release(place) {
    if (this.dragged && this.tool === "rectangle" && this.corners.length) {
      this.layout.rectangle(this.corners[0], place, this.ink);
      this.corners = [];
    }
    if (this.tool === "polygon" && this.outlined > 3) this.closePolygon();
    this.dragged = null;
    this.redraw();
  }

  key(event) {
    const letter = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (moves[event.key]) this.moveCursor(moves[event.key], event.shiftKey ? 10 : 1);
    else if (event.key === "Enter") this.enter();
    else if (event.key === "Escape" && (this.corners.length || this.down)) this.giveUp();
    else if (letter === "c" && this.tool === "polygon") this.closePolygon();
    else if (!this.onKey(event.key)) return;
    event.preventDefault();
  }

  moveCursor([x, y], by) {
    const before = { x: this.cursor.x + 0.5, y: this.cursor.y + 0.5 };
    this.cursor.x = Math.min(this.layout.columns - 1, Math.max(0, this.cursor.x + by * x));
    this.cursor.y = Math.min(this.layout.rows - 1, Math.max(0, this.cursor.y + by * y));
    const now = { x: this.cursor.x + 0.5, y: this.cursor.y + 0.5 };
    if (this.down) this.layout.stroke(before, now, this.page.brush(), this.ink);
    const um = (cells) => Math.round(cells * this.layout.cell * this.page.mpp).toLocaleString("en"), value = this.layout.at(this.cursor.x, this.cursor.y);
    announce(`${um(now.x)}, ${um(now.y)} micrometres: ${this.page.name(value)}`);
    this.page.under(value);
    this.redraw();
  }

  /** What a press of the mouse at the cursor would do. */
  enter() {
    const place = { x: this.cursor.x + 0.5, y: this.cursor.y + 0.5 };
    if (["brush", "eraser"].includes(this.tool)) {
      this.down = !this.down;
      if (this.down) this.press(place);
      announce(this.down ? "The brush is down: the arrow keys draw" : "The brush is lifted");
    } else if (this.tool === "rectangle" && this.corners.length) {
      this.layout.rectangle(this.corners[0], place, this.ink);
      this.corners = [];
    } else {
      this.press(place);
      if (this.corners.length) announce(`Corner ${this.corners.length}`);
    }
    this.dragged = null;
    this.redraw();
  }
}

// A rectangle drawn in the viewer, with the mouse or the keyboard, whose most similar patches are looked for.

import { announce } from "./common.js";

const SMALLEST = 5; // CSS px: a shorter drag is no rectangle
const STEP = 0.02; // of the view, by which a key moves or sizes the rectangle

export class Region {
  /** `onChange` is called to draw; `onDone` with the rectangle {x, y, width, height}, whole level-0 px. */
  constructor({ surface, camera, slide, button, hint, onChange, onDone }) {
    Object.assign(this, { surface, camera, slide, button, hint, onChange, onDone });
    this.active = false;
    this.box = null; // {left, top, right, bottom}, level-0 px
    this.start = null; // where the pointer went down
    button.addEventListener("click", () => this.toggle());
    // Before the viewer's own listeners, which move the slide.
    const first = { capture: true };
    surface.addEventListener("pointerdown", (event) => this.onDown(event), first);
    surface.addEventListener("pointermove", (event) => this.onMove(event), first);
    surface.addEventListener("pointerup", (event) => this.onUp(event), first);
    surface.addEventListener("pointercancel", () => (this.start = null), first);
    surface.addEventListener("keydown", (event) => this.onKey(event), first);
  }

  /** Begin with a rectangle in the middle of the view, or end. */
  toggle(active = !this.active) {
    const { left, top, right, bottom } = this.camera.visible;
    const side = Math.min(right - left, bottom - top) / 4;
    const { x, y } = this.camera;
    this.active = active;
    this.start = null;
    this.box = active ? this.onSlide({ left: x - side, top: y - side, right: x + side, bottom: y + side }) : null;
    this.button.setAttribute("aria-pressed", String(active));
    this.hint.hidden = !active;
    this.surface.classList.toggle("drawing", active);
    announce(active ? this.hint.textContent : "No region");
    this.onChange();
  }

  onSlide({ left, top, right, bottom }) {
    const { width, height } = this.slide;
    const inside = (value, most) => Math.max(0, Math.min(most, value));
    return { left: inside(left, width), top: inside(top, height), right: inside(right, width), bottom: inside(bottom, height) };
  }

  place(event) {
    const { left, top } = this.surface.getBoundingClientRect();
    return this.camera.toSlide(event.clientX - left, event.clientY - top);
  }

  onDown(event) {
    if (!this.active || event.button !== 0 || !event.isPrimary) return;
    event.stopImmediatePropagation();
    this.surface.setPointerCapture(event.pointerId);
    this.start = this.place(event);
  }

  onMove(event) {
    if (!this.active) return;
    event.stopImmediatePropagation();
    if (!this.start) return;
    const { x, y } = this.place(event), from = this.start;
    this.box = this.onSlide({ left: Math.min(from.x, x), top: Math.min(from.y, y), right: Math.max(from.x, x), bottom: Math.max(from.y, y) });
    this.onChange();
  }

  onUp(event) {
    if (!this.active || !this.start) return;
    event.stopImmediatePropagation();
    this.start = null;
    const { left, top, right, bottom } = this.box;
    if (Math.min(right - left, bottom - top) * this.camera.zoom > SMALLEST) this.done();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key.toLowerCase() === "r") this.toggle();
    else if (!this.active) return;
    else if (event.key === "Escape") this.toggle(false);
    else if (event.key === "Enter") this.done();
    else if (event.key in arrows) this.move(arrows[event.key], { size: event.shiftKey });
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  /** Move the rectangle by a step, or with `size` its right and lower side. */
  move([right, down], { size }) {
    const step = (STEP * Math.min(this.camera.viewWidth, this.camera.viewHeight)) / this.camera.zoom;
    const { width, height } = this.slide, box = this.box;
    const within = (by, low, high) => Math.max(low, Math.min(high, by));
    const dx = within(right * step, size ? 1 - (box.right - box.left) : -box.left, width - box.right);
    const dy = within(down * step, size ? 1 - (box.bottom - box.top) : -box.top, height - box.bottom);
    this.box = { left: box.left + (size ? 0 : dx), top: box.top + (size ? 0 : dy), right: box.right + dx, bottom: box.bottom + dy };
    this.onChange();
  }

  done() {
    const { left, top, right, bottom } = this.box;
    const x = Math.floor(left), y = Math.floor(top);
    this.onDone({ x, y, width: Math.ceil(right) - x, height: Math.ceil(bottom) - y });
  }

  /** Dim what is outside of it, and outline it. `stroke` is the viewer's strokeTwice. */
  draw(context, toScreen, stroke) {
    if (!this.box) return;
    const [left, top] = toScreen(this.box.left, this.box.top), [right, bottom] = toScreen(this.box.right, this.box.bottom);
    const path = new Path2D();
    path.rect(0, 0, context.canvas.width, context.canvas.height);
    path.rect(left, top, right - left, bottom - top);
    context.fillStyle = "rgb(255 255 255 / .45)";
    context.fill(path, "evenodd");
    stroke(context, "#101418", [5, 2.5], () => context.strokeRect(left, top, right - left, bottom - top));
  }
}

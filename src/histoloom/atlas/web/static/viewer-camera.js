// Where the viewer looks: the level-0 pixel in the middle and how many CSS pixels one level-0 pixel takes.

const HASH = /^#(-?\d{1,9}(?:\.\d+)?),(-?\d{1,9}(?:\.\d+)?),(\d{1,9}(?:\.\d+)?)$/;
const NEAREST = 4; // CSS px a level-0 px
const MILLISECONDS = 180;

export class Camera {
  /** `moved` is called after every change. */
  constructor({ width, height, moved }) {
    Object.assign(this, { width, height, moved, x: width / 2, y: height / 2, zoom: 1, across: 1, down: 1, animation: null });
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
  }

  /** The viewer's size in CSS px changed. */
  resize(across, down) {
    const whole = Math.abs(this.zoom / this.fitting - 1) < 0.01;
    Object.assign(this, { across: Math.max(1, across), down: Math.max(1, down) });
    if (whole) this.zoom = this.fitting;
    this.set(this);
  }

  /** The zoom at which the whole slide just fits. */
  get fitting() {
    return 0.96 * Math.min(this.across / this.width, this.down / this.height);
  }

  get farthest() {
    return Math.min(this.fitting * 0.6, NEAREST);
  }

  get nearest() {
    return Math.max(NEAREST, this.fitting * 2);
  }

  /** Look there at once; nothing leaves the slide altogether. */
  set({ x = this.x, y = this.y, zoom = this.zoom }) {
    this.zoom = Math.min(this.nearest, Math.max(this.farthest, zoom));
    this.x = Math.min(this.width, Math.max(0, x));
    this.y = Math.min(this.height, Math.max(0, y));
    this.moved();
  }

  /** Look there by and by, unless the visitor wants no motion. */
  glide(wanted) {
    this.stop();
    if (this.calm.matches) {
      this.set(wanted);
      return;
    }
    const from = { x: this.x, y: this.y, zoom: this.zoom };
    const to = { ...from, ...wanted };
    to.zoom = Math.min(this.nearest, Math.max(this.farthest, to.zoom));
    const start = performance.now();
    this.goal = to;
    const step = (now) => {
      const done = Math.min(1, Math.max(0, (now - start) / MILLISECONDS));
      const eased = 1 - (1 - done) ** 3;
      const zoom = from.zoom * (to.zoom / from.zoom) ** eased;
      // The place that stays still on the screen must do so at every step, so x and y follow the zoom.
      const share = to.zoom === from.zoom ? eased : (1 / from.zoom - 1 / zoom) / (1 / from.zoom - 1 / to.zoom);
      this.animation = done < 1 ? requestAnimationFrame(step) : null;
      if (done === 1) this.goal = null;
      this.set({ x: from.x + (to.x - from.x) * share, y: from.y + (to.y - from.y) * share, zoom });
    };
    this.animation = requestAnimationFrame(step);
  }

  /** Stay where it is now. */
  stop() {
    if (this.animation !== null) cancelAnimationFrame(this.animation);
    this.animation = null;
    this.goal = null;
  }

  /** What it looks at once it has arrived. */
  get target() {
    return this.goal ?? { x: this.x, y: this.y, zoom: this.zoom };
  }

  /** Move by CSS px. */
  pan(across, down, { glide = false } = {}) {
    const { x, y, zoom } = glide ? this.target : this;
    const wanted = { x: x + across / zoom, y: y + down / zoom };
    wanted.x = Math.min(this.width, Math.max(0, wanted.x));
    wanted.y = Math.min(this.height, Math.max(0, wanted.y));
    if (glide) this.glide({ zoom, ...wanted });
    else this.set(wanted);
  }

  /** Zoom by a factor about a place in the viewer (CSS px from its upper left; its middle where none is given). */
  zoomBy(factor, { left = this.across / 2, top = this.down / 2, glide = false } = {}) {
    const from = glide ? this.target : this;
    const zoom = Math.min(this.nearest, Math.max(this.farthest, from.zoom * factor));
    const wanted = {
      x: from.x + (left - this.across / 2) * (1 / from.zoom - 1 / zoom),
      y: from.y + (top - this.down / 2) * (1 / from.zoom - 1 / zoom),
      zoom,
    };
    if (glide) this.glide(wanted);
    else this.set(wanted);
  }

  /** The whole slide. */
  fit({ glide = true } = {}) {
    const wanted = { x: this.width / 2, y: this.height / 2, zoom: this.fitting };
    if (glide) this.glide(wanted);
    else this.set(wanted);
  }

  /** The part of the slide that is seen: level-0 px {left, top, right, bottom}. */
  get seen() {
    const across = this.across / 2 / this.zoom, down = this.down / 2 / this.zoom;
    return { left: this.x - across, top: this.y - down, right: this.x + across, bottom: this.y + down };
  }

  /** Where a place in the viewer lies on the slide. */
  onSlide(left, top) {
    return { x: this.x + (left - this.across / 2) / this.zoom, y: this.y + (top - this.down / 2) / this.zoom };
  }

  /** `#x,y,zoom` */
  get hash() {
    return `#${Math.round(this.x)},${Math.round(this.y)},${Number(this.zoom.toPrecision(4))}`;
  }

  /** Go where a hash says; false where it says nothing. */
  follow(hash) {
    const found = HASH.exec(hash);
    if (!found || Number(found[3]) === 0) return false;
    this.stop();
    this.set({ x: Number(found[1]), y: Number(found[2]), zoom: Number(found[3]) });
    return true;
  }
}

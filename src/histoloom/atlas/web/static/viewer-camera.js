// The viewer's camera: the level-0 pixel in the middle of the viewer, and the zoom in CSS px per level-0 pixel.

const HASH = /^#(-?\d{1,9}(?:\.\d+)?),(-?\d{1,9}(?:\.\d+)?),(\d{1,9}(?:\.\d+)?)$/;
const MAX_ZOOM = 4; // CSS px per level-0 px
const DURATION = 180; // ms of an animation

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export class Camera {
  /** A camera for a slide of `width` x `height` level-0 px. `onChange` is called after every change. */
  constructor({ width, height, onChange }) {
    Object.assign(this, { width, height, onChange, x: width / 2, y: height / 2, zoom: 1 });
    Object.assign(this, { viewWidth: 1, viewHeight: 1 }); // CSS px of the viewer
    Object.assign(this, { animation: null, target: null }); // the frame request, and the position that it moves to
    this.reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  }

  /** The zoom at which the whole slide just fits. */
  get fitZoom() {
    return 0.96 * Math.min(this.viewWidth / this.width, this.viewHeight / this.height);
  }

  clampZoom(zoom) {
    return clamp(zoom, Math.min(this.fitZoom * 0.6, MAX_ZOOM), Math.max(MAX_ZOOM, this.fitZoom * 2));
  }

  /** The position after the running animation, or the current one. */
  get goal() {
    return this.target ?? { x: this.x, y: this.y, zoom: this.zoom };
  }

  /** The viewer has a new size in CSS px. A slide that just fitted still fits. */
  resize(viewWidth, viewHeight) {
    const fitted = Math.abs(this.zoom / this.fitZoom - 1) < 0.01;
    Object.assign(this, { viewWidth: Math.max(1, viewWidth), viewHeight: Math.max(1, viewHeight) });
    this.set({ zoom: fitted ? this.fitZoom : this.zoom });
  }

  /** Move at once. The middle of the viewer always stays on the slide. */
  set({ x = this.x, y = this.y, zoom = this.zoom }) {
    this.zoom = this.clampZoom(zoom);
    this.x = clamp(x, 0, this.width);
    this.y = clamp(y, 0, this.height);
    this.onChange();
  }

  /** Move smoothly, or at once if the user prefers reduced motion. */
  animate(position) {
    this.stop();
    if (this.reducedMotion.matches) {
      this.set(position);
      return;
    }
    const from = { x: this.x, y: this.y, zoom: this.zoom };
    const to = { ...from, ...position };
    to.zoom = this.clampZoom(to.zoom);
    const start = performance.now();
    this.target = to;
    const step = (now) => {
      const progress = clamp((now - start) / DURATION, 0, 1);
      const eased = 1 - (1 - progress) ** 3;
      const zoom = from.zoom * (to.zoom / from.zoom) ** eased;
      // When zooming about a point, that point must not move on the screen at any step: x and y are linear in 1 / zoom.
      const share = to.zoom === from.zoom ? eased : (1 / from.zoom - 1 / zoom) / (1 / from.zoom - 1 / to.zoom);
      this.animation = progress < 1 ? requestAnimationFrame(step) : null;
      if (progress === 1) this.target = null;
      this.set({ x: from.x + (to.x - from.x) * share, y: from.y + (to.y - from.y) * share, zoom });
    };
    this.animation = requestAnimationFrame(step);
  }

  /** Stop the animation where it is. */
  stop() {
    if (this.animation !== null) cancelAnimationFrame(this.animation);
    this.animation = null;
    this.target = null;
  }

  moveTo(position, { animate }) {
    if (animate) this.animate(position);
    else this.set(position);
  }

  /** Move by CSS px. */
  pan(dx, dy, { animate = false } = {}) {
    const { x, y, zoom } = animate ? this.goal : this;
    this.moveTo({ x: clamp(x + dx / zoom, 0, this.width), y: clamp(y + dy / zoom, 0, this.height), zoom }, { animate });
  }

  /** Zoom by a factor about a point of the viewer (CSS px from its upper left corner; by default its middle). */
  zoomBy(factor, { left = this.viewWidth / 2, top = this.viewHeight / 2, animate = false } = {}) {
    const from = animate ? this.goal : this;
    const zoom = this.clampZoom(from.zoom * factor);
    this.moveTo({
      x: from.x + (left - this.viewWidth / 2) * (1 / from.zoom - 1 / zoom),
      y: from.y + (top - this.viewHeight / 2) * (1 / from.zoom - 1 / zoom),
      zoom,
    }, { animate });
  }

  /** Show the whole slide. */
  fit({ animate = true } = {}) {
    this.moveTo({ x: this.width / 2, y: this.height / 2, zoom: this.fitZoom }, { animate });
  }

  /** The visible part of the slide: level-0 px {left, top, right, bottom}. */
  get visible() {
    const halfWidth = this.viewWidth / 2 / this.zoom, halfHeight = this.viewHeight / 2 / this.zoom;
    return { left: this.x - halfWidth, top: this.y - halfHeight, right: this.x + halfWidth, bottom: this.y + halfHeight };
  }

  /** The level-0 px at a point of the viewer. */
  toSlide(left, top) {
    return { x: this.x + (left - this.viewWidth / 2) / this.zoom, y: this.y + (top - this.viewHeight / 2) / this.zoom };
  }

  /** The position in the address: `#x,y,zoom` */
  get hash() {
    return `#${Math.round(this.x)},${Math.round(this.y)},${Number(this.zoom.toPrecision(4))}`;
  }

  /** Move to the position in a hash; returns false if it holds none. */
  goToHash(hash) {
    const match = HASH.exec(hash);
    if (!match || Number(match[3]) === 0) return false;
    this.stop();
    this.set({ x: Number(match[1]), y: Number(match[2]), zoom: Number(match[3]) });
    return true;
  }
}

// The viewer of a painted field: its tiles at any size, with the layout over them.

import { api, element, oncePerFrame, showError, toast } from "./common.js";
import { EMPTY, fromServer, gridPicture } from "./paint-layout.js";
import { Camera } from "./viewer-camera.js";
import { addInputListeners } from "./viewer-input.js";
import { drawScaleBar, Overview } from "./viewer-panel.js";
import { Tiles } from "./viewer-tiles.js";

const byId = (id) => document.getElementById(id);
const surface = byId("viewer"), { job } = surface.dataset;
const address = `/api/paint/fields/${job}`;

class FieldViewer {
  constructor(field, drawn) {
    Object.assign(this, { field, drawn, context: byId("picture").getContext("2d"), thumbnail: null, failed: false });
    this.redraw = oncePerFrame(() => this.draw());
    this.layout = gridPicture(drawn, field.tissues.map(({ colour }) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))));
    this.camera = new Camera({ width: field.width, height: field.height, onChange: () => this.redraw() });
    this.tiles = new Tiles({ slide: field, onLoad: () => this.redraw(), onError: (error) => this.tileError(error) });
    this.overview = new Overview({ canvas: byId("overview"), slide: field, camera: this.camera });
  }

  async start() {
    const used = [...new Set(this.drawn.cells)].filter((place) => place !== EMPTY).map((place) => this.field.tissues[place]);
    byId("legend").replaceChildren(...used.map(({ title, colour }) => element("li", {}, element("span", { class: "swatch", vars: { "--c": colour }, "aria-hidden": "true" }), element("span", { class: "name" }, title))));
    this.resize();
    if (!this.camera.goToHash(location.hash)) this.camera.fit({ animate: false });
    new ResizeObserver(() => this.resize()).observe(surface);
    byId("zoom-in").addEventListener("click", () => this.camera.zoomBy(1.6, { animate: true }));
    byId("zoom-out").addEventListener("click", () => this.camera.zoomBy(1 / 1.6, { animate: true }));
    byId("zoom-fit").addEventListener("click", () => this.camera.fit());
    byId("zoom-full").addEventListener("click", () => this.camera.animate({ zoom: 1 / devicePixelRatio }));
    for (const id of ["show-layout", "opacity"]) byId(id).addEventListener("input", () => this.redraw());
    const toggle = () => byId("show-layout").click();
    addInputListeners({ surface, camera: this.camera, onHover: (point) => this.hover(point), onClick: () => {}, keys: { l: toggle, L: toggle } });
    const image = new Image();
    image.src = this.field.thumbnail;
    await image.decode();
    this.thumbnail = this.overview.picture = image;
    this.redraw();
    surface.dataset.ready = "true";
  }

  resize() {
    const { clientWidth, clientHeight } = surface, { canvas } = this.context;
    Object.assign(canvas, { width: Math.round(clientWidth * devicePixelRatio), height: Math.round(clientHeight * devicePixelRatio) });
    this.camera.resize(clientWidth, clientHeight);
  }

  draw() {
    const { camera, context, field, drawn } = this, scale = camera.zoom * devicePixelRatio, { visible } = camera;
    const toScreen = (x, y) => [(x - visible.left) * scale, (y - visible.top) * scale];
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.imageSmoothingEnabled = scale < 2;
    const [left, top] = toScreen(0, 0).map(Math.round), [right, bottom] = toScreen(field.width, field.height).map(Math.round);
    if (this.thumbnail) context.drawImage(this.thumbnail, left, top, right - left, bottom - top);
    const level = this.tiles.levelFor(scale), positions = this.tiles.inBox(level, visible);
    for (const position of positions) this.tiles.draw(context, position, toScreen);
    this.tiles.load(positions);
    if (byId("show-layout").checked) {
      context.save();
      context.beginPath();
      context.rect(left, top, right - left, bottom - top);
      context.clip();
      Object.assign(context, { globalAlpha: byId("opacity").value / 100, imageSmoothingEnabled: false });
      context.drawImage(this.layout, left, top, this.layout.width * drawn.cell * scale, this.layout.height * drawn.cell * scale);
      context.restore();
    }
    drawScaleBar({ svg: byId("scale-svg"), bar: byId("scale-bar"), text: byId("scale-text") }, { zoom: camera.zoom, mpp: field.mpp });
    this.overview.draw();
  }

  /** Say which tissue was drawn where the pointer is. */
  hover(point) {
    const { x, y } = point ? this.camera.toSlide(point.left, point.top) : { x: -1, y: -1 }, { cell, width, height, cells } = this.drawn;
    const inside = x >= 0 && y >= 0 && x < width && y < height;
    const place = inside ? cells[Math.floor(y / cell) * Math.ceil(width / cell) + Math.floor(x / cell)] : EMPTY;
    byId("under").textContent = place === EMPTY ? "" : `Drawn here: ${this.field.tissues[place].title}`;
  }

  /** Show the first error only: all tiles fail for the same reason. */
  tileError(error) {
    if (!this.failed) toast(error.message || "A part of the field could not be loaded.", { problem: true });
    this.failed = true;
  }
}

async function start() {
  const [field, { layout }] = await Promise.all([api(address), api(`${address}/layout`)]);
  await new FieldViewer(field, fromServer(layout, field.tissues.map(({ name }) => name), EMPTY)).start();
}

start().catch(showError);

// The slide viewer: joins camera, tiles, patches, input and panel, and draws.

import { announce, api, debounce, enlarge, setQuery, showError, toast } from "./common.js";
import { CORRECTED } from "./correct.js";
import { patchPicture } from "./patch.js";
import { Camera } from "./viewer-camera.js";
import { addInputListeners } from "./viewer-input.js";
import { drawScaleBar, fillLegend, Overview } from "./viewer-panel.js";
import { groupTitle, Patches } from "./viewer-patches.js";
import { Region } from "./viewer-region.js";
import { Tiles } from "./viewer-tiles.js";

const LAYERS = ["patches", "names", "map"], DEFAULT_LAYERS = "patches";
const byId = (id) => document.getElementById(id);

class Viewer {
  constructor(slide) {
    this.slide = slide;
    this.surface = byId("viewer");
    this.context = byId("picture").getContext("2d");
    this.camera = new Camera({ width: slide.width, height: slide.height, onChange: () => this.redraw() });
    this.tiles = new Tiles({ slide, onLoad: () => this.redraw(), onError: (error) => this.onTileError(error) });
    this.patches = new Patches({ slide, onLoad: () => this.redraw() });
    this.overview = new Overview({ canvas: byId("overview"), slide, camera: this.camera });
    this.region = new Region({ surface: this.surface, camera: this.camera, slide, button: byId("draw-region"), hint: byId("region-hint"), onChange: () => this.redraw(), onDone: (box) => this.openSimilar(box) });
    this.thumbnail = null;
    this.map = null; // the report's tissue map, once it is loaded
    this.hovered = -1; // index of the patch under the pointer
    this.linkedPatch = null; // {x, y, side} of the patch in the address
    this.shown = new Set(slide.groups.keys()); // the groups that are drawn
    this.frameRequested = false;
    this.tileErrorShown = false;
    this.updateAddress = debounce(() => history.replaceState(history.state, "", location.search + this.camera.hash), 200);
    this.announceMiddle = debounce(() => {
      const index = this.patchAt(this.middle);
      const { mpp } = this.slide;
      const width = mpp === null ? "" : `, ${Math.round((this.camera.viewWidth / this.camera.zoom) * mpp).toLocaleString("en")} micrometres across`;
      announce(`${index < 0 ? "No patch" : groupTitle(this.groupOf(index))} in the middle${width}`);
    }, 500);
  }

  async start() {
    this.resize();
    const hasPosition = this.camera.goToHash(location.hash);
    if (!hasPosition) this.camera.fit({ animate: false });
    new ResizeObserver(() => this.resize()).observe(this.surface);
    addEventListener("hashchange", () => this.camera.goToHash(location.hash));
    this.addControls();
    const toggle = (id) => () => byId(id).click(), enlargeMiddle = () => this.enlargeAt(this.middle).catch(showError);
    addInputListeners({
      surface: this.surface, camera: this.camera, onHover: (point) => this.hover(point), 
      onClick: (point, shift) => (shift ? this.enlargeAt(point).catch(showError) : this.openGroupAt(point)),
      keys: { Enter: () => this.openGroupAt(this.middle), c: enlargeMiddle, C: enlargeMiddle, l: toggle("show-patches"), L: toggle("show-patches"), n: toggle("show-names"), N: toggle("show-names") },
    });
    this.surface.addEventListener("keydown", () => this.announceMiddle());
    this.surface.addEventListener("focus", () => this.redraw());
    this.surface.addEventListener("blur", () => this.redraw());
    this.surface.dataset.ready = "true";
    const patches = this.patches.loadAll().then(() => this.markLinkedPatch({ moveCamera: !hasPosition }));
    await Promise.all([this.loadThumbnail(), patches]).catch(showError);
  }

  /** The thumbnail is visible until tiles arrive, and always if the slide's file is missing. */
  async loadThumbnail() {
    if (!this.slide.thumbnail) return;
    this.thumbnail = await loadImage(this.slide.thumbnail);
    this.overview.picture = this.thumbnail;
    this.redraw();
  }

  /** Mark the patch in the address (`patch=x,y`). */
  markLinkedPatch({ moveCamera }) {
    const [x, y] = (new URLSearchParams(location.search).get("patch") ?? "").split(",").map(Number);
    const index = this.patches.indexOfCorner({ x, y });
    if (index < 0) return;
    const side = this.patches.extent[index];
    this.linkedPatch = { x, y, side };
    if (moveCamera) this.camera.set({ x: x + side / 2, y: y + side / 2, zoom: Math.min(this.camera.viewWidth, this.camera.viewHeight) / (3 * side) });
    this.redraw();
  }

  addControls() {
    this.readAddress();
    this.fillLegend();
    byId("all-groups").addEventListener("click", () => this.legend.all());
    byId("no-groups").addEventListener("click", () => this.legend.none());
    document.addEventListener(CORRECTED, () => this.refresh().catch(showError));
    byId("zoom-in").addEventListener("click", () => this.camera.zoomBy(1.6, { animate: true }));
    byId("zoom-out").addEventListener("click", () => this.camera.zoomBy(1 / 1.6, { animate: true }));
    byId("zoom-fit").addEventListener("click", () => this.camera.fit());
    byId("zoom-full").addEventListener("click", () => this.camera.animate({ zoom: 1 / devicePixelRatio }));
    for (const id of ["show-patches", "show-names", "opacity"]) byId(id).addEventListener("input", () => this.layersChanged());
    byId("map-layer").hidden = !this.slide.map;
    byId("show-map").addEventListener("input", async () => {
      if (byId("show-map").checked) this.map ??= await loadImage(this.slide.map).catch(showError);
      this.layersChanged();
    });
    if (byId("show-map").checked) byId("show-map").dispatchEvent(new Event("input"));
    // The links to other k keep the position.
    for (const link of document.querySelectorAll(".k-switch a")) link.addEventListener("click", () => (link.hash = this.camera.hash));
  }

  fillLegend() {
    this.legend = fillLegend(byId("legend"), { slide: this.slide, shown: this.shown, onChange: (shown) => this.show(shown) });
  }

  /** Corrections have changed: groups, their colours and counts, and the patches follow. Groups that were hidden stay so. */
  async refresh() {
    const { groups, slide_id: id, k } = this.slide;
    const hidden = new Set(groups.filter((_, place) => !this.shown.has(place)).map(groupTitle));
    this.slide.groups = (await api(`/api/slides/${encodeURIComponent(id)}?k=${k}`)).groups;
    this.shown = new Set([...this.slide.groups.keys()].filter((place) => !hidden.has(groupTitle(this.slide.groups[place]))));
    this.fillLegend();
    await this.patches.reload();
  }

  /** What the address says of layers and groups: `groups=0,2`, `cluster=3`, `fill=40`, `layers=patches,names,map`. */
  readAddress() {
    const query = new URLSearchParams(location.search), { groups } = this.slide;
    const cluster = Number.parseInt(query.get("cluster"), 10);
    const named = query.has("groups") ? query.get("groups").split(",").filter((text) => /^\d{1,4}$/.test(text)).map(Number) : null;
    if (named) this.shown = new Set(named.filter((group) => group < groups.length));
    else if (groups.some((group) => group.clusters.includes(cluster))) this.shown = new Set([groups.findIndex((group) => group.clusters.includes(cluster))]);
    if (/^\d{1,3}$/.test(query.get("fill") ?? "")) byId("opacity").value = query.get("fill");
    if (!query.has("layers")) return;
    for (const layer of LAYERS) byId(`show-${layer}`).checked = query.get("layers").split(",").includes(layer) && (layer !== "map" || Boolean(this.slide.map));
  }

  /** Keep layers and opacity in the address, and draw. */
  layersChanged() {
    const layers = LAYERS.filter((layer) => byId(`show-${layer}`).checked).join(","), fill = byId("opacity").value;
    setQuery({ layers: layers === DEFAULT_LAYERS ? null : layers, fill: fill === byId("opacity").defaultValue ? null : fill });
    this.redraw();
  }

  /** Show these groups and dim the rest. */
  show(shown) {
    this.shown = shown;
    const { groups } = this.slide;
    setQuery({ cluster: null, groups: shown.size === groups.length ? null : [...shown].join(",") });
    announce(shown.size === groups.length ? "All groups are shown" : shown.size ? `Shown: ${[...shown].map((group) => groupTitle(groups[group])).join(", ")}` : "No group is shown");
    this.redraw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.surface;
    const { canvas } = this.context;
    Object.assign(canvas, { width: Math.round(clientWidth * devicePixelRatio), height: Math.round(clientHeight * devicePixelRatio) });
    this.camera.resize(clientWidth, clientHeight);
  }

  /** Draw in the next frame, once however often this is called before it. */
  redraw() {
    if (this.frameRequested) return;
    this.frameRequested = true;
    requestAnimationFrame(() => {
      this.frameRequested = false;
      this.draw();
    });
  }

  get middle() {
    return { left: this.camera.viewWidth / 2, top: this.camera.viewHeight / 2 };
  }

  draw() {
    const { camera, context, slide, patches } = this;
    const ratio = devicePixelRatio, scale = camera.zoom * ratio, visible = camera.visible; // scale: screen px per level-0 px
    const toScreen = (x, y) => [(x - visible.left) * scale, (y - visible.top) * scale];

    // The slide.
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.imageSmoothingEnabled = scale < 2;
    context.imageSmoothingQuality = "high";
    const [left, top] = toScreen(0, 0).map(Math.round), [right, bottom] = toScreen(slide.width, slide.height).map(Math.round);
    const wholeSlide = [left, top, right - left, bottom - top];
    context.fillStyle = "#ffffff";
    context.fillRect(...wholeSlide);
    if (this.thumbnail) context.drawImage(this.thumbnail, ...wholeSlide);
    if (slide.tiles) this.drawTiles(toScreen, { visible, scale });

    // The layers on it.
    const opacity = Number(byId("opacity").value) / 100;
    if (this.map && byId("show-map").checked) {
      context.globalAlpha = opacity;
      context.drawImage(this.map, ...wholeSlide);
      context.globalAlpha = 1;
    }
    const frame = ({ x, y, side }, colour, lineWidth) => strokeTwice(context, colour, lineWidth, () => context.strokeRect(...toScreen(x, y), side * scale, side * scale));
    if (byId("show-patches").checked) {
      patches.loadVisible(visible);
      context.save();
      context.beginPath();
      context.rect(...wholeSlide);
      context.clip();
      patches.draw(context, { visible, toScreen, zoom: camera.zoom, fill: opacity, shown: this.shown });
      context.restore();
      if (byId("show-names").checked) patches.drawNames(context, { toScreen, shown: this.shown });
      const i = this.hovered;
      if (i >= 0) frame({ x: patches.x[i], y: patches.y[i], side: patches.extent[i] }, "#101418", [4, 2]);
    }
    if (this.linkedPatch) frame(this.linkedPatch, "#0b5cad", [7, 4]);
    this.region.draw(context, toScreen, strokeTwice);
    if (this.surface.matches(":focus-visible") && !this.region.active) {
      // A cross in the middle, for those who move by keys.
      const x = context.canvas.width / 2, y = context.canvas.height / 2, arm = 9 * ratio;
      const cross = new Path2D(`M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`);
      strokeTwice(context, "#101418", [4, 1.5], () => context.stroke(cross));
    }

    // The panel, and the address.
    drawScaleBar({ svg: byId("scale-svg"), bar: byId("scale-bar"), text: byId("scale-text") }, { zoom: camera.zoom, mpp: slide.mpp });
    this.overview.draw();
    const loaded = patches.x.length;
    byId("shown").textContent = loaded < patches.total ? `${loaded.toLocaleString("en")} of ${patches.total.toLocaleString("en")} patches here are drawn; zoom in for all.` : "";
    Object.assign(this.surface.dataset, { x: Math.round(camera.x), y: Math.round(camera.y), zoom: camera.zoom.toPrecision(5), patches: loaded });
    this.updateAddress();
  }

  drawTiles(toScreen, { visible, scale }) {
    const level = this.tiles.levelFor(scale);
    const positions = this.tiles.inBox(level, visible);
    let missing = false;
    for (const position of positions) missing = !this.tiles.draw(this.context, position, toScreen) || missing;
    // Tiles two levels up are loaded first: a sixteenth of the tiles shows everything, at a quarter of the resolution.
    const coarse = missing && level + 2 < this.slide.levels ? this.tiles.inBox(level + 2, visible) : [];
    this.tiles.load([...coarse, ...positions]);
    this.surface.dataset.sharp = String(!missing);
  }

  /** The index of the patch at a point of the viewer, -1 if there is none or patches are hidden. */
  patchAt({ left, top }) {
    const index = byId("show-patches").checked ? this.patches.indexAt(this.camera.toSlide(left, top)) : -1;
    return index >= 0 && this.shown.has(this.patches.group[index]) ? index : -1;
  }

  /** The group of a patch. */
  groupOf(index) {
    return this.slide.groups[this.patches.group[index]];
  }

  /** Frame the patch under the pointer and show its group beside it; `point` is null when the pointer left. */
  hover(point) {
    const index = point ? this.patchAt(point) : -1;
    const tip = byId("tip");
    if (index !== this.hovered) {
      this.hovered = index;
      this.surface.classList.toggle("over", index >= 0);
      this.redraw();
    }
    tip.hidden = index < 0;
    if (index < 0) return;
    const group = this.groupOf(index);
    tip.textContent = groupTitle(group);
    tip.style.setProperty("--c", group.colour);
    tip.style.left = `${Math.min(point.left + 16, this.camera.viewWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(point.top + 18, this.camera.viewHeight - tip.offsetHeight - 8)}px`;
  }

  openGroupAt(point) {
    const index = this.patchAt(point);
    if (index < 0) return;
    // The back button returns to this position.
    this.updateAddress();
    this.updateAddress.flush();
    location.assign(this.groupOf(index).page);
  }

  /** Enlarge the patch at a point, also one without a group; there it can be corrected. */
  async enlargeAt({ left, top }) {
    const index = byId("show-patches").checked ? this.patches.indexAt(this.camera.toSlide(left, top)) : -1;
    if (index < 0) return;
    const { slide_id: id, k } = this.slide;
    const query = new URLSearchParams({ k, x: this.patches.x[index], y: this.patches.y[index] });
    enlarge([patchPicture(await api(`/api/slides/${encodeURIComponent(id)}/patch?${query}`), { k })], 0);
  }

  /** Open the patches most like those of a rectangle; the back button returns to this position. */
  openSimilar(box) {
    this.updateAddress();
    this.updateAddress.flush();
    const query = new URLSearchParams({ k: this.slide.k, ...box });
    location.assign(`${location.pathname}/similar?${query}`);
  }

  /** Show the first error only: all tiles fail for the same reason. */
  onTileError(error) {
    if (this.tileErrorShown) return;
    this.tileErrorShown = true;
    toast(error.message || "A part of the slide could not be loaded.", { problem: true });
  }
}

async function loadImage(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/** Stroke a wide white line and a narrower one in `colour` on it, which shows on any background; line widths in CSS px. */
function strokeTwice(context, colour, [outer, inner], stroke) {
  for (const [style, width] of [["#ffffff", outer], [colour, inner]]) {
    context.strokeStyle = style;
    context.lineWidth = width * devicePixelRatio;
    stroke();
  }
}

const { slide, k } = byId("viewer").dataset;
api(`/api/slides/${slide}?k=${k}`).then((response) => new Viewer(response).start()).catch(showError);

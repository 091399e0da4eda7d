// The slide viewer: puts camera, tiles, layers, hands and panel together, and draws.

import { api, complain, delayed, say, toast } from "./common.js";
import { Camera } from "./viewer-camera.js";
import { listen } from "./viewer-input.js";
import { legend, mark, Overview, scaleBar, title } from "./viewer-panel.js";
import { Patches } from "./viewer-patches.js";
import { Tiles } from "./viewer-tiles.js";

const byId = (id) => document.getElementById(id);

class Viewer {
  constructor(slide) {
    this.slide = slide;
    this.surface = byId("viewer");
    this.context = byId("picture").getContext("2d");
    this.camera = new Camera({ width: slide.width, height: slide.height, moved: () => this.changed() });
    this.tiles = new Tiles({ slide, came: () => this.changed(), failed: (error) => this.failed(error) });
    this.patches = new Patches({ slide, came: () => this.changed() });
    this.overview = new Overview({ canvas: byId("overview"), slide, camera: this.camera });
    this.thumbnail = null;
    this.map = null;
    this.hovered = -1; // a patch's number
    this.sought = null; // the patch that the address asked for
    this.alone = null;
    this.waiting = false;
    this.remember = delayed(() => history.replaceState(history.state, "", this.camera.hash), 200);
    this.tell = delayed(() => this.spoken(), 500);
  }

  async start() {
    const resized = new ResizeObserver(() => this.resize());
    this.resize();
    this.placed = this.camera.follow(location.hash);
    if (!this.placed) this.camera.fit({ glide: false });
    resized.observe(this.surface);
    addEventListener("hashchange", () => this.camera.follow(location.hash));
    this.controls();
    listen({
      surface: this.surface, camera: this.camera, hover: (place) => this.hover(place), click: (place) => this.open(place),
      keys: { Enter: () => this.open(this.middle), l: () => byId("show-patches").click(), L: () => byId("show-patches").click() },
    });
    this.surface.addEventListener("keydown", () => this.tell());
    this.surface.addEventListener("focus", () => this.changed());
    this.surface.addEventListener("blur", () => this.changed());
    this.surface.dataset.ready = "true";
    const patches = this.patches.start().then(() => this.seek());
    await Promise.all([this.base(), patches]).catch(complain);
  }

  /** The thumbnail: what is seen until tiles come, and all there is where the slide is gone. */
  async base() {
    if (!this.slide.thumbnail) return;
    this.thumbnail = await picture(this.slide.thumbnail);
    this.overview.picture = this.thumbnail;
    this.changed();
  }

  /** Go to the patch that the address asks for (`patch=x,y`), unless it also says where to look. */
  seek() {
    const [x, y] = (new URLSearchParams(location.search).get("patch") ?? "").split(",").map(Number);
    const number = this.patches.from({ x, y });
    if (number < 0) return;
    const side = this.patches.extent[number];
    this.sought = { x, y, side };
    if (!this.placed) this.camera.set({ x: x + side / 2, y: y + side / 2, zoom: Math.min(this.camera.across, this.camera.down) / (3 * side) });
    this.changed();
  }

  drawSought(toScreen, ratio) {
    const { x, y, side } = this.sought, { context } = this;
    const [left, top] = toScreen(x, y), length = side * this.camera.zoom * ratio;
    for (const [colour, wide] of [["#ffffff", 7], ["#0b5cad", 4]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide * ratio;
      context.strokeRect(left, top, length, length);
    }
  }

  controls() {
    const wanted = Number.parseInt(new URLSearchParams(location.search).get("cluster"), 10);
    legend(byId("legend"), { slide: this.slide, press: (cluster) => this.highlight(cluster === this.alone ? null : cluster) });
    if (wanted >= 0 && wanted < this.slide.clusters.length) this.highlight(wanted);
    byId("zoom-in").addEventListener("click", () => this.camera.zoomBy(1.6, { glide: true }));
    byId("zoom-out").addEventListener("click", () => this.camera.zoomBy(1 / 1.6, { glide: true }));
    byId("zoom-fit").addEventListener("click", () => this.camera.fit());
    byId("zoom-full").addEventListener("click", () => this.camera.glide({ zoom: 1 / devicePixelRatio }));
    for (const id of ["show-patches", "opacity"]) byId(id).addEventListener("input", () => this.changed());
    byId("map-layer").hidden = !this.slide.map;
    byId("show-map").addEventListener("input", async () => {
      if (byId("show-map").checked) this.map ??= await picture(this.slide.map).catch(complain);
      this.changed();
    });
    // The same place under another k.
    for (const link of document.querySelectorAll(".k-switch a")) link.addEventListener("click", () => (link.hash = this.camera.hash));
  }

  highlight(cluster) {
    this.alone = cluster;
    mark(byId("legend"), cluster);
    say(cluster === null ? "All clusters are shown" : `${title(this.slide.clusters[cluster])} is shown alone`);
    this.changed();
  }

  resize() {
    const { clientWidth, clientHeight } = this.surface;
    const canvas = this.context.canvas;
    Object.assign(canvas, { width: Math.round(clientWidth * devicePixelRatio), height: Math.round(clientHeight * devicePixelRatio) });
    this.camera.resize(clientWidth, clientHeight);
  }

  /** Draw before the next frame. */
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  get middle() {
    return { left: this.camera.across / 2, top: this.camera.down / 2 };
  }

  draw() {
    const { camera, context, slide } = this;
    const ratio = devicePixelRatio, scale = camera.zoom * ratio, seen = camera.seen;
    const toScreen = (x, y) => [(x - seen.left) * scale, (y - seen.top) * scale];
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.imageSmoothingEnabled = scale < 2;
    context.imageSmoothingQuality = "high";
    const [left, top] = toScreen(0, 0).map(Math.round), [right, bottom] = toScreen(slide.width, slide.height).map(Math.round);
    const whole = [left, top, right - left, bottom - top];
    context.fillStyle = "#ffffff";
    context.fillRect(...whole);
    if (this.thumbnail) context.drawImage(this.thumbnail, ...whole);
    if (slide.tiles) this.drawTiles(toScreen, { seen, scale });
    const opacity = Number(byId("opacity").value) / 100;
    if (this.map && byId("show-map").checked) {
      context.globalAlpha = opacity;
      context.drawImage(this.map, ...whole);
      context.globalAlpha = 1;
    }
    if (byId("show-patches").checked) {
      this.patches.want(seen);
      this.patches.draw(context, { seen, toScreen, zoom: camera.zoom, ratio, opacity, alone: this.alone });
      if (this.hovered >= 0) this.patches.outline(context, this.hovered, { toScreen, zoom: camera.zoom, ratio });
    }
    if (this.sought) this.drawSought(toScreen, ratio);
    if (this.surface.matches(":focus-visible")) cross(context, ratio);
    this.around();
  }

  drawTiles(toScreen, { seen, scale }) {
    const level = this.tiles.levelFor(scale);
    const places = this.tiles.within(level, seen);
    let missing = false;
    for (const place of places) missing = !this.tiles.draw(this.context, place, toScreen) || missing;
    // One level up first: a quarter of the tiles shows everything, half as sharp.
    const coarse = missing && level + 2 < this.slide.levels ? this.tiles.within(level + 2, seen) : [];
    this.tiles.want([...coarse, ...places]);
    this.surface.dataset.sharp = String(!missing);
  }

  /** Scale bar, overview, how many patches are shown, the address. */
  around() {
    scaleBar({ svg: byId("scale-svg"), bar: byId("scale-bar"), text: byId("scale-text") }, { zoom: this.camera.zoom, mpp: this.slide.mpp });
    this.overview.draw();
    const { x, total } = this.patches;
    byId("shown").textContent = x.length < total ? `${x.length.toLocaleString("en")} of ${total.toLocaleString("en")} patches here are drawn; zoom in for all.` : "";
    Object.assign(this.surface.dataset, { x: Math.round(this.camera.x), y: Math.round(this.camera.y), zoom: this.camera.zoom.toPrecision(5), patches: x.length });
    this.remember();
  }

  /** The cluster of the patch at a place in the viewer, null where there is none. */
  clusterAt({ left, top }) {
    if (!byId("show-patches").checked) return null;
    const number = this.patches.at(this.camera.onSlide(left, top));
    return number < 0 ? null : this.slide.clusters[this.patches.cluster[number]];
  }

  hover(place) {
    const found = place && byId("show-patches").checked ? this.patches.at(this.camera.onSlide(place.left, place.top)) : -1;
    const tip = byId("tip");
    if (found !== this.hovered) {
      this.hovered = found;
      this.surface.classList.toggle("over", found >= 0);
      this.changed();
    }
    tip.hidden = found < 0;
    if (found < 0) return;
    const entry = this.slide.clusters[this.patches.cluster[found]];
    tip.textContent = title(entry);
    tip.style.setProperty("--c", entry.colour);
    tip.style.left = `${Math.min(place.left + 16, this.camera.across - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(place.top + 18, this.camera.down - tip.offsetHeight - 8)}px`;
  }

  open(place) {
    const entry = this.clusterAt(place);
    if (!entry) return;
    this.remember();
    this.remember.flush();
    location.assign(`/clusters/${this.slide.k}/${entry.cluster}`);
  }

  spoken() {
    const entry = this.clusterAt(this.middle);
    const across = this.slide.mpp === null ? "" : `, ${Math.round((this.camera.across / this.camera.zoom) * this.slide.mpp).toLocaleString("en")} micrometres across`;
    say(`${entry ? title(entry) : "No patch"} in the middle${across}`);
  }

  failed(error) {
    if (this.told) return;
    this.told = true;
    toast(error.message || "A part of the slide did not come.", { problem: true });
  }
}

async function picture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/** A cross in the middle, for those who move by keys. */
function cross(context, ratio) {
  const x = context.canvas.width / 2, y = context.canvas.height / 2, arm = 9 * ratio;
  const path = new Path2D(`M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`);
  for (const [colour, wide] of [["#ffffff", 4], ["#101418", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide * ratio;
    context.stroke(path);
  }
}

const { slide, k } = byId("viewer").dataset;
api(`/api/slides/${slide}?k=${k}`).then((answer) => new Viewer(answer).start()).catch(complain);

// Starting from a real slide: its tissue map, and a frame of the field's size to choose a part of it.

import { api, openDialog, showError } from "./common.js";
import { EMPTY, fromServer, gridPicture } from "./paint-layout.js";

const SOURCES = { map: "Tissue map of histoloom map.", report: "Tissue map of the report.", patches: "Tissue of the run’s patches: there is no map of this slide. histoloom map makes one." };
const MOST = { width: 620, height: 460 }; // CSS px of the map
const byId = (id) => document.getElementById(id);

/** `page`: {k, names, colours, size(), most}; `use(layout, empty)` takes the part over. Returns {open(slideId)}. */
export function slideDialog({ page, use }) {
  const dialog = byId("slide-dialog"), choice = byId("slide-choice"), surface = byId("slide-surface"), canvas = byId("slide-map");
  const context = canvas.getContext("2d");
  let slides = [], slide = null, grid = null, thumbnail = null;
  let corner = { x: 0, y: 0 }; // of the frame, px of the field's scale

  const room = () => Math.min(MOST.width, surface.clientWidth || MOST.width);
  const scale = () => Math.min(room() / slide.width, MOST.height / slide.height); // CSS px for a px of the field

  async function open(asked) {
    slides = await api("/api/paint/slides");
    choice.replaceChildren(...slides.map(({ title }, index) => new Option(title, index)));
    choice.value = Math.max(0, slides.findIndex(({ slide_id: id }) => id === asked));
    openDialog(dialog);
    await show();
  }

  async function show() {
    slide = slides[choice.value];
    if (!slide) return;
    const asked = slide;
    const [known, picture] = await Promise.all([api(`/api/paint/slides/${encodeURIComponent(slide.slide_id)}?k=${page.k}`), loaded(slide.thumbnail)]);
    if (asked !== slide) return; // another one was chosen meanwhile
    grid = gridPicture(fromServer(known.layout, page.names, EMPTY), page.colours);
    thumbnail = picture;
    byId("slide-source").textContent = SOURCES[known.source] + (known.empty > 0.005 ? ` ${Math.round(100 * known.empty)} % of the slide has no known tissue.` : "");
    const { width, height } = page.size();
    move({ x: (slide.width - width) / 2, y: (slide.height - height) / 2 });
    const fits = Math.max(slide.width, slide.height) <= page.most;
    byId("slide-whole").disabled = !fits;
  }

  function move({ x, y }) {
    const { width, height } = page.size();
    const inside = (value, length, whole) => Math.round(whole > length ? Math.max(0, Math.min(value, whole - length)) : (whole - length) / 2);
    corner = { x: inside(x, width, slide.width), y: inside(y, height, slide.height) };
    draw();
  }

  function draw() {
    const ratio = devicePixelRatio, s = scale() * ratio, { width, height } = page.size();
    canvas.style.width = `${slide.width * scale()}px`;
    canvas.style.height = `${slide.height * scale()}px`;
    Object.assign(canvas, { width: Math.round(slide.width * s), height: Math.round(slide.height * s) });
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (thumbnail) context.drawImage(thumbnail, 0, 0, canvas.width, canvas.height);
    Object.assign(context, { globalAlpha: 0.55, imageSmoothingEnabled: false });
    context.drawImage(grid, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    for (const [style, line] of [["#ffffff", 5], ["#101418", 2.5]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: line * ratio });
      context.strokeRect(corner.x * s, corner.y * s, width * s, height * s);
    }
    surface.dataset.corner = `${corner.x},${corner.y}`;
  }

  async function take(left, top, { width, height }) {
    const query = new URLSearchParams({ k: page.k, left, top, width, height });
    const { layout, empty } = await api(`/api/paint/slides/${encodeURIComponent(slide.slide_id)}/layout?${query}`);
    dialog.close();
    use(layout, empty);
  }

  const middleAt = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect(), { width, height } = page.size();
    move({ x: (clientX - box.left) / scale() - width / 2, y: (clientY - box.top) / scale() - height / 2 });
  };
  surface.addEventListener("pointerdown", (event) => {
    if (!grid || event.button !== 0) return;
    surface.setPointerCapture(event.pointerId);
    middleAt(event);
  });
  surface.addEventListener("pointermove", (event) => event.buttons & 1 && grid && middleAt(event));
  surface.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!steps || !grid) return;
    event.preventDefault();
    const { width, height } = page.size(), by = event.shiftKey ? 0.5 : 0.05;
    move({ x: corner.x + steps[0] * by * width, y: corner.y + steps[1] * by * height });
  });
  choice.addEventListener("change", () => show().catch(showError));
  byId("slide-use").addEventListener("click", () => take(corner.x, corner.y, page.size()).catch(showError));
  byId("slide-whole").addEventListener("click", () => take(0, 0, page.fitted(slide)).catch(showError));
  byId("slide-cancel").addEventListener("click", () => dialog.close());
  byId("from-slide").addEventListener("click", () => open(slide?.slide_id).catch(showError));
  return { open };
}

async function loaded(address) {
  if (!address) return null;
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

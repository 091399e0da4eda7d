// A rectangle drawn on the slide with the mouse fills in the four fields, and asks for the patches like it.

const slide = document.getElementById("region-slide");
const box = document.getElementById("region-box");
const form = document.getElementById("region");
let start = null; // where the pointer went down, in px of the slide

function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(slide.getScreenCTM().inverse());
  const { width, height } = slide.viewBox.baseVal;
  return { x: Math.max(0, Math.min(width, point.x)), y: Math.max(0, Math.min(height, point.y)) };
}

function draw(values) {
  for (const [name, value] of Object.entries(values)) {
    box.setAttribute(name, value);
    form.elements[name].value = Math.round(value);
  }
}

slide?.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  slide.setPointerCapture(event.pointerId);
  start = place(event);
});
slide?.addEventListener("pointermove", (event) => {
  if (!start) return;
  const end = place(event);
  draw({ x: Math.min(start.x, end.x), y: Math.min(start.y, end.y), width: Math.abs(end.x - start.x), height: Math.abs(end.y - start.y) });
});
slide?.addEventListener("pointerup", () => {
  if (!start) return;
  start = null;
  if (Number(form.elements.width.value) && Number(form.elements.height.value)) form.requestSubmit();
});
slide?.addEventListener("pointercancel", () => (start = null));
form.addEventListener("input", () => {
  for (const name of ["x", "y", "width", "height"]) box?.setAttribute(name, form.elements[name].value || 0);
});

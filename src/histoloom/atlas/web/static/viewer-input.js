// Input of the viewer: mouse, wheel, touch and keys.

const ZOOM_STEP = 1.6; // of the keys + and -
const CLICK_TOLERANCE = 5; // CSS px that the pointer may move during a click

/**
 * Listen to `surface` and move `camera`. `onHover` is called with a point of the viewer, or null when the pointer leaves;
 * `onClick` with a point and whether Shift was held; `keys` holds further actions by key.
 */
export function addInputListeners({ surface, camera, onHover, onClick, keys }) {
  const pointers = new Map(); // those that touch the surface, by id
  let moved = 0; // CSS px since the first pointer went down
  let lastGesture = null;

  const point = (event) => {
    const { left, top } = surface.getBoundingClientRect();
    return { left: event.clientX - left, top: event.clientY - top };
  };
  // The centre of all pointers, and the distance between two fingers.
  const currentGesture = () => {
    const points = [...pointers.values()];
    const mean = (key) => points.reduce((sum, one) => sum + one[key], 0) / points.length;
    const distance = points.length > 1 ? Math.hypot(points[0].left - points[1].left, points[0].top - points[1].top) : 0;
    return { left: mean("left"), top: mean("top"), distance, fingers: points.length };
  };

  surface.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    camera.stop();
    surface.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, point(event));
    if (pointers.size === 1) moved = 0;
    lastGesture = currentGesture();
    surface.classList.add("held");
  });
  surface.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) {
      if (event.pointerType === "mouse") onHover(point(event));
      return;
    }
    pointers.set(event.pointerId, point(event));
    const gesture = currentGesture();
    if (lastGesture && gesture.fingers === lastGesture.fingers) {
      moved += Math.hypot(gesture.left - lastGesture.left, gesture.top - lastGesture.top) + Math.abs(gesture.distance - lastGesture.distance);
      if (moved > CLICK_TOLERANCE) onHover(null);
      camera.pan(lastGesture.left - gesture.left, lastGesture.top - gesture.top);
      if (gesture.distance && lastGesture.distance) camera.zoomBy(gesture.distance / lastGesture.distance, gesture);
    }
    lastGesture = gesture;
  });
  const onPointerEnd = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    lastGesture = pointers.size ? currentGesture() : null;
    if (pointers.size) return;
    surface.classList.remove("held");
    if (event.type === "pointerup" && moved <= CLICK_TOLERANCE) onClick(point(event), event.shiftKey);
  };
  surface.addEventListener("pointerup", onPointerEnd);
  surface.addEventListener("pointercancel", onPointerEnd);
  surface.addEventListener("pointerleave", () => onHover(null));

  surface.addEventListener("wheel", (event) => {
    event.preventDefault();
    camera.stop();
    const pixelsPerUnit = event.deltaMode === 1 ? 33 : event.deltaMode === 2 ? 400 : 1; // lines, pages, pixels
    const delta = Math.max(-240, Math.min(240, event.deltaY * pixelsPerUnit));
    // Browsers report a pinch on a touchpad as a wheel with Ctrl, in small steps.
    camera.zoomBy(Math.exp(-delta * (event.ctrlKey ? 0.01 : 0.0022)), point(event));
    onHover(point(event));
  }, { passive: false });
  surface.addEventListener("dblclick", (event) => event.preventDefault());

  surface.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = { ...cameraKeys(camera, { far: event.shiftKey }), ...keys }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

/** The actions of the keys that move the camera; with Shift (`far`), the arrow keys move by almost a whole view. */
function cameraKeys(camera, { far }) {
  const share = far ? 0.9 : 0.2;
  const dx = share * camera.viewWidth, dy = share * camera.viewHeight;
  const zoomIn = () => camera.zoomBy(ZOOM_STEP, { animate: true }), zoomOut = () => camera.zoomBy(1 / ZOOM_STEP, { animate: true });
  return {
    ArrowLeft: () => camera.pan(-dx, 0, { animate: true }),
    ArrowRight: () => camera.pan(dx, 0, { animate: true }),
    ArrowUp: () => camera.pan(0, -dy, { animate: true }),
    ArrowDown: () => camera.pan(0, dy, { animate: true }),
    "+": zoomIn, "=": zoomIn, "-": zoomOut, "−": zoomOut, _: zoomOut,
    0: () => camera.fit(), Home: () => camera.fit(),
    1: () => camera.animate({ zoom: 1 / devicePixelRatio }),
  };
}

// How hands move the viewer: mouse, wheel, touch, keys.

const STEP = 1.6; // a press of + or -
const STILL = 5; // CSS px that a click may wander

/**
 * `surface` is what is touched; `camera` moves; `hover` is called with a place in the viewer, or null when it is left;
 * `click` with a place; `keys` has further keys by name.
 */
export function listen({ surface, camera, hover, click, keys }) {
  const touches = new Map();
  let wandered = 0, last = null;

  const place = (event) => {
    const { left, top } = surface.getBoundingClientRect();
    return { left: event.clientX - left, top: event.clientY - top };
  };
  // The middle of what touches, and how far apart two fingers are.
  const grip = () => {
    const all = [...touches.values()];
    const middle = { left: mean(all.map((one) => one.left)), top: mean(all.map((one) => one.top)) };
    const apart = all.length > 1 ? Math.hypot(all[0].left - all[1].left, all[0].top - all[1].top) : 0;
    return { ...middle, apart, fingers: all.length };
  };

  surface.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    camera.stop();
    surface.setPointerCapture(event.pointerId);
    touches.set(event.pointerId, place(event));
    if (touches.size === 1) wandered = 0;
    last = grip();
    surface.classList.add("held");
  });
  surface.addEventListener("pointermove", (event) => {
    if (!touches.has(event.pointerId)) {
      if (event.pointerType === "mouse") hover(place(event));
      return;
    }
    touches.set(event.pointerId, place(event));
    const now = grip();
    if (last && now.fingers === last.fingers) {
      wandered += Math.hypot(now.left - last.left, now.top - last.top) + Math.abs(now.apart - last.apart);
      if (wandered > STILL) hover(null);
      camera.pan(last.left - now.left, last.top - now.top);
      if (now.apart && last.apart) camera.zoomBy(now.apart / last.apart, now);
    }
    last = now;
  });
  const lift = (event) => {
    if (!touches.delete(event.pointerId)) return;
    last = touches.size ? grip() : null;
    if (touches.size) return;
    surface.classList.remove("held");
    if (event.type === "pointerup" && wandered <= STILL) click(place(event));
  };
  surface.addEventListener("pointerup", lift);
  surface.addEventListener("pointercancel", lift);
  surface.addEventListener("pointerleave", () => hover(null));

  surface.addEventListener("wheel", (event) => {
    event.preventDefault();
    camera.stop();
    const lines = event.deltaMode === 1 ? 33 : event.deltaMode === 2 ? 400 : 1;
    const turned = Math.max(-240, Math.min(240, event.deltaY * lines));
    // Browsers tell a pinch on a touchpad as a wheel with Ctrl, in small steps.
    camera.zoomBy(Math.exp(-turned * (event.ctrlKey ? 0.01 : 0.0022)), place(event));
    hover(place(event));
  }, { passive: false });
  surface.addEventListener("dblclick", (event) => event.preventDefault());

  surface.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const run = { ...moves(camera, event.shiftKey), ...keys }[event.key];
    if (!run) return;
    event.preventDefault();
    run();
  });
}

function moves(camera, far) {
  const share = far ? 0.9 : 0.2;
  const across = share * camera.across, down = share * camera.down;
  const closer = () => camera.zoomBy(STEP, { glide: true }), away = () => camera.zoomBy(1 / STEP, { glide: true });
  return {
    ArrowLeft: () => camera.pan(-across, 0, { glide: true }),
    ArrowRight: () => camera.pan(across, 0, { glide: true }),
    ArrowUp: () => camera.pan(0, -down, { glide: true }),
    ArrowDown: () => camera.pan(0, down, { glide: true }),
    "+": closer, "=": closer, "-": away, "−": away, _: away,
    0: () => camera.fit(), Home: () => camera.fit(),
    1: () => camera.glide({ zoom: 1 / devicePixelRatio }),
  };
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

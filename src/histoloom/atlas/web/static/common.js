// What every page shares: the API, building elements from text (never from HTML), toasts, galleries, the large view.

/** A refusal of the server; `message` is its one line, `status` its number (0: no answer at all). */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Ask the API; `body`, where given, goes as JSON (with POST unless `method` says otherwise). Throws `Refused`. */
export async function api(path, { method, body, signal } = {}) {
  const options = { method: method ?? (body === undefined ? "GET" : "POST"), signal, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The atlas does not answer; is it still running in the terminal?", 0);
  }
  const text = await response.text();
  const found = text && (response.headers.get("Content-Type") ?? "").includes("json") ? JSON.parse(text) : null;
  if (!response.ok) throw new Refused(found?.detail ?? `The atlas answered ${response.status}.`, response.status);
  return found;
}

/** An element: attributes by name, `on…` listeners, `data` for data attributes, `vars` for CSS variables; children are nodes or text. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "vars") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Tell screen readers; they say it when they are done with what they are saying. */
export function say(text) {
  const live = document.getElementById("live");
  live.textContent = "";
  requestAnimationFrame(() => (live.textContent = text));
}

/** Tell everybody for some seconds. `action`: {title, run}, such as undo. `problem`: it stays until it is closed. */
export function toast(text, { action, problem = false, seconds = 6 } = {}) {
  say(text);
  const gone = () => shown.remove();
  const shown = element("div", { class: problem ? "toast problem" : "toast" }, element("span", {}, text));
  if (action) shown.append(element("button", { type: "button", onclick: () => { gone(); action.run(); } }, action.title));
  shown.append(element("button", { type: "button", "aria-label": "Close this message", onclick: gone }, "×"));
  document.getElementById("toasts").append(shown);
  if (!problem) setTimeout(gone, 1000 * seconds);
  return gone;
}

/** Say what went wrong; an aborted request is nothing wrong. */
export function complain(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) console.error(error);
  toast(error instanceof Refused ? error.message : "Something went wrong on this page; reload it.", { problem: true });
}

/** `run` once, `milliseconds` after the last call; `.flush()` runs what still waits at once. */
export function delayed(run, milliseconds) {
  let timer, waiting;
  const call = (...values) => {
    waiting = values;
    clearTimeout(timer);
    timer = setTimeout(call.flush, milliseconds);
  };
  call.flush = () => {
    clearTimeout(timer);
    if (waiting === undefined) return undefined;
    const values = waiting;
    waiting = undefined;
    return run(...values);
  };
  return call;
}

/**
 * Fill `list` (a `ul.gallery`) with pictures: [{src, text, note?, facts?, actions?}]. `text` says what is seen; a click, or Enter,
 * shows a picture large with its `facts` ([[term, text]]) and `actions` ([{title, href} or {title, run}]). Arrow keys move.
 */
export function gallery(list, pictures) {
  list.replaceChildren(...pictures.map((picture, place) => element("li", {},
    element("button", { type: "button", "aria-haspopup": "dialog", onclick: () => enlarge(pictures, place) },
      element("img", { src: picture.src, alt: picture.text, width: 128, height: 128, decoding: "async", loading: place < 30 ? null : "lazy" })),
    picture.note ? element("p", { class: "note", "aria-hidden": "true" }, picture.note) : null)));
  list.onkeydown ??= (event) => arrows(event, list);
}

function arrows(event, list) {
  const buttons = [...list.querySelectorAll("button")];
  const here = buttons.indexOf(document.activeElement);
  if (here < 0) return;
  const top = (one) => Math.round(one.getBoundingClientRect().top);
  const across = Math.max(1, buttons.findIndex((one) => top(one) > top(buttons[0])));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across };
  if (!(event.key in steps)) return;
  event.preventDefault();
  buttons[Math.min(buttons.length - 1, Math.max(0, here + steps[event.key]))].focus();
}

/** Show `pictures[place]` large, with the way to the ones before and after; returns the dialog. */
export function enlarge(pictures, place) {
  const dialog = element("dialog", { class: "zoom", "aria-label": "Picture", onclose: () => dialog.remove() });
  const show = (wanted) => {
    place = (wanted + pictures.length) % pictures.length;
    const { src, text, facts = [], actions = [] } = pictures[place];
    const step = (by, title, sign) => element("button", { type: "button", "aria-label": title, onclick: () => show(place + by) }, sign);
    dialog.replaceChildren(
      element("img", { src, alt: text, width: 512, height: 512 }),
      element("dl", {}, facts.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)])),
      element("div", { class: "row" },
        pictures.length > 1 ? [step(-1, "The picture before", "←"), step(1, "The next picture", "→")] : null,
        actions.map(({ title, href, run }) => (href ? element("a", { class: "button", href }, title)
          : element("button", { type: "button", onclick: () => run(pictures[place], dialog) }, title))),
        element("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close")));
    say(`${text}, ${place + 1} of ${pictures.length}`);
  };
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && pictures.length > 1 && !event.target.matches("input, textarea, select")) show(place + by);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  show(place);
  dialog.showModal();
  dialog.querySelector("button.primary").focus();
  return dialog;
}

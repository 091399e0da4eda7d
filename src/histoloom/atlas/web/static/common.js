// Shared by all pages: requests to the API, building elements from text (never from HTML), toasts, galleries, the enlarged picture.

/** An error response of the server: `message` is one line of text, `status` the HTTP status (0: the server did not answer). */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Send a request to the API and return the JSON of its response. A `body` is sent as JSON, a picture's `file` as it is, by POST unless `method` is given. `ownNotice`: the page itself says where the server does not answer. Throws `ApiError`. */
export async function api(path, { method, body, file, signal, ownNotice = false } = {}) {
  const options = { method: method ?? (body === undefined && file === undefined ? "GET" : "POST"), signal, headers: { Accept: "application/json" } };
  if (file !== undefined) {
    options.headers["Content-Type"] = ["image/jpeg", "application/geo+json"].includes(file.type) ? file.type : "image/png"; // the server looks at what is in it
    options.body = file;
  }
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!ownNotice) connectionLost();
    throw new ApiError(NO_ANSWER, 0);
  }
  connectionFound();
  const text = await response.text();
  const data = text && (response.headers.get("Content-Type") ?? "").includes("json") ? JSON.parse(text) : null;
  if (!response.ok) throw new ApiError(data?.detail ?? `The atlas answered ${response.status}.`, response.status);
  return data;
}

const NO_ANSWER = "The atlas does not answer; is it still running in the terminal?";
const CONNECTION_INTERVAL = 3000; // ms
let lostNotice = null; // stands on the page for as long as the server does not answer

/** Say once that the server does not answer, and ask until it does: pages ask often, and each failure would say the same. */
function connectionLost() {
  if (lostNotice) return;
  announce(NO_ANSWER);
  lostNotice = element("p", { class: "toast lost" }, NO_ANSWER);
  document.getElementById("toasts").prepend(lostNotice);
  const ask = () => fetch("/static/icon.svg", { cache: "no-store" }).then(connectionFound, () => lostNotice && setTimeout(ask, CONNECTION_INTERVAL));
  setTimeout(ask, CONNECTION_INTERVAL);
}

function connectionFound() {
  if (!lostNotice) return;
  lostNotice.remove();
  lostNotice = null;
  toast("The atlas answers again.");
}

/** Create an element: attributes by name, `on…` listeners, `data` for data attributes, `vars` for CSS variables; children are nodes or text. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "vars") for (const [property, setting] of Object.entries(value)) node.style.setProperty(property, setting);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Announce a text to screen readers; they read it after what they are reading now. */
export function announce(text) {
  const live = document.getElementById("live");
  live.textContent = "";
  requestAnimationFrame(() => (live.textContent = text));
}

/** Show a message for some seconds. `action`: {title, run}, such as undo. A `problem` stays until the user closes it. A message takes the place of an earlier one of the same `key`. */
export function toast(text, { action, problem = false, seconds = 6, key = "" } = {}) {
  announce(text);
  if (key) document.querySelector(`.toast[data-key="${key}"]`)?.remove();
  const box = element("div", { class: problem ? "toast problem" : "toast", data: { key } }, element("span", {}, text));
  const close = () => box.remove();
  if (action) box.append(element("button", { type: "button", onclick: () => { close(); action.run(); } }, action.title));
  box.append(element("button", { type: "button", "aria-label": "Close this message", onclick: close }, "×"));
  document.getElementById("toasts").append(box);
  if (problem) return;
  // It waits for as long as somebody points at it or is in it.
  let timer;
  const wait = () => { timer = setTimeout(close, 1000 * seconds); };
  for (const event of ["mouseenter", "focusin"]) box.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["mouseleave", "focusout"]) box.addEventListener(event, wait);
  wait();
}

/** Show an error as a toast. An aborted request is not an error, and a server that does not answer has its notice already. */
export function showError(error) {
  if (error.name === "AbortError" || (error instanceof ApiError && error.status === 0)) return;
  if (!(error instanceof ApiError)) console.error(error);
  toast(error instanceof ApiError ? error.message : "Something went wrong on this page; reload it.", { problem: true });
}

/** Change parameters of the address; null removes one. */
export function setQuery(changes) {
  const changed = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) value === null ? changed.delete(key) : changed.set(key, value);
  // A comma needs no escape in a query, and an address is read by people too.
  const query = String(changed).replaceAll("%2C", ",");
  history.replaceState(history.state, "", location.pathname + (query && `?${query}`) + location.hash);
}

/** Fetch this page again and replace parts of it, each the only element of its selector, by what they are now. */
export async function refreshParts(...selectors) {
  const response = await fetch(location.href, { cache: "no-store" });
  if (!response.ok) return; // such as a group whose corrections are undone: the page stays as it is
  const now = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const selector of selectors) document.querySelector(selector)?.replaceChildren(...now.querySelector(selector).childNodes);
  const colours = document.querySelector('link[href*="/colours.css"]');
  if (colours) colours.href = `${new URL(colours.href).pathname}?${Date.now()}`; // there may be a new group
}

/** A function that calls `run` once, `milliseconds` after its last call; `.flush()` makes a pending call at once. */
export function debounce(run, milliseconds) {
  let timer, pending;
  const call = (...values) => {
    pending = values;
    clearTimeout(timer);
    timer = setTimeout(call.flush, milliseconds);
  };
  call.flush = () => {
    clearTimeout(timer);
    if (pending === undefined) return undefined;
    const values = pending;
    pending = undefined;
    return run(...values);
  };
  return call;
}

/** Open a modal dialog. What is said to the user is within it meanwhile: all around it is inert. */
export function openDialog(dialog) {
  const messages = [document.getElementById("live"), document.getElementById("toasts")];
  const before = messages[0].parentElement;
  if (!dialog.isConnected) document.body.append(dialog);
  dialog.append(...messages);
  dialog.addEventListener("close", () => {
    const place = before.isConnected ? before : document.body;
    if (dialog.contains(messages[0])) place.append(...messages);
    dialog.remove();
  }, { once: true });
  dialog.showModal();
}

/**
 * Fill `list` (a `ul.gallery`) with pictures: [{src, text, note?, badge?, facts?, actions?}]. `text` describes the picture. A click, or
 * Enter, enlarges a picture with its `facts` ([[term, text]]) and `actions` ([{title, href} or {title, run}]). A `badge` ({text, undo})
 * stands below it. A picture with `load` has the rest of itself fetched when it is enlarged, and one with `reload` after an action that
 * calls for it. The gallery is one stop of the Tab key; within it the arrow keys, Home and End move the focus.
 */
export function gallery(list, pictures) {
  const stops = () => list.querySelectorAll("li > button");
  const open = (index) => enlarge(pictures, index).addEventListener("close", () => {
    if (document.activeElement === document.body) stops()[Math.min(index, stops().length - 1)]?.focus(); // it was filled anew meanwhile
  });
  list.replaceChildren(...pictures.map((picture, index) => element("li", {},
    element("button", { type: "button", tabindex: index ? "-1" : "0", "aria-haspopup": "dialog", onclick: () => open(index) },
      element("img", { src: picture.src, alt: picture.text, width: 128, height: 128, decoding: "async", loading: index < 30 ? null : "lazy" })),
    picture.note ? element("p", { class: "note", "aria-hidden": "true" }, picture.note) : null,
    // By keyboard it is undone in the large view, so that the gallery stays one stop.
    picture.badge ? element("p", { class: "badge" }, `${picture.badge.text} `, element("button", { type: "button", tabindex: "-1", "aria-label": `Undo: ${picture.badge.text}`, onclick: picture.badge.undo }, "Undo")) : null)));

  arrowKeys(list, "li > button");
}

/** Within `list` the arrow keys, Home and End move the focus between what `selector` finds; for Tab the list is one stop. */
export function arrowKeys(list, selector) {
  list.onkeydown ??= (event) => {
    const stops = [...list.querySelectorAll(selector)];
    const current = stops.indexOf(document.activeElement);
    if (current < 0) return;
    // The first one whose top differs starts the second row: its index is the number of columns.
    const top = (stop) => Math.round(stop.getBoundingClientRect().top);
    const columns = Math.max(1, stops.findIndex((stop) => top(stop) > top(stops[0])));
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -current, End: stops.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = stops[Math.min(stops.length - 1, Math.max(0, current + steps[event.key]))];
    for (const stop of stops) stop.tabIndex = stop === next ? 0 : -1; // Tab comes back to it
    next.focus();
  };
}

/** Enlarge `pictures[index]` in a dialog with buttons for the previous and the next picture; returns the dialog. */
export function enlarge(pictures, index) {
  const dialog = element("dialog", { class: "zoom", "aria-label": "Picture" });
  /** Facts that do not fit are scrolled, with the keyboard too. */
  const makeScrollable = () => {
    const facts = dialog.querySelector("dl");
    if (facts.scrollHeight > facts.clientHeight) facts.tabIndex = 0;
  };
  const show = (next) => {
    index = (next + pictures.length) % pictures.length;
    const { src, text, facts = [], actions = [] } = pictures[index];
    const focused = dialog.contains(document.activeElement) ? document.activeElement.textContent : null;
    const stepButton = (step, title, sign) => element("button", { type: "button", "aria-label": title, onclick: () => show(index + step) }, sign);
    const messages = dialog.querySelectorAll("#live, #toasts");
    dialog.replaceChildren(
      element("img", { src, alt: text, width: 512, height: 512 }),
      element("dl", {}, facts.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)])),
      element("div", { class: "row" },
        pictures.length > 1 ? [stepButton(-1, "The previous picture", "←"), stepButton(1, "The next picture", "→")] : null,
        actions.map(({ title, href, run }) => (href ? element("a", { class: "button", href }, title)
          : element("button", { type: "button", onclick: () => run(pictures[index], dialog, () => complete(index, pictures[index].reload)) }, title))),
        element("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close")), ...messages);
    // The keyboard stays on the button that it was on, which is a new one now.
    if (focused !== null) ([...dialog.querySelectorAll("a, button")].find((one) => one.textContent === focused) ?? dialog.querySelector("button.primary")).focus();
    if (dialog.open) makeScrollable();
    if (pictures[index].load) complete(index, pictures[index].load);
    else announce(`${text}, ${index + 1} of ${pictures.length}`);
  };
  const complete = async (wanted, load) => {
    try {
      pictures[wanted] = await load();
      if (index === wanted && dialog.isConnected) show(wanted);
    } catch (error) {
      showError(error);
    }
  };
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && pictures.length > 1 && !event.target.matches("input, textarea, select")) show(index + step);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  show(index);
  openDialog(dialog);
  makeScrollable();
  dialog.querySelector("button.primary").focus();
  return dialog;
}

// A field that was marked as wrong is not so any more once it is right, and neither is what its form said about it.
document.addEventListener("input", ({ target }) => {
  if (target.getAttribute("aria-invalid") !== "true" || !target.form || !target.checkValidity()) return;
  target.removeAttribute("aria-invalid");
  target.form.querySelector(".problem")?.replaceChildren();
});

// An explanation of a word goes away with Escape, until it is pointed at or focused anew.
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") for (const term of document.querySelectorAll(".term:is(:hover, :focus)")) term.classList.add("closed");
});
for (const term of document.querySelectorAll(".term")) {
  for (const event of ["mouseenter", "focus"]) term.addEventListener(event, () => term.classList.remove("closed"));
}

/** The first error of a form's visible inputs, or "". */
export function formProblem(form) {
  const inputs = [...form.querySelectorAll("input")];
  const invalid = inputs.find((input) => !input.closest("[hidden]") && !input.checkValidity());
  for (const input of inputs) input.setAttribute("aria-invalid", input === invalid);
  return invalid ? `${invalid.labels[0].firstChild.textContent.trim()}: ${invalid.validationMessage}` : "";
}

/** A function that calls `draw` with the next frame, once however often it was called before. */
export function oncePerFrame(draw) {
  let requested = false;
  return () => {
    if (requested) return;
    requested = true;
    requestAnimationFrame(() => {
      requested = false;
      draw();
    });
  };
}

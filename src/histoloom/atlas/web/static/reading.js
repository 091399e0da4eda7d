// One reader's way through a reading: a picture, an answer, the next; then the result.

import { Refused, api, complain, element, gallery, say } from "/static/common.js";

const root = document.getElementById("reading");
const session = root.dataset.session;
const naming = root.dataset.kind === "naming";
const base = `/api/reading-sessions/${session}`;
const at = (id) => document.getElementById(id);
const image = at("picture");
const KEYS = naming ? [..."abcdefghijklmnopqrstuvwxyz123456789"] : [..."12345"];
const GUARD = 250; // ms in which a key that was meant for the picture before does nothing
const SCALING = "histoloom-scaling";

let state; // as the server last said
let mode = "waiting"; // waiting, ready, shown, paused, sending, unsent, done
let since = 0; // when the picture appeared, or appeared again after a pause
let spent = 0; // ms on this picture before the last pause
let unsent = null;

function show(...ids) {
  for (const id of ["ready", "shown", "asked", "choices", "unsent", "result"]) at(id).hidden = !ids.includes(id);
  at("pause").disabled = !["shown", "paused"].includes(mode);
}

function count() {
  at("progress").value = state.answered;
  at("count").textContent = `${state.answered} of ${state.total}`;
}

function ready() {
  mode = "ready";
  const begun = state.answered > 0;
  at("ready-title").textContent = begun ? `Go on with picture ${state.answered + 1} of ${state.total}` : `${state.total} pictures`;
  at("ready-text").textContent = naming
    ? "Say which tissue each picture shows, by its letter or with the mouse. Some are real, some synthetic. An answer cannot be changed. The clock runs while a picture is seen; pause whenever you like."
    : "Half of them are real, half synthetic, in a random order. Answer with the keys 1 to 5 or with the mouse. An answer cannot be changed. The clock runs while a picture is seen; pause whenever you like.";
  at("go").textContent = begun ? "Go on" : "Begin";
  show("ready");
  at("go").focus();
}

async function next() {
  mode = "waiting";
  count();
  if (!state.picture) return finish();
  image.src = state.picture.address;
  try {
    await image.decode();
  } catch {
    return lost(new Refused("The picture did not arrive.", 0), () => next());
  }
  mode = "shown";
  show("shown", "asked", "choices");
  spent = 0;
  // The picture is on the screen with the frame after this one.
  requestAnimationFrame(() => requestAnimationFrame(() => (since = performance.now())));
  since = performance.now();
  say(`Picture ${state.answered + 1} of ${state.total}`);
  if (state.after) new Image().src = state.after;
}

function pause() {
  if (mode === "shown") {
    spent += performance.now() - since;
    mode = "paused";
    at("ready-title").textContent = "Paused";
    at("ready-text").textContent = "The picture is hidden and the clock stands.";
    at("go").textContent = "Go on";
    show("ready");
    at("go").focus();
  } else if (mode === "paused") resume();
}

function resume() {
  mode = "shown";
  show("shown", "asked", "choices");
  since = performance.now();
}

async function choose(answer) {
  if (mode !== "shown" || performance.now() - since + spent < GUARD) return;
  const seconds = (spent + performance.now() - since) / 1000;
  await send({ picture: state.picture.id, answer, seconds, scaling: image.dataset.scaling });
}

async function send(body) {
  mode = "sending";
  try {
    state = await api(`${base}/answers`, { body });
  } catch (error) {
    if (error.status === 409 || error.status === 400) {
      // Answered in another window: go on from where the reading stands.
      complain(error);
      state = await api(base);
      return ready();
    }
    return lost(error, () => send(body));
  }
  if (state.last) {
    const verdict = state.last.right === null ? "It is a" : state.last.right ? "Right: a" : "Wrong: a";
    at("feedback").textContent = `${verdict} ${state.last.truth}.`;
    at("feedback").dataset.right = String(state.last.right);
  }
  await next();
}

function lost(error, retry) {
  mode = "unsent";
  unsent = retry;
  at("unsent-text").textContent = error.message;
  show("shown", "unsent");
  at("again").focus();
}

async function finish() {
  mode = "done";
  const found = await api(`${base}/result`);
  at("feedback").textContent = "";
  root.classList.add("done");
  const short = naming ? found.answers.map((answer, place) => (place < found.answers.length - 1 ? KEYS[place] ?? String(place + 1) : answer)) : found.answers;
  const named = (truth) => (naming ? `${short[found.answers.indexOf(truth)]}: ${truth}` : truth);
  const table = (caption, titles, rows) => element("div", { class: "scroll" }, element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, titles.map((title, place) => element("th", { scope: "col", class: place ? null : "text" }, title)))),
    element("tbody", {}, rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row", class: "text" }, first), rest.map((cell) => element("td", {}, cell)))))));
  const pictures = element("ul", { class: "gallery" });
  const rows = naming ? "rows are what was meant, columns what you said, by the letters of the rows" : "rows are what it was, columns what you said";
  at("result").replaceChildren(
    element("h2", { tabindex: "-1" }, "The result"),
    element("p", { class: "verdict" }, found.sentence),
    ...found.notes.map((note) => element("p", { class: "soft" }, note)),
    element("div", { class: "card" }, table("All who finished this reading. Intervals are 95 %, in brackets; seconds are medians." + (naming ? "" : " Positive is synthetic; “cannot tell” counts as half right."), found.titles, found.rows),
      found.together ? element("p", {}, `Together: accuracy ${found.together}.`) : null),
    element("h2", {}, "Your answers"),
    element("div", { class: "counts" }, found.counts.map((one) => element("div", { class: "card" }, table(`${one.title}: ${rows}.`,
      ["it was", ...short], one.truths.map((truth, place) => [named(truth), ...one.numbers[place].map((number) => (number ? String(number) : "·"))]))))),
    element("h2", {}, naming ? "Named otherwise than meant" : "Taken for the other kind"),
    found.mistaken.length ? pictures : element("p", {}, "None."),
    element("p", {}, element("a", { class: "button", href: "/read" }, "To all readings")));
  gallery(pictures, found.mistaken.map(({ address, truth, answer }) => ({
    src: address, text: `A ${truth}; you said: ${answer}`, note: naming ? `said: ${answer}` : truth, facts: [["It is a", truth], ["You said", answer]] })));
  show("result");
  at("result").querySelector("h2").focus();
  say(found.sentence);
}

function scale(wanted) {
  image.dataset.scaling = wanted;
  localStorage.setItem(SCALING, wanted);
  for (const button of root.querySelectorAll("[data-scaling]")) if (button !== image) button.setAttribute("aria-pressed", String(button.dataset.scaling === wanted));
}

function go() {
  if (mode === "paused") resume();
  else if (mode === "ready") next().catch(complain);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]")) return;
  // A button of the bar that has the focus is pressed by Space itself.
  if (event.key === " " && ["shown", "paused"].includes(mode) && !event.target.closest(".bar, .reading-bar")) {
    event.preventDefault();
    pause();
    return;
  }
  const answer = KEYS.indexOf(event.key.toLowerCase());
  if (mode === "shown" && answer >= 0 && answer < state.choices.length) {
    event.preventDefault();
    choose(answer).catch(complain);
  }
});
at("go").addEventListener("click", go);
at("pause").addEventListener("click", pause);
at("again").addEventListener("click", () => unsent().catch(complain));
for (const button of root.querySelectorAll("button[data-scaling]")) button.addEventListener("click", () => scale(button.dataset.scaling));

async function open() {
  state = await api(base);
  at("asked").textContent = naming ? "Which tissue is it?" : "Real or synthetic?";
  at("choices").replaceChildren(...state.choices.map((choice, place) => element("button", { type: "button", onclick: () => choose(place).catch(complain) },
    element("kbd", {}, KEYS[place] ?? ""), element("span", {}, choice))));
  scale(localStorage.getItem(SCALING) === "pixelated" ? "pixelated" : "smooth");
  count();
  if (state.picture) ready();
  else await finish();
}

open().catch(complain);

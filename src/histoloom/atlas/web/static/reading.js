// One reader's session of a blinded reading: a picture, an answer, the next picture; at the end the result.

import { ApiError, announce, api, element, gallery, showError } from "/static/common.js";

const byId = (id) => document.getElementById(id);
const root = byId("reading");
const image = byId("picture");
const naming = root.dataset.kind === "naming";
const { k } = document.body.dataset; // absent where the run no longer has the reading's k
const sessionPath = `/api/reading-sessions/${root.dataset.session}`;
const KEYS = naming ? [..."abcdefghijklmnopqrstuvwxyz123456789"] : [..."12345"];
const MIN_VIEW_TIME = 250; // ms; a key pressed sooner was meant for the previous picture
const SCALING = "histoloom-scaling"; // key of the browser's storage

let state; // the last response of the server
let mode = "loading"; // loading, ready, showing, paused, sending, told, unsent, done
let shownAt = 0; // when the picture appeared, or appeared again after a pause
let timeBeforePause = 0; // ms
let opening; // the timer after which the page takes an answer
let retry = null; // repeats the request that failed

/** Show these parts of the page and hide the others. */
function showParts(...ids) {
  for (const id of ["ready", "shown", "question", "choices", "next", "unsent", "result"]) byId(id).hidden = !ids.includes(id);
  byId("pause").disabled = !["showing", "paused"].includes(mode);
}

function showProgress() {
  byId("progress").value = state.answered;
  byId("count").textContent = `${state.answered} of ${state.total}`;
}

/** Show the card with the button that starts or continues. */
function showReadyCard(title, text, button) {
  byId("ready-title").textContent = title;
  byId("ready-text").textContent = text;
  byId("go").textContent = button;
  showParts("ready");
  byId("go").focus();
}

function showInstructions() {
  mode = "ready";
  const started = state.answered > 0;
  showReadyCard(
    started ? `Continue with picture ${state.answered + 1} of ${state.total}` : `${state.total} pictures`,
    naming
      ? "Answer which tissue each picture shows, by its letter or with the mouse. Some pictures are real, some synthetic. An answer cannot be changed. The clock runs while a picture is shown; you can pause at any time."
      : "Half of the pictures are real, half synthetic, in a random order. Answer with the keys 1 to 5 or with the mouse. An answer cannot be changed. The clock runs while a picture is shown; you can pause at any time.",
    started ? "Continue" : "Start");
}

/** Start the clock. The page takes an answer, and says so by data-answerable, once the picture was there for MIN_VIEW_TIME. */
function startClock() {
  shownAt = performance.now();
  clearTimeout(opening);
  opening = setTimeout(() => (root.dataset.answerable = "true"), MIN_VIEW_TIME - timeBeforePause);
}

function stopClock() {
  clearTimeout(opening);
  delete root.dataset.answerable;
}

async function showNextPicture() {
  mode = "loading";
  byId("feedback").textContent = "";
  showProgress();
  if (!state.picture) return showResult();
  image.src = state.picture.address;
  try {
    await image.decode();
  } catch {
    return showRetry(new ApiError("The picture did not arrive.", 0), showNextPicture);
  }
  mode = "showing";
  showParts("shown", "question", "choices");
  timeBeforePause = 0;
  shownAt = performance.now();
  // The picture is on the screen one frame after the next one.
  requestAnimationFrame(() => requestAnimationFrame(() => mode === "showing" && startClock()));
  announce(`Picture ${state.answered + 1} of ${state.total}`);
  if (state.after) new Image().src = state.after;
}

function togglePause() {
  if (mode === "showing") {
    timeBeforePause += performance.now() - shownAt;
    stopClock();
    mode = "paused";
    showReadyCard("Paused", "The picture is hidden and the clock is stopped.", "Continue");
  } else if (mode === "paused") {
    mode = "showing";
    showParts("shown", "question", "choices");
    startClock();
  }
}

async function answer(choice) {
  if (mode !== "showing" || !root.dataset.answerable) return;
  const viewTime = timeBeforePause + performance.now() - shownAt;
  stopClock();
  await send({ picture: state.picture.id, answer: choice, seconds: viewTime / 1000, scaling: image.dataset.scaling });
}

async function send(body) {
  mode = "sending";
  try {
    state = await api(`${sessionPath}/answers`, { body, ownNotice: true });
  } catch (error) {
    if (error.status === 409 || error.status === 400) {
      // The picture was answered in another window: continue where the reading is now.
      showError(error);
      state = await api(sessionPath);
      return showInstructions();
    }
    return showRetry(new ApiError(`${error.message} Your answer is kept here.`, error.status), () => send(body));
  }
  if (state.last) showTruth(state.last);
  else await showNextPicture();
}

/** In a training: what the picture that is still shown was. The next one comes when the reader asks for it. */
function showTruth({ right, truth }) {
  mode = "told";
  const verdict = right === null ? "It is a" : right ? "Right: a" : "Wrong: a";
  byId("feedback").textContent = `${verdict} ${truth}.`;
  byId("feedback").dataset.right = String(right);
  byId("next").textContent = state.picture ? "Next picture" : "To the result";
  showProgress();
  showParts("shown", "next");
  byId("next").focus();
}

/** Show an error with a button that repeats the request. */
function showRetry(error, repeat) {
  mode = "unsent";
  retry = repeat;
  byId("unsent-text").textContent = error.message;
  showParts("shown", "unsent");
  byId("retry").focus();
}

function resultTable(caption, titles, rows) {
  return element("div", { class: "scroll" }, element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, titles.map((title, index) => element("th", { scope: "col", class: index ? null : "text" }, title)))),
    element("tbody", {}, rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row", class: "text" }, first), rest.map((cell) => element("td", {}, cell)))))));
}

async function showResult() {
  mode = "done";
  const result = await api(`${sessionPath}/result`);
  root.classList.add("done");

  // A naming has many answers: the columns have letters, and the rows say what each letter means. The last answer is no tissue.
  const last = result.answers.length - 1;
  const columns = naming ? result.answers.map((text, index) => (index < last ? KEYS[index] ?? String(index + 1) : text)) : result.answers;
  const rowTitle = (truth) => (naming ? `${columns[result.answers.indexOf(truth)]}: ${truth}` : truth);
  const axes = naming ? "rows are the requested tissues, columns your answers by the letters of the rows" : "rows are the truth, columns your answers";
  const readersCaption = "All who finished this reading. Intervals are 95 %, in brackets; seconds are medians."
    + (naming ? "" : " Positive is synthetic; “cannot tell” counts as half right.");
  const counts = result.counts.map(({ title, truths, numbers }) => element("div", { class: "card" }, resultTable(
    `${title}: ${axes}.`, ["truth", ...columns],
    truths.map((truth, index) => [rowTitle(truth), ...numbers[index].map((number) => (number ? String(number) : "·"))]))));

  const mistaken = element("ul", { class: "gallery" });
  gallery(mistaken, result.mistaken.map((picture) => ({
    src: picture.address,
    text: `A ${picture.truth}; your answer: ${picture.answer}`,
    note: naming ? picture.answer : picture.truth,
    facts: [["It is a", picture.truth], ["Your answer", picture.answer]],
  })));
  byId("result").replaceChildren(
    element("h2", { tabindex: "-1" }, "The result"),
    element("p", { class: "verdict" }, result.sentence),
    ...result.notes.map((note) => element("p", { class: "soft" }, note)),
    element("div", { class: "card" }, resultTable(readersCaption, result.titles, result.rows),
      result.together ? element("p", {}, `Together: accuracy ${result.together}.`) : null),
    element("h2", {}, "Your answers"),
    element("div", { class: "counts" }, counts),
    element("h2", {}, naming ? "Named differently from the requested tissue" : "Wrong answers"),
    result.mistaken.length ? mistaken : element("p", {}, "None."),
    element("p", {}, element("a", { class: "button", href: `/read${k === undefined ? "" : `?k=${k}`}` }, "To all readings")));
  showParts("result");
  byId("result").querySelector("h2").focus();
  announce(result.sentence);
}

function setScaling(scaling) {
  image.dataset.scaling = scaling;
  localStorage.setItem(SCALING, scaling);
  for (const button of root.querySelectorAll("button[data-scaling]")) button.setAttribute("aria-pressed", String(button.dataset.scaling === scaling));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]")) return;
  // Space presses the focused button of the bar, as everywhere; elsewhere it pauses.
  if (event.key === " " && ["showing", "paused"].includes(mode) && !event.target.closest(".bar, .reading-bar")) {
    event.preventDefault();
    togglePause();
    return;
  }
  const choice = KEYS.indexOf(event.key.toLowerCase());
  if (mode === "showing" && choice >= 0 && choice < state.choices.length) {
    event.preventDefault();
    answer(choice).catch(showError);
  }
});
byId("go").addEventListener("click", () => {
  if (mode === "paused") togglePause();
  else if (mode === "ready") showNextPicture().catch(showError);
});
byId("pause").addEventListener("click", togglePause);
byId("next").addEventListener("click", () => showNextPicture().catch(showError));
byId("retry").addEventListener("click", () => retry().catch(showError));
for (const button of root.querySelectorAll("button[data-scaling]")) button.addEventListener("click", () => setScaling(button.dataset.scaling));

async function start() {
  state = await api(sessionPath);
  byId("question").textContent = naming ? "Which tissue is it?" : "Real or synthetic?";
  byId("choices").replaceChildren(...state.choices.map((text, index) => element("button", { type: "button", onclick: () => answer(index).catch(showError) },
    element("kbd", {}, KEYS[index] ?? ""), element("span", {}, text))));
  setScaling(localStorage.getItem(SCALING) === "pixelated" ? "pixelated" : "smooth");
  showProgress();
  if (state.picture) showInstructions();
  else await showResult();
}

start().catch(showError);

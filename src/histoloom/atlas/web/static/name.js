// The naming page: one rater's names of all clusters at one k, saved while they are typed. agreement.js compares the raters.

import { announce, api, element, enlarge, showError, toast } from "./common.js";
import { showAgreement } from "./agreement.js";
import { colourDialog } from "./name_colour.js";
import { importDialog } from "./name_import.js";
import { keyboard } from "./name_keys.js";

const k = Number(document.body.dataset.k);
const rows = [...document.querySelectorAll(".naming-row")].map((node) => ({
  node,
  cluster: Number(node.dataset.cluster),
  name: node.querySelector(".name"),
  flags: [...node.querySelectorAll("[data-flag]")],
  colour: node.querySelector(".colour"),
  mergeSelect: node.querySelector(".same"),
  mergeButton: node.querySelector(".join"),
  tissue: node.querySelector(".tissue"),
  problem: node.querySelector(".naming-form .problem"),
  images: [...node.querySelectorAll("img")],
  controls: [...node.querySelectorAll("a, button, select, input")],
  editId: null, // what is typed between two visits of the field is one edit, which one undo takes back
  toSend: null, // typed, not yet sent
  unsaved: null, // typed, not yet confirmed by the server
  saving: false,
  problemTimer: undefined,
}));
const byId = (id) => document.getElementById(id);
const RATER = "histoloom-rater"; // keys of the browser's storage
const DRAFT = `histoloom-draft ${location.host} ${k}`;
const POLL_INTERVAL = 1500; // ms
const RETRY_DELAY = 2000; // ms
const PROBLEM_DELAY = 900; // ms that a name which the server refuses may stay in a field before the page says so

let rater = localStorage.getItem(RATER) ?? "";
let carried = []; // names of other k that fit groups without a name: [{cluster, name, source_k, overlap}]
let state = null; // of the server: clusters, suggestions, raters, undo, redo, version
let queue = Promise.resolve(); // the requests that change names, one after the other
let pending = 0; // requests in the queue
let requestCount = 0; // requests sent since the page was opened

// --- requests --------------------------------------------------------------------------------------------------------

/** Send a change after those before it, and show the state that the server returns; resolves to that state. */
function send(path, body) {
  pending += 1;
  requestCount += 1;
  showSaveStatus();
  const response = queue.then(() => api(`/api/names/${k}/${path}`, { body: { rater, ...body } }));
  queue = response.then(() => {}, () => {});
  return response.then((newState) => {
    render(newState);
    return newState;
  }).finally(() => {
    pending -= 1;
    showSaveStatus();
  });
}

const sendOrShowError = (path, body) => send(path, body).catch(showError);

/** Resolves when everything that was typed or clicked has been sent. */
async function allSent() {
  while (rows.some((row) => row.saving)) await new Promise((resolve) => setTimeout(resolve, 10));
  await queue;
}

function showSaveStatus(message = "") {
  const refused = rows.find((row) => !row.problem.hidden);
  const problem = message || (refused ? `Group ${refused.cluster} is not saved` : "");
  const saving = pending > 0 || rows.some((row) => row.unsaved !== null);
  const text = problem || (saving ? "Saving …" : state && rater ? "All changes saved" : "");
  byId("saved").classList.toggle("problem", problem !== "");
  // Screen readers announce each change of this text, so it is set only where it differs.
  if (byId("saved").textContent !== text) byId("saved").textContent = text;
}

const normalised = (name) => name.normalize("NFC").toLowerCase().trim().split(/\s+/).join(" ");

/** Show a state of the server; returns the one before. A field that is being typed into changes only where another window or rater (`external`) changed it. */
function render(newState, { external = false } = {}) {
  const before = state;
  const { clusters } = newState;
  state = newState;
  for (const row of rows) {
    const { name, flag, colour, shown } = clusters[row.cluster];
    const typing = row.unsaved !== null || !row.problem.hidden || (row.editId !== null && document.activeElement === row.name);
    const changedElsewhere = external && before && before.clusters[row.cluster].name !== name;
    if ((!typing || changedElsewhere) && row.name.value !== name) row.name.value = name;
    for (const button of row.flags) button.setAttribute("aria-pressed", button.dataset.flag === flag);
    row.node.style.setProperty("--c", colour || shown);
    const sameName = name ? clusters.filter((other) => other.cluster !== row.cluster && normalised(other.name) === normalised(name)) : [];
    row.tissue.textContent = sameName.length ? `One tissue with group ${sameName.map((other) => other.cluster).join(", ")}` : "";
  }
  // Selects and lists are filled only when they change: filling them closes one that is open.
  if (!before || before.clusters.some((one, index) => one.name !== clusters[index].name)) {
    const label = ({ cluster, name }) => (name ? `${cluster} · ${name}` : `${cluster}`);
    for (const row of rows) {
      const own = normalised(clusters[row.cluster].name);
      const others = clusters.filter((other) => other.cluster !== row.cluster && (!other.name || normalised(other.name) !== own));
      row.mergeSelect.replaceChildren(element("option", { value: "" }, "Same tissue as …"),
        ...others.map((other) => element("option", { value: String(other.cluster) }, label(other))));
    }
  }
  if (!before || before.suggestions.join("\n") !== newState.suggestions.join("\n")) {
    byId("suggestions").replaceChildren(...newState.suggestions.map((name) => element("option", { value: name })));
  }
  showCarried();
  byId("raters").replaceChildren(...newState.raters.map((name) => element("option", { value: name })));
  for (const [action, word] of [["undo", "Undo"], ["redo", "Redo"]]) {
    byId(action).disabled = !newState[action];
    byId(action).title = newState[action] && `${word} the ${newState[action]}`;
  }
  showSaveStatus();
  return before;
}

/** Fetch what another window or rater changed; with `always`, the whole state even if nothing changed. */
async function refresh({ always = false } = {}) {
  const since = always || !state ? "" : state.version;
  const [requestedRater, requestsBefore] = [rater, requestCount];
  const response = await api(`/api/names/${k}?${new URLSearchParams({ rater, since })}`);
  if (!response || requestedRater !== rater || requestsBefore !== requestCount) return; // older than what was done since
  const before = render(response, { external: !always });
  const changed = before && before.clusters.some((one, index) => ["name", "colour", "flag"].some((key) => one[key] !== response.clusters[index][key]));
  if (changed && !always) announce("Your names were changed in another window");
  if (!byId("agreement").hidden) updateAgreement();
}

async function poll() {
  try {
    if (rater && !pending && document.visibilityState === "visible") await refresh();
    if (!rows.some((row) => row.unsaved !== null)) showSaveStatus();
  } catch (error) {
    if (error.status === 0) showSaveStatus("The atlas does not answer");
  }
  setTimeout(poll, POLL_INTERVAL);
}

// --- names of other k ------------------------------------------------------------------------------------------------

/** Ask which names of other k fit groups that have no name here. */
async function findCarried() {
  carried = await api(`/api/names/${k}/carried?${new URLSearchParams({ rater })}`);
  showCarried();
}

/** Offer those that still have no name. */
function showCarried() {
  const open = state && rater ? carried.filter(({ cluster }) => !state.clusters[cluster].name) : [];
  byId("carry").hidden = !open.length;
  if (!open.length) return;
  const names = open.map((one) => `${one.cluster} · ${one.name} (k = ${one.source_k})`).join(", ");
  byId("carry").querySelector("p").textContent = `${open.length === 1 ? "1 group has" : `${open.length} groups have`} nearly the same patches as a named group of another k: ${names}`;
}

async function takeCarried() {
  await allSent();
  await send("carry", {});
  resetFields();
  toast("The names are taken over; Undo takes all of them back.");
}

// --- typing ----------------------------------------------------------------------------------------------------------

/** Send each keystroke at once. While a request is on its way, only the latest text waits for it. */
function onInput(row) {
  row.editId ??= crypto.randomUUID?.() ?? `e${Date.now()}-${Math.floor(performance.now())}`;
  row.toSend = row.unsaved = row.name.value;
  storeDraft();
  showProblem(row, "");
  if (!row.saving) save(row);
}

async function save(row) {
  row.saving = true;
  while (row.toSend !== null) {
    const name = row.toSend;
    row.toSend = null;
    try {
      await send(String(row.cluster), { name, edit: row.editId ?? "" });
      onResponse(row, "");
    } catch (error) {
      if (error.status !== 0) {
        onResponse(row, error.message);
      } else {
        row.toSend ??= name;
        showSaveStatus("Not saved: the atlas does not answer");
        await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));
      }
    }
  }
  row.saving = false;
}

/** The server saved the name, or refused it with `problem`. */
function onResponse(row, problem) {
  if (row.toSend !== null) return; // more was typed
  row.unsaved = null;
  storeDraft();
  clearTimeout(row.problemTimer);
  // A name may be invalid only while it is typed: "2" on the way to "2 nuclei".
  if (problem) row.problemTimer = setTimeout(() => row.unsaved === null && showProblem(row, problem), document.activeElement === row.name ? PROBLEM_DELAY : 0);
  showSaveStatus();
}

function showProblem(row, text) {
  clearTimeout(row.problemTimer);
  row.problem.textContent = text && `Not saved: ${text}`;
  row.problem.hidden = !text;
  if (text) row.name.setAttribute("aria-invalid", "true");
  else row.name.removeAttribute("aria-invalid");
  showSaveStatus();
}

/** Store what is not saved yet in the browser: it survives a reload and a stop of the atlas. */
function storeDraft() {
  const names = rows.filter((row) => row.unsaved !== null).map((row) => [row.cluster, row.unsaved]);
  if (names.length && state) localStorage.setItem(DRAFT, JSON.stringify({ rater, clustering: state.clustering, names }));
  else if (state) localStorage.removeItem(DRAFT);
}

/** Type the stored draft again, if it is of this rater and this clustering. */
function restoreDraft() {
  const draft = JSON.parse(localStorage.getItem(DRAFT) ?? "null");
  localStorage.removeItem(DRAFT);
  if (!draft || draft.rater !== rater || draft.clustering !== state.clustering) return;
  for (const [cluster, name] of draft.names) {
    if (rows[cluster].unsaved !== null) continue; // typed since
    rows[cluster].name.value = name;
    onInput(rows[cluster]);
  }
}

/** Set all fields to the server's state and end all edits. */
function resetFields() {
  for (const row of rows) {
    row.editId = null;
    showProblem(row, "");
    row.name.value = state.clusters[row.cluster].name;
  }
}

// --- the other actions on a cluster ----------------------------------------------------------------------------------

/** Set a flag, or remove it where it is set. */
function toggleFlag(row, flag) {
  const newFlag = state.clusters[row.cluster].flag === flag ? "" : flag;
  announce(newFlag ? `Group ${row.cluster}: ${newFlag}` : `Group ${row.cluster}: no flag`);
  return sendOrShowError(String(row.cluster), { flag: newFlag });
}

/** Merge the row's cluster with the selected one. Arrow keys change the selection too, so only Enter or the button calls this. */
function mergeWithSelected(row) {
  const selected = row.mergeSelect.value;
  row.mergeSelect.value = "";
  row.mergeButton.hidden = true;
  focusRow(row);
  if (selected !== "") merge(row, Number(selected)).catch(showError);
}

/** Give both clusters, and all that share the name already, one name: that of `other`, or the row's where it has none. */
async function merge(row, other) {
  await allSent();
  const { clusters } = state;
  const name = clusters[other].name || clusters[row.cluster].name;
  if (!name) {
    toast(`Name group ${row.cluster} or group ${other} first; then they can share the name.`);
    return;
  }
  const sameName = clusters.filter((one) => one.name && normalised(one.name) === normalised(name)).map((one) => one.cluster);
  const merged = [...new Set([other, row.cluster, ...sameName])].sort((a, b) => a - b);
  const mergedBy = rater;
  const { step } = await send("merge", { clusters: merged, name });
  const text = `merge of groups ${merged.join(", ")}: ${name}`;
  toast(`Groups ${merged.join(", ")} are one tissue: ${name}`, {
    action: { title: "Undo this merge", run: () => undoMerge({ step, mergedBy, text }).catch(showError) },
  });
}

/** Undo exactly this merge, whatever was done since, or say why that is no longer possible. */
async function undoMerge({ step, mergedBy, text }) {
  if (mergedBy === rater) await undoOrRedo("undo", { step, text });
  else toast(`The ${text} is of ${mergedBy}, who alone can undo it.`);
}

/** `action` is "undo" or "redo". It is about the rater's last step, or about `step`, which `text` describes. */
async function undoOrRedo(action, { step, text } = {}) {
  await allSent();
  const done = text ?? state?.[action];
  if (!done) return;
  const before = state;
  try {
    await send(action, step ? { step } : {});
  } catch (error) {
    return showError(error);
  }
  resetFields();
  const changed = rows.find((row) => JSON.stringify(before.clusters[row.cluster]) !== JSON.stringify(state.clusters[row.cluster]));
  changed?.node.scrollIntoView({ block: "nearest" });
  toast(`${action === "undo" ? "Undone" : "Done again"}: ${done}`, { key: "undo", seconds: 4 });
}

const openColourDialog = colourDialog({
  current: (row) => state.clusters[row.cluster],
  onChange: (row, colour) => {
    sendOrShowError(String(row.cluster), { colour });
    announce(colour ? `Group ${row.cluster}: colour ${colour}` : `Group ${row.cluster}: no colour of its own`);
  },
  onClose: (row) => restoreFocus(row),
});

function enlargePatch(row, index) {
  const dialog = enlarge(row.images.map((image) => ({ src: image.src, text: image.alt })), index);
  dialog.addEventListener("close", () => restoreFocus(row));
}

const { focusRow, restoreFocus, makeCurrent } = keyboard(rows, {
  isReady: () => state && !byId("names").hidden,
  undoOrRedo,
  toggleFlag,
  removeFlag: (row) => sendOrShowError(String(row.cluster), { flag: "" }),
  openColourDialog,
  mergeWithSelected,
  enlarge: (row) => enlargePatch(row, 0),
});

// --- rater and view --------------------------------------------------------------------------------------------------

function askForRater() {
  byId("rater").value = rater;
  byId("who-dialog").showModal();
  byId("rater").select();
}

async function setRater(name) {
  await allSent();
  rater = name;
  localStorage.setItem(RATER, rater);
  byId("who").textContent = rater;
  byId("export").href = `/api/names/table.csv?${new URLSearchParams({ rater })}`;
  state = null;
  // What is typed from here on is this rater's, also before the rater's names have come.
  for (const row of rows) {
    row.editId = null;
    showProblem(row, "");
    row.name.value = "";
  }
  while (!state) {
    await refresh({ always: true });
    await allSent();
  }
  restoreDraft();
  await findCarried();
}

function showView({ agreement }) {
  byId("names").hidden = agreement;
  byId("agreement").hidden = !agreement;
  byId("view-names").setAttribute("aria-pressed", String(!agreement));
  byId("view-agreement").setAttribute("aria-pressed", String(agreement));
  if (agreement) allSent().then(updateAgreement);
}

const updateAgreement = () => showAgreement(byId("agreement"), { k, rater, colours: state.clusters.map((one) => one.shown) }).catch(showError);

// --- start -----------------------------------------------------------------------------------------------------------

for (const row of rows) {
  row.name.addEventListener("input", () => onInput(row));
  row.name.addEventListener("blur", () => allSent().then(() => { if (document.activeElement !== row.name) row.editId = null; }));
  row.node.addEventListener("focusin", () => makeCurrent(row));
  for (const button of row.flags) button.addEventListener("click", () => toggleFlag(row, button.dataset.flag));
  row.colour.addEventListener("click", () => openColourDialog(row));
  row.mergeSelect.addEventListener("change", () => { row.mergeButton.hidden = row.mergeSelect.value === ""; });
  row.mergeButton.addEventListener("click", () => mergeWithSelected(row));
  row.images.forEach((image, index) => image.addEventListener("click", () => enlargePatch(row, index)));
}
byId("carry").querySelector("button").addEventListener("click", () => takeCarried().catch(showError));
byId("undo").addEventListener("click", () => undoOrRedo("undo"));
byId("redo").addEventListener("click", () => undoOrRedo("redo"));
byId("who").addEventListener("click", askForRater);
byId("help").addEventListener("click", () => byId("help-dialog").showModal());
byId("view-names").addEventListener("click", () => showView({ agreement: false }));
byId("view-agreement").addEventListener("click", () => showView({ agreement: true }));
byId("who-dialog").addEventListener("cancel", (event) => rater || event.preventDefault());
byId("who-dialog").addEventListener("close", () => {
  const entered = byId("rater").value.trim();
  if (byId("who-dialog").returnValue === "ok" && entered && entered !== rater) setRater(entered).then(() => restoreFocus(rows[0])).catch(showError);
  else if (!rater) askForRater();
});
importDialog({
  button: byId("import"), file: byId("file"), dialog: byId("import-dialog"), body: byId("import-body"),
  getRater: () => rater, onImported: () => refresh({ always: true }).then(resetFields),
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && rater && !pending && refresh().catch(() => {}));
makeCurrent(rows[0]);
if (rater) setRater(rater).catch(showError);
else refresh().catch(showError).then(askForRater);
setTimeout(poll, POLL_INTERVAL);

// Naming: one rater's names of all clusters of one k, kept as they are typed. agreement.js shows all raters side by side.

import { api, complain, element, enlarge, say, toast } from "./common.js";
import { showAgreement } from "./agreement.js";
import { colouring } from "./name_colour.js";
import { importing } from "./name_import.js";
import { keyboard } from "./name_keys.js";

const k = Number(document.body.dataset.k);
const rows = [...document.querySelectorAll(".naming-row")].map((node) => ({
  node,
  cluster: Number(node.dataset.cluster),
  name: node.querySelector(".name"),
  flags: [...node.querySelectorAll("[data-flag]")],
  colour: node.querySelector(".colour"),
  same: node.querySelector(".same"),
  join: node.querySelector(".join"),
  tissue: node.querySelector(".tissue"),
  problem: node.querySelector(".naming-form .problem"),
  images: [...node.querySelectorAll("img")],
  controls: [...node.querySelectorAll("a, button, select, input")],
  edit: null, // joins what is typed in one go
  waiting: null, // typed, not yet on its way
  unkept: null, // typed, not yet answered for
}));
const at = (id) => document.getElementById(id);
const RATER = "histoloom-rater";
const DRAFT = `histoloom-draft ${location.host} ${k}`;
const POLL = 1500;
const RETRY = 2000;
const PATIENCE = 900;

let rater = localStorage.getItem(RATER) ?? "";
let state = null;
let queue = Promise.resolve();
let pending = 0;
let sent = 0;

// --- what the server knows -------------------------------------------------------------------------------------------

/** One request after the other: what was done first is kept first. */
function send(path, body) {
  pending += 1;
  sent += 1;
  saved();
  const answered = queue.then(() => api(`/api/names/${k}/${path}`, { body: { rater, ...body } }));
  queue = answered.then(() => {}, () => {});
  return answered.then(apply).finally(() => {
    pending -= 1;
    saved();
  });
}

const act = (path, body) => send(path, body).catch(complain);

function saved(problem = "") {
  const waiting = rows.some((row) => row.unkept !== null);
  const refused = rows.find((row) => !row.problem.hidden);
  const trouble = problem || (refused ? `Cluster ${refused.cluster} is not kept` : "");
  const text = trouble || (pending || waiting ? "Saving …" : state && rater ? "All is kept" : "");
  at("saved").classList.toggle("problem", trouble !== "");
  if (at("saved").textContent !== text) at("saved").textContent = text;
}

/** Show what the server knows. A field that is being typed into changes only where somebody else (`foreign`) changed it. */
function apply(found, { foreign = false } = {}) {
  const before = state;
  state = found;
  const mine = found.clusters;
  for (const row of rows) {
    const { name, flag, colour, shown } = mine[row.cluster];
    const typing = row.unkept !== null || !row.problem.hidden || (row.edit !== null && document.activeElement === row.name);
    const changed = foreign && before && before.clusters[row.cluster].name !== name;
    if ((!typing || changed) && row.name.value !== name) row.name.value = name;
    for (const button of row.flags) button.setAttribute("aria-pressed", button.dataset.flag === flag);
    row.node.style.setProperty("--c", colour || shown);
    const others = name ? mine.filter((one) => one.cluster !== row.cluster && plain(one.name) === plain(name)).map((one) => one.cluster) : [];
    row.tissue.textContent = others.length ? `One tissue with cluster ${others.join(", ")}` : "";
  }
  if (!before || before.clusters.some((one, place) => one.name !== mine[place].name)) fillSelects(mine);
  if (!before || before.suggestions.join("\n") !== found.suggestions.join("\n")) {
    at("suggestions").replaceChildren(...found.suggestions.map((name) => element("option", { value: name })));
  }
  at("raters").replaceChildren(...found.raters.map((name) => element("option", { value: name })));
  at("undo").disabled = !found.undo;
  at("redo").disabled = !found.redo;
  saved();
  return before;
}

function fillSelects(mine) {
  const label = (one) => (one.name ? `${one.cluster} · ${one.name}` : `${one.cluster}`);
  for (const row of rows) {
    const others = mine.filter((one) => one.cluster !== row.cluster && (!one.name || plain(one.name) !== plain(mine[row.cluster].name)));
    row.same.replaceChildren(element("option", { value: "" }, "Same tissue as …"),
      ...others.map((one) => element("option", { value: String(one.cluster) }, label(one))));
  }
}

const plain = (text) => text.normalize("NFC").toLowerCase().trim().split(/\s+/).join(" ");

async function poll() {
  try {
    if (rater && !pending && document.visibilityState === "visible") await look();
    if (!rows.some((row) => row.unkept !== null)) saved();
  } catch (error) {
    if (error.status === 0) saved("The atlas does not answer");
  }
  setTimeout(poll, POLL);
}

/** Ask whether something changed: in another tab, or by another rater. */
async function look({ always = false } = {}) {
  const since = always || !state ? "" : state.version;
  const [asked, already] = [rater, sent];
  const found = await api(`/api/names/${k}?${new URLSearchParams({ rater: asked, since })}`);
  if (!found || asked !== rater || already !== sent) return; // older than what was done since
  const before = apply(found, { foreign: !always });
  const other = before && before.clusters.some((one, place) => ["name", "colour", "flag"].some((part) => one[part] !== found.clusters[place][part]));
  if (other && !always) say("Your names were changed in another window");
  if (!at("agreement").hidden) agreement();
}

// --- typing ----------------------------------------------------------------------------------------------------------

/** Each keystroke is sent at once, or, while one is on its way, the latest as soon as that has arrived. */
function typed(row) {
  row.edit ??= crypto.randomUUID?.() ?? `e${Date.now()}-${Math.floor(performance.now())}`;
  row.waiting = row.unkept = row.name.value;
  keepDraft();
  complainAt(row, "");
  saved();
  if (!row.sending) keep(row);
}

async function keep(row) {
  row.sending = true;
  while (row.waiting !== null) {
    const name = row.waiting;
    row.waiting = null;
    try {
      await send(String(row.cluster), { name, edit: row.edit ?? "" });
      answered(row, "");
    } catch (error) {
      if (error.status !== 0) {
        answered(row, error.message);
      } else {
        row.waiting ??= name;
        saved("Not kept: the atlas does not answer");
        await new Promise((done) => setTimeout(done, RETRY));
      }
    }
  }
  row.sending = false;
}

function answered(row, problem) {
  if (row.waiting !== null) return; // more was typed
  row.unkept = null;
  keepDraft();
  clearTimeout(row.complaining);
  // A name may pass through what is no name: "2" on the way to "2 nuclei".
  if (problem) row.complaining = setTimeout(() => row.unkept === null && complainAt(row, problem), document.activeElement === row.name ? PATIENCE : 0);
  saved();
}

function complainAt(row, text) {
  clearTimeout(row.complaining);
  row.problem.textContent = text && `Not kept: ${text}`;
  row.problem.hidden = !text;
  if (text) row.name.setAttribute("aria-invalid", "true");
  else row.name.removeAttribute("aria-invalid");
  saved();
}

/** What is not kept yet survives a reload, and an atlas that was stopped. */
function keepDraft() {
  const names = rows.filter((row) => row.unkept !== null).map((row) => [row.cluster, row.unkept]);
  if (names.length && state) localStorage.setItem(DRAFT, JSON.stringify({ rater, clustering: state.clustering, names }));
  else localStorage.removeItem(DRAFT);
}

function takeDraft() {
  const draft = JSON.parse(localStorage.getItem(DRAFT) ?? "null");
  localStorage.removeItem(DRAFT);
  if (!draft || draft.rater !== rater || draft.clustering !== state.clustering) return;
  for (const [cluster, name] of draft.names) {
    rows[cluster].name.value = name;
    typed(rows[cluster]);
  }
}

/** After what is typed has been sent. */
async function settled() {
  while (rows.some((row) => row.sending)) await new Promise((done) => setTimeout(done, 10));
  await queue;
}

/** Every field as the server knows it; nothing is being typed any more. */
function showAll() {
  for (const row of rows) {
    row.edit = null;
    complainAt(row, "");
    row.name.value = state.clusters[row.cluster].name;
  }
}

// --- what a rater does -----------------------------------------------------------------------------------------------

function flag(row, wanted) {
  const now = state.clusters[row.cluster].flag;
  const next = now === wanted ? "" : wanted;
  say(next ? `Cluster ${row.cluster}: ${next}` : `Cluster ${row.cluster}: no flag`);
  return act(String(row.cluster), { flag: next });
}

async function sameAs(row, other) {
  await settled();
  const mine = state.clusters;
  const name = mine[other].name || mine[row.cluster].name;
  if (!name) {
    toast(`Name cluster ${row.cluster} or cluster ${other} first; then they can share the name.`);
    return;
  }
  const tissue = mine.filter((one) => one.name && plain(one.name) === plain(name)).map((one) => one.cluster);
  const clusters = [...new Set([other, row.cluster, ...tissue])].sort((a, b) => a - b);
  await act("merge", { clusters, name });
  toast(`Clusters ${clusters.join(", ")} are one tissue: ${name}`, { action: { title: "Undo", run: () => step("undo") } });
}

/** The arrow keys go through the list as well, so that only Enter or the button says that it is the one. */
function joined(row) {
  const other = row.same.value;
  row.same.value = "";
  row.join.hidden = true;
  go(row);
  if (other !== "") sameAs(row, Number(other)).catch(complain);
}

async function step(which) {
  await settled();
  if (!state || !state[which]) return;
  const before = state;
  await act(which, {});
  showAll();
  const changed = rows.find((row) => JSON.stringify(before.clusters[row.cluster]) !== JSON.stringify(state.clusters[row.cluster]));
  changed?.node.scrollIntoView({ block: "nearest" });
  say(changed ? `${which === "undo" ? "Undone" : "Brought back"} at cluster ${changed.cluster}` : "Done");
}

const colour = colouring({
  now: (row) => state.clusters[row.cluster],
  chosen: (row, value) => {
    act(String(row.cluster), { colour: value });
    say(value ? `Cluster ${row.cluster}: colour ${value}` : `Cluster ${row.cluster}: no colour of its own`);
  },
  done: (row) => back(row),
});

const { go, back, reachable } = keyboard(rows, {
  ready: () => state && !at("names").hidden,
  step,
  flag,
  noFlag: (row) => act(String(row.cluster), { flag: "" }),
  colour,
  joined,
  large: (row) => large(row, 0),
});

function large(row, place) {
  const dialog = enlarge(row.images.map((image) => ({ src: image.src, text: image.alt })), place);
  dialog.addEventListener("close", () => back(row));
}

// --- rater, view -------------------------------------------------------------------------------------------

function askWho() {
  at("rater").value = rater;
  at("who-dialog").showModal();
  at("rater").select();
}

async function become(name) {
  await settled();
  rater = name;
  localStorage.setItem(RATER, rater);
  at("who").textContent = rater;
  at("export").href = `/api/names/table.csv?${new URLSearchParams({ rater })}`;
  state = null;
  await look({ always: true });
  showAll();
  takeDraft();
}

function view(shown) {
  at("names").hidden = shown;
  at("agreement").hidden = !shown;
  at("view-names").setAttribute("aria-pressed", String(!shown));
  at("view-agreement").setAttribute("aria-pressed", String(shown));
  if (shown) settled().then(agreement);
}

const agreement = () => showAgreement(at("agreement"), { k, rater, colours: state.clusters.map((one) => one.shown) }).catch(complain);

for (const row of rows) {
  row.name.addEventListener("input", () => typed(row));
  row.name.addEventListener("blur", () => settled().then(() => { if (document.activeElement !== row.name) row.edit = null; }));
  row.node.addEventListener("focusin", () => reachable(row));
  for (const button of row.flags) button.addEventListener("click", () => flag(row, button.dataset.flag));
  row.colour.addEventListener("click", () => colour(row));
  row.same.addEventListener("change", () => { row.join.hidden = row.same.value === ""; });
  row.join.addEventListener("click", () => joined(row));
  row.images.forEach((image, place) => image.addEventListener("click", () => large(row, place)));
}
at("undo").addEventListener("click", () => step("undo"));
at("redo").addEventListener("click", () => step("redo"));
at("who").addEventListener("click", askWho);
at("help").addEventListener("click", () => at("help-dialog").showModal());
at("view-names").addEventListener("click", () => view(false));
at("view-agreement").addEventListener("click", () => view(true));
at("who-dialog").addEventListener("cancel", (event) => rater || event.preventDefault());
at("who-dialog").addEventListener("close", () => {
  const given = at("rater").value.trim();
  if (at("who-dialog").returnValue === "ok" && given && given !== rater) become(given).then(() => back(rows[0])).catch(complain);
  else if (!rater) askWho();
});
importing({ button: at("import"), file: at("file"), dialog: at("import-dialog"), body: at("import-body"), whose: () => rater, done: () => look({ always: true }).then(showAll) });
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && rater && !pending && look().catch(() => {}));
reachable(rows[0]);
if (rater) become(rater).catch(complain);
else look().catch(complain).then(askWho);
setTimeout(poll, POLL);

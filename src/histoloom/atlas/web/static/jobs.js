// The list of jobs on the drawing page. It polls the server: often while a job runs, seldom otherwise.

import { announce, api, element, gallery, showError, toast } from "./common.js";

const POLL_RUNNING = 800; // ms
const POLL_IDLE = 6000; // ms
const OPEN_AT_FIRST = 3; // jobs whose pictures are unfolded when the page opens
const STATES = { waiting: "Waiting", drawing: "Drawing", done: "Done", cancelled: "Cancelled", failed: "Failed", interrupted: "Interrupted" };
const hasEnded = (job) => !["waiting", "drawing"].includes(job.state);

/**
 * Keep `list` up to date; `empty` is shown while there are no jobs. `useAsSource(name, mode)` puts a picture into the form.
 * Returns {poll, show}: the first asks the server at once, the second scrolls a job into view.
 */
export function showJobs(list, { empty, useAsSource }) {
  const cards = new Map(); // by job id
  let timer;
  let latest = 0; // the number of the last request; an answer to an earlier one is too old
  let failing = false; // whether the last request failed: a server that is stopped is said once, not at each request

  async function poll() {
    clearTimeout(timer);
    const number = ++latest;
    let running = false;
    try {
      const { jobs } = await api("/api/jobs");
      if (number !== latest) return;
      update(jobs);
      running = jobs.some((job) => !hasEnded(job));
      failing = false;
    } catch (error) {
      if (!failing) showError(error);
      failing = true;
    }
    if (number === latest) timer = setTimeout(poll, running && !document.hidden ? POLL_RUNNING : POLL_IDLE);
  }

  function update(jobs) {
    empty.hidden = jobs.length > 0;
    for (const [id, card] of cards) {
      if (jobs.some((job) => job.id === id)) continue;
      card.node.remove();
      cards.delete(id);
    }
    jobs.forEach((job, index) => {
      if (!cards.has(job.id)) cards.set(job.id, jobCard(job, { useAsSource, poll, open: index < OPEN_AT_FIRST }));
      const card = cards.get(job.id);
      if (list.children[index] !== card.node) list.insertBefore(card.node, list.children[index] ?? null);
      card.update(job);
    });
  }

  /** Scroll a job's card into view, unless it is: who pressed the button sees the progress. */
  function show(id) {
    const node = cards.get(id)?.node;
    if (!node) return;
    const { top, bottom } = node.getBoundingClientRect();
    const bar = document.querySelector(".bar").getBoundingClientRect().bottom;
    if (top < bar || bottom > innerHeight) node.scrollIntoView();
  }

  document.addEventListener("visibilitychange", () => document.hidden || poll());
  poll();
  return { poll, show };
}

/** One job's card: {node, update(job)}. */
function jobCard(job, { useAsSource, poll, open }) {
  const title = element("h3", {}, job.title);
  const state = element("p", { class: "state" });
  const buttons = element("div", { class: "row" });
  const progress = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${job.title}` });
  const pictures = element("ul", { class: "gallery", "aria-label": `Synthetic pictures: ${job.title}` });
  const details = element("details", { open, ontoggle: () => loadPictures() }, element("summary", { class: "quietly" }, "Pictures"), pictures);
  const node = element("li", { class: "card pad job", data: { job: job.id } },
    element("div", { class: "top" }, element("div", {}, title, state), buttons), progress, details);
  let loaded = -1; // number of pictures in the gallery
  let buttonsFor = ""; // state for which the buttons were built

  async function loadPictures() {
    if (!details.open || loaded === job.made) return;
    loaded = job.made;
    try {
      const response = await api(`/api/jobs/${job.id}/pictures`);
      // The gallery is built anew; the focus stays on the picture that has it.
      const focused = [...pictures.querySelectorAll("button")].indexOf(document.activeElement);
      gallery(pictures, response.pictures.map((picture) => galleryEntry(picture, job, useAsSource)));
      if (focused >= 0) pictures.querySelectorAll("button")[focused]?.focus();
    } catch (error) {
      if (error.status !== 404) showError(error); // 404: the job was deleted in the meantime
    }
  }

  function update(latest) {
    const previousState = job.state;
    job = latest;
    state.replaceChildren(...stateText(job));
    progress.hidden = hasEnded(job);
    progress.value = job.share;
    details.hidden = job.made === 0;
    const buttonState = `${job.state} ${job.made > 0}`;
    if (buttonState !== buttonsFor) buttons.replaceChildren(...jobButtons(job, poll));
    buttonsFor = buttonState;
    if (previousState !== job.state && hasEnded(job)) announce(`${job.title}: ${STATES[job.state].toLowerCase()}`);
    loadPictures();
  }

  return { node, update };
}

/** What the card says below its title: state, progress, seed, time. */
function stateText(job) {
  const parts = [element("strong", { class: job.state === "failed" ? "bad" : null }, STATES[job.state])];
  const add = (text) => parts.push(` · ${text}`);
  if (job.state === "waiting") add(job.ahead ? `${job.ahead} ${job.ahead === 1 ? "job" : "jobs"} before it` : "next");
  if (job.state === "drawing" && job.made + job.withheld < job.total) add(job.seconds_left === null ? "starting" : `about ${duration(job.seconds_left)} left`);
  if (job.state !== "waiting") add(`${job.made} of ${job.total} ${job.total === 1 ? "picture" : "pictures"}`);
  if (job.withheld) add(`${job.withheld} withheld: too similar to a training patch`);
  add(`seed ${job.request.seed}`);
  if (job.request.strength !== null) add(`strength ${job.request.strength}`);
  add(new Date(job.time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
  if (job.message) add(job.message);
  return parts;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function jobButtons(job, poll) {
  const button = (title, run, kind = "") => element("button", { type: "button", class: kind, onclick: () => run().catch(showError).finally(poll) }, title);
  const post = (action) => api(`/api/jobs/${job.id}/${action}`, { method: "POST" });
  const cancel = async () => {
    const { state } = await post("cancel");
    if (hasEnded({ state }) && state !== "cancelled") toast(`This job had ended already: ${STATES[state].toLowerCase()}.`);
  };
  const remove = async () => {
    if (!confirm(`Delete this job and its ${job.made} pictures from the disk?`)) return;
    await api(`/api/jobs/${job.id}`, { method: "DELETE" });
    toast("The job and its pictures are deleted.");
  };
  const buttons = [];
  if (job.made) buttons.push(element("a", { class: "button", href: `/api/jobs/${job.id}/pictures.zip`, download: "" }, "Download ZIP"));
  if (!hasEnded(job)) return [...buttons, button("Cancel", cancel)];
  if (job.state !== "done") buttons.push(button("Continue", () => post("resume")));
  return [...buttons, button("Delete", remove, "danger")];
}

function galleryEntry({ number, src, record }, job, useAsSource) {
  const name = `drawn/${job.id}/${number}`;
  const percent = record.other ? `${Math.round(100 * record.fraction)} %` : undefined;
  const init = record.source === undefined ? [] : record.other
    ? [["Between", `${record.source} and ${record.other}, ${percent} of the way`], ["Strength", String(record.strength)]]
    : [["Started from", record.source], ["Strength", String(record.strength)]];
  const closeAndUse = (mode) => (_, dialog) => { dialog.close(); useAsSource(name, mode); };
  return {
    src,
    text: `Synthetic picture ${number + 1} of ${record.tissue}`,
    note: percent,
    facts: [
      ["Synthetic", "drawn by a model; not for diagnosis"], ["Tissue", `${record.tissue} (cluster ${record.cluster}, k = ${record.k})`], ...init,
      ["Drawn with", `${record.sampler}, ${record.steps} steps, guidance ${record.guidance}`], ["Seed, number", `${record.seed}, ${record.index}`],
      ["Sample", record.sample_id],
    ],
    actions: [
      { title: "More like this", run: closeAndUse("like") }, { title: "Between…", run: closeAndUse("between") },
      { title: "Nearest real patch", run: (_, dialog) => showNearest(job.id, number, dialog).catch(showError) }, { title: "As PNG", href: src },
    ],
  };
}

/** Show the training patch that is nearest to a picture, in the picture's dialog. */
async function showNearest(jobId, number, dialog) {
  const box = element("div", { class: "neighbour", role: "status" }, "Searching the training patches…");
  dialog.querySelector(".neighbour")?.remove();
  dialog.querySelector("dl").after(box);
  const nearest = await api(`/api/jobs/${jobId}/pictures/${number}/nearest`);
  if (nearest.patch_id === null) {
    box.replaceChildren("There is no training patch to compare with, or there are too many to search here.");
    return;
  }
  const verdict = nearest.threshold === null ? "This run has no threshold above which a picture counts as a copy."
    : nearest.score > nearest.threshold ? `That is above ${nearest.threshold.toFixed(2)}: it counts as a copy.`
    : `That is not above ${nearest.threshold.toFixed(2)}: it does not count as a copy.`;
  box.replaceChildren(
    element("img", { src: nearest.src, alt: `Real training patch ${nearest.patch_id}`, width: 128, height: 128 }),
    element("div", {}, element("p", {}, "Nearest real training patch"), element("p", { class: "soft" }, nearest.patch_id),
      element("p", {}, `Similarity ${nearest.score.toFixed(2)} of 1. ${verdict}`)));
}

// The list of jobs on the page that generates: a card for each, with its pictures beside what they started from.

import { announce, api, element, gallery, showError, toast } from "./common.js";
import { STATES, hasEnded, jobThumbs, jobTitle, onJobs, poll, stateText, strengthText } from "./job_state.js";

const OPEN_AT_FIRST = 3; // jobs whose pictures are unfolded when the page opens

/**
 * Keep `list` up to date; `empty` is shown while there are no jobs. `useAsSource(name, mode)` puts a picture into the form.
 * Returns {show}, which scrolls a job into view.
 */
export function showJobs(list, { empty, useAsSource }) {
  const cards = new Map(); // by job id
  let asked = location.hash; // the job that the address names, until it is shown

  function update(all) {
    const jobs = all.filter((job) => !job.painted); // fields are on the page that paints
    empty.hidden = jobs.length > 0;
    for (const [id, card] of cards) {
      if (jobs.some((job) => job.id === id)) continue;
      card.node.remove();
      cards.delete(id);
    }
    jobs.forEach((job, index) => {
      if (!cards.has(job.id)) cards.set(job.id, jobCard(job, { useAsSource, open: index < OPEN_AT_FIRST || asked === `#job-${job.id}` }));
      const card = cards.get(job.id);
      if (list.children[index] !== card.node) list.insertBefore(card.node, list.children[index] ?? null);
      card.update(job);
    });
    if (asked) show(asked.replace("#job-", ""));
    asked = "";
  }

  /** Scroll a job's card into view, unless it is: who pressed the button sees the progress. */
  function show(id) {
    const node = cards.get(id)?.node;
    if (!node) return;
    const { top, bottom } = node.getBoundingClientRect();
    const bar = document.querySelector(".bar").getBoundingClientRect().bottom;
    if (top < bar || bottom > innerHeight) node.scrollIntoView();
  }

  onJobs(update);
  return { show };
}

/** One job's card: {node, update(job)}. Its title shows the pictures that it starts from, or its first ones. */
function jobCard(job, { useAsSource, open }) {
  const thumbs = element("span", { class: "thumbs" });
  const title = element("h3", {}, jobTitle(job));
  const state = element("p", { class: "state" });
  const buttons = element("div", { class: "row" });
  const progress = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${job.title}` });
  const pictures = element("ul", { class: "gallery", "aria-label": `Synthetic pictures: ${job.title}` });
  const details = element("details", { open, ontoggle: () => loadPictures() }, element("summary", { class: "quietly" }, "Pictures"), pictures);
  const node = element("li", { class: "card pad job", id: `job-${job.id}` },
    element("div", { class: "top" }, thumbs, element("div", {}, title, state), buttons), progress, details);
  let loaded = -1; // number of pictures in the gallery
  let buttonsFor = ""; // state for which the buttons were built

  async function loadPictures() {
    if (!details.open || loaded === job.made) return;
    loaded = job.made;
    try {
      const response = await api(`/api/jobs/${job.id}/pictures`);
      // The gallery is built anew; the focus stays on the picture that has it.
      const focused = [...pictures.querySelectorAll("button")].indexOf(document.activeElement);
      showPictures(pictures, job, response.pictures.map((picture) => galleryEntry(picture, job, useAsSource)));
      if (focused >= 0) pictures.querySelectorAll("button")[focused]?.focus();
    } catch (error) {
      if (error.status !== 404) showError(error); // 404: the job was deleted in the meantime
    }
  }

  function update(latest) {
    const previousState = job.state;
    job = latest;
    showThumbs(thumbs, job);
    state.replaceChildren(...stateParts(job));
    progress.hidden = hasEnded(job);
    progress.value = job.share;
    details.hidden = job.made === 0;
    const buttonState = `${job.state} ${job.made > 0}`;
    if (buttonState !== buttonsFor) buttons.replaceChildren(...jobButtons(job));
    buttonsFor = buttonState;
    if (previousState !== job.state && hasEnded(job)) announce(`${job.title}: ${STATES[job.state].toLowerCase()}`);
    loadPictures();
  }

  return { node, update };
}

/** The pictures of a job beside what it starts from: the source first; between two, one at each end. */
function showPictures(list, job, pictures) {
  const { between } = job.request;
  const isEnd = (source, index) => between !== null && (job.sources.length === 2 ? index === 1 : source.name !== between[0]);
  const entry = (source, index) => {
    const role = between === null ? "Source" : isEnd(source, index) ? "To" : "From";
    return {
      src: source.src, text: `${role}: ${source.title}`, note: role.toLowerCase(), real: source.real,
      facts: [[role, source.title], source.real ? ["Real", "a picture of tissue"] : ["Synthetic", "made by a model; not for diagnosis"]],
    };
  };
  const starts = job.sources.filter((source, index) => !isEnd(source, index)).map((source) => entry(source, 0));
  const ends = job.sources.filter(isEnd).map((source) => entry(source, 1));
  gallery(list, [...starts, ...pictures, ...ends]);
  starts.forEach(({ real }, index) => list.children[index].classList.add("source", real ? "real" : "made"));
  ends.forEach(({ real }) => list.lastElementChild.classList.add("source", real ? "real" : "made"));
}

/** The title's pictures. They are made anew only where they become others. */
function showThumbs(box, job) {
  const pictures = jobThumbs(job);
  const shown = pictures.map(({ src }) => src).join(" ");
  if (box.dataset.shown === shown) return;
  box.dataset.shown = shown;
  box.replaceChildren(...pictures.map(({ src, title }) => element("img", { src, alt: title, width: 44, height: 44 })));
}

/** What the card says below its title: state, progress, seed, time. */
function stateParts(job) {
  const [state, ...rest] = stateText(job).split(" · ");
  const parts = [element("strong", { class: job.state === "failed" ? "bad" : null }, state)];
  const add = (text) => parts.push(` · ${text}`);
  rest.forEach(add);
  if (job.withheld) add(`${job.withheld} withheld: too similar to a training patch`);
  add(`seed ${job.request.seed}`);
  if (job.request.strength !== null) add(strengthText(job.request.strength));
  add(new Date(job.time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
  if (job.message) add(job.message);
  return parts;
}

function jobButtons(job) {
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
    ? [["Between", `${record.source} and ${record.other}, ${percent} of the way`], ["Similar to free", strengthText(record.strength)]]
    : [["Started from", record.source], ["Similar to free", strengthText(record.strength)]];
  const closeAndUse = (mode) => (_, dialog) => { dialog.close(); useAsSource(name, mode); };
  return {
    src,
    text: `Synthetic picture ${number + 1} of ${record.tissue}`,
    note: percent,
    facts: [
      ["Synthetic", "made by a model; not for diagnosis"], ["Tissue", `${record.tissue} (group ${record.cluster}, k = ${record.k})`], ...init,
      ["Made with", `${record.sampler}, ${record.steps} steps, guidance ${record.guidance}`], ["Seed, number", `${record.seed}, ${record.index}`],
      ["Sample", record.sample_id],
    ],
    actions: [
      { title: "More like this", run: closeAndUse("like") }, { title: "Between two", run: closeAndUse("between") },
      ...("alone" in document.getElementById("jobs").dataset ? [] // an exported generator has no patches
        : [{ title: "Nearest real patch", run: (_, dialog) => showNearest(job.id, number, dialog).catch(showError) }]),
      { title: "As PNG", href: src },
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

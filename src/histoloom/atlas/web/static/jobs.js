// The jobs of the page to draw on: asked for again and again while one is drawn, each with its pictures as they come.

import { api, complain, element, gallery, say, toast } from "./common.js";

const OFTEN = 800;
const SELDOM = 6000;
const OPEN_AT_FIRST = 3;
const WORDS = { waiting: "Waits", drawing: "Is drawn", done: "Done", cancelled: "Cancelled", failed: "Failed", interrupted: "Interrupted" };
const ended = (job) => !["waiting", "drawing"].includes(job.state);

/** Keep `list` as the jobs are; `begin(name, mode)` puts a picture into the form. Returns {look}: ask at once. */
export function showJobs(list, { none, begin }) {
  const shown = new Map();
  let timer;

  async function look() {
    clearTimeout(timer);
    let busy = false;
    try {
      const { jobs } = await api("/api/jobs");
      update(jobs);
      busy = jobs.some((job) => !ended(job));
    } catch (error) {
      complain(error);
    } finally {
      clearTimeout(timer);
      timer = setTimeout(look, busy && !document.hidden ? OFTEN : SELDOM);
    }
  }

  function update(jobs) {
    none.hidden = jobs.length > 0;
    for (const [id, one] of shown) {
      if (jobs.some((job) => job.id === id)) continue;
      one.node.remove();
      shown.delete(id);
    }
    jobs.forEach((job, place) => {
      if (!shown.has(job.id)) shown.set(job.id, jobCard(job, { begin, look, open: place < OPEN_AT_FIRST }));
      const one = shown.get(job.id);
      if (list.children[place] !== one.node) list.insertBefore(one.node, list.children[place] ?? null);
      one.update(job);
    });
  }

  document.addEventListener("visibilitychange", () => document.hidden || look());
  look();
  return { look };
}

function jobCard(first, { begin, look, open }) {
  const title = element("h3", {}, first.title);
  const state = element("p", { class: "state" });
  const buttons = element("div", { class: "row" });
  const bar = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${first.title}` });
  const pictures = element("ul", { class: "gallery", "aria-label": `Synthetic pictures: ${first.title}` });
  const fold = element("details", { open, ontoggle: () => refresh() }, element("summary", { class: "quietly" }, "Pictures"), pictures);
  const node = element("li", { class: "card pad job", data: { job: first.id } },
    element("div", { class: "top" }, element("div", {}, title, state), buttons), bar, fold);
  let job = first;
  let has = -1;
  let said = "";

  async function refresh() {
    if (!fold.open || has === job.made) return;
    has = job.made;
    const found = await api(`/api/jobs/${job.id}/pictures`);
    const focused = [...pictures.querySelectorAll("button")].indexOf(document.activeElement);
    gallery(pictures, found.pictures.map((picture) => described(picture, job, begin)));
    if (focused >= 0) pictures.querySelectorAll("button")[focused]?.focus();
  }

  function update(now) {
    const before = job.state;
    job = now;
    state.replaceChildren(...stateWords(job));
    bar.hidden = ended(job);
    bar.value = job.share;
    fold.hidden = job.made === 0;
    const which = `${job.state} ${job.made > 0}`;
    if (which !== said) buttons.replaceChildren(...actions(job, look));
    said = which;
    if (before !== job.state && ended(job)) say(`${job.title}: ${WORDS[job.state].toLowerCase()}`);
    refresh().catch((error) => error.status === 404 || complain(error));
  }

  return { node, update };
}

function stateWords(job) {
  const parts = [element("strong", { class: job.state === "failed" ? "bad" : null }, WORDS[job.state])];
  const say = (text) => parts.push(` · ${text}`);
  if (job.state === "waiting") say(job.ahead ? `${job.ahead} ${job.ahead === 1 ? "job" : "jobs"} before it` : "next");
  if (job.state === "drawing" && job.made + job.withheld < job.total) say(job.seconds_left === null ? "begins" : `about ${duration(job.seconds_left)} left`);
  if (job.state !== "waiting") say(`${job.made} of ${job.total} ${job.total === 1 ? "picture" : "pictures"}`);
  if (job.withheld) say(`${job.withheld} withheld, too much like a training patch`);
  say(`seed ${job.request.seed}`);
  if (job.request.strength !== null) say(`strength ${job.request.strength}`);
  say(new Date(job.time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
  if (job.message) say(job.message);
  return parts;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function actions(job, look) {
  const button = (title, run, kind = "") => element("button", { type: "button", class: kind, onclick: () => run().then(look, complain) }, title);
  const post = (what) => () => api(`/api/jobs/${job.id}/${what}`, { method: "POST" });
  const found = [];
  if (job.made) found.push(element("a", { class: "button", href: `/api/jobs/${job.id}/pictures.zip`, download: "" }, "Download ZIP"));
  if (!ended(job)) return [...found, button("Cancel", post("cancel"))];
  if (job.state !== "done") found.push(button("Go on", post("resume")));
  const remove = async () => {
    if (!confirm(`Delete this job and its ${job.made} pictures from the disk?`)) return;
    await api(`/api/jobs/${job.id}`, { method: "DELETE" });
    toast("The job and its pictures are deleted.");
  };
  return [...found, button("Delete", remove, "danger")];
}

function described({ number, src, record }, job, begin) {
  const name = `drawn/${job.id}/${number}`;
  const origin = record.source === undefined ? [] : record.other
    ? [["Between", `${record.source} and ${record.other}, ${Math.round(100 * record.fraction)} % of the way`], ["Strength", String(record.strength)]]
    : [["Begun from", record.source], ["Strength", String(record.strength)]];
  const put = (mode) => (_, dialog) => { dialog.close(); begin(name, mode); };
  return {
    src,
    text: `Synthetic picture ${number + 1} of ${record.tissue}`,
    note: record.other ? `${Math.round(100 * record.fraction)} %` : undefined,
    facts: [
      ["Synthetic", "drawn by a model; not for diagnosis"], ["Tissue", `${record.tissue} (cluster ${record.cluster}, k = ${record.k})`], ...origin,
      ["Drawn with", `${record.sampler}, ${record.steps} steps, guidance ${record.guidance}`], ["Seed, number", `${record.seed}, ${record.index}`],
      ["Sample", record.sample_id],
    ],
    actions: [
      { title: "More like this", run: put("like") }, { title: "Between…", run: put("between") },
      { title: "Nearest real patch", run: (picture, dialog) => nearest(job.id, number, dialog).catch(complain) }, { title: "As PNG", href: src },
    ],
  };
}

async function nearest(jobId, number, dialog) {
  const place = element("div", { class: "neighbour", role: "status" }, "Looking through the training patches…");
  dialog.querySelector(".neighbour")?.remove();
  dialog.querySelector("dl").after(place);
  const found = await api(`/api/jobs/${jobId}/pictures/${number}/nearest`);
  if (found.patch_id === null) {
    place.replaceChildren("There is no training patch to compare with, or there are too many to look through here.");
    return;
  }
  const verdict = found.threshold === null ? "This run has set no score above which a picture is taken for a copy."
    : found.score > found.threshold ? `That is above ${found.threshold.toFixed(2)}: it would be taken for a copy.`
    : `That is not above ${found.threshold.toFixed(2)}: it is not taken for a copy.`;
  place.replaceChildren(
    element("img", { src: found.src, alt: `Real training patch ${found.patch_id}`, width: 128, height: 128 }),
    element("div", {}, element("p", {}, "Nearest real training patch"), element("p", { class: "soft" }, found.patch_id),
      element("p", {}, `Likeness ${found.score.toFixed(2)} of 1. ${verdict}`)));
}

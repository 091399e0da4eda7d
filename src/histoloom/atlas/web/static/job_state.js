// The jobs as the server has them: one poll for all parts of a page that show them, and what they say of a job.

import { api, showError } from "./common.js";

const POLL_RUNNING = 800; // ms
const POLL_ELSEWHERE = 2500; // ms, on pages that show the jobs in the bar only
export const STATES = { waiting: "Waiting", drawing: "Generating", done: "Done", cancelled: "Cancelled", failed: "Failed", interrupted: "Interrupted" };
export const hasEnded = (job) => !["waiting", "drawing"].includes(job.state);

const listeners = [];
let jobs = null; // the server's last answer
let timer;
let latest = 0; // the number of the last request; an answer to an earlier one is too old
let failing = false; // whether the last request failed: one message tells it, not one at each request

/** Call `show` with all jobs, the newest first, now and whenever the server has answered again. */
export function onJobs(show) {
  listeners.push(show);
  if (jobs !== null) show(jobs);
  else if (listeners.length === 1) poll();
}

/** Ask the server at once. While a job runs it is asked again and again; without one nothing can change but on this page. */
export async function poll() {
  clearTimeout(timer);
  const number = ++latest;
  try {
    const answer = await api("/api/jobs");
    if (number !== latest) return;
    jobs = answer.jobs;
    failing = false;
    for (const show of listeners) show(jobs);
  } catch (error) {
    if (!failing) showError(error);
    failing = true;
  }
  const running = failing || jobs.some((job) => !hasEnded(job));
  const often = document.getElementById("jobs") && !failing;
  if (number === latest && running && !document.hidden) timer = setTimeout(poll, often ? POLL_RUNNING : POLL_ELSEWHERE);
}

document.addEventListener("visibilitychange", () => document.hidden || poll());

/** The address of a job on the page that generates, or of a field on the page that paints; of all jobs where none is given. */
export function jobAddress(job) {
  const { k } = document.body.dataset;
  return `${job?.painted ? "/paint" : "/draw"}${k ? `?k=${k}` : ""}#${job ? `job-${job.id}` : "queue-title"}`;
}

/** The pictures that stand for a job: what it starts from, or the first ones that it made. */
export function jobThumbs({ sources, first }) {
  return sources.length ? sources : first.slice(0, 2).map((src) => ({ src, title: "" }));
}

/** The title in words; what a job starts from is shown beside it (`jobThumbs`). */
export function jobTitle({ title, total, request, sources }) {
  if (sources.length === 0) return title;
  if (request.between) return `${total} between these two`;
  const tissues = request.tissues.length ? `, ${request.tissues.join(", ")}` : "";
  return `${total} similar to this ${sources[0].real && !sources[0].name.startsWith("own/") ? "patch" : "picture"}${tissues}`;
}

/** A strength, the share of the process that is made anew, in words: from similar to free. */
export function strengthText(strength) {
  const word = strength <= 0.4 ? "very similar" : strength <= 0.6 ? "similar" : strength <= 0.8 ? "rather free" : "free";
  return `${word} (${strength.toFixed(2)})`;
}

/** State and progress in words. */
export function stateText({ state, ahead, made, withheld, total, share, painted, seconds_left: seconds }) {
  const parts = [painted && state === "drawing" ? "Painting" : STATES[state]];
  if (state === "waiting") parts.push(ahead ? `${ahead} ${ahead === 1 ? "job" : "jobs"} before it` : "next");
  if (state === "drawing" && made + withheld < total) parts.push(seconds === null ? "starting" : `about ${duration(seconds)} left`);
  if (painted && !["waiting", "done"].includes(state)) parts.push(`${Math.round(100 * share)} % done`);
  else if (!painted && state !== "waiting") parts.push(`${made} of ${total} ${total === 1 ? "picture" : "pictures"}`);
  return parts.join(" · ");
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// At the right end of every page's bar: the basket for "between two", and the jobs, whose list opens with a click.

import { BASKET_CHANGED, basket, betweenAddress, setBasket } from "./basket.js";
import { api, element, toast } from "./common.js";
import { STATES, hasEnded, jobAddress, jobThumbs, jobTitle, onJobs, stateText } from "./job_state.js";

const SHOWN = 6; // jobs in the list
const tray = document.getElementById("tray");
const basketLink = element("a", { class: "tray-basket", href: betweenAddress(), hidden: true });
const list = element("ul", { class: "tray-jobs" });
const panel = element("div", { id: "tray-panel", class: "tray-panel card", popover: "auto", role: "region", "aria-label": "Jobs" },
  list, element("p", { class: "small" }, element("a", { href: jobAddress() }, "All jobs")));
const count = element("span", {});
const progress = element("progress", { max: 1, value: 0, "aria-label": "Progress of the job" });
const button = element("button", { type: "button", class: "quiet", popovertarget: "tray-panel", hidden: true }, count, progress);
tray.append(basketLink, button, panel);

/** Show the pictures in the basket; one that is gone leaves it. */
async function showBasket() {
  const names = basket();
  const found = await Promise.allSettled(names.map((name) => api(`/api/draw/source?name=${encodeURIComponent(name)}`)));
  const gone = found.map(({ reason }) => [400, 404].includes(reason?.status));
  if (gone.some(Boolean)) return setBasket(names.filter((_, index) => !gone[index]));
  const pictures = found.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  basketLink.hidden = pictures.length === 0;
  basketLink.setAttribute("aria-label", `Between two: ${pictures.length} of 2 pictures chosen; open`);
  basketLink.replaceChildren(
    element("span", { "aria-hidden": "true" }, "Between"),
    ...pictures.map(({ src, title }) => element("img", { src, alt: "", title, width: 28, height: 28 })),
    ...(pictures.length < 2 ? [element("span", { class: "slot-empty", "aria-hidden": "true" })] : []));
}

let before = null; // the jobs' states at the last answer, by id

function showJobs(jobs) {
  const waiting = jobs.filter(({ state }) => state === "waiting").length;
  const drawing = jobs.find(({ state }) => state === "drawing");
  button.hidden = jobs.length === 0;
  progress.hidden = !drawing;
  progress.value = drawing?.share ?? 0;
  count.textContent = drawing ? `Job ${Math.round(100 * drawing.share)} %${waiting ? `, ${waiting} waiting` : ""}` : waiting ? `Jobs: ${waiting} waiting` : "Jobs";

  const focused = document.activeElement?.closest?.(".tray-jobs a")?.getAttribute("href");
  list.replaceChildren(...jobs.slice(0, SHOWN).map((job) => element("li", {}, element("a", { href: jobAddress(job) },
    element("span", { class: "thumbs" }, jobThumbs(job).map(({ src, title }) => element("img", { src, alt: title, width: 36, height: 36 }))),
    element("span", {}, element("strong", {}, jobTitle(job)), element("span", { class: "soft" }, stateText(job)))))));
  if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();

  // Whoever is on another page is told that a job has ended; the page of the jobs says it itself.
  for (const job of jobs) {
    const known = before?.get(job.id);
    if (!known || hasEnded({ state: known }) || !hasEnded(job) || document.getElementById("jobs")) continue;
    toast(`${job.title}: ${STATES[job.state].toLowerCase()}.`, { action: { title: "Show", run: () => { location.href = jobAddress(job); } } });
  }
  before = new Map(jobs.map(({ id, state }) => [id, state]));
}

panel.addEventListener("click", ({ target }) => target.closest("a") && panel.hidePopover());
document.addEventListener(BASKET_CHANGED, showBasket);
showBasket();
onJobs(showJobs);

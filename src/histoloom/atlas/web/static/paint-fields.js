// The list of painted fields: a card for each, with its progress, its picture and its files.

import { announce, api, element, enlarge, showError, toast } from "./common.js";
import { STATES, hasEnded, onJobs, poll, stateText } from "./job_state.js";

/** Keep `list` up to date; `empty` is shown while there are no fields. `useLayout(job)` puts a field's layout on the surface, `titleOf(name)` is the title of a tissue. Returns {show}. */
export function showFields(list, { empty, mpp, titleOf, useLayout }) {
  const cards = new Map(); // by job id
  let asked = location.hash;
  onJobs((jobs) => {
    const fields = jobs.filter((job) => job.painted);
    empty.hidden = fields.length > 0;
    for (const [id, card] of cards) {
      if (fields.some((job) => job.id === id)) continue;
      card.node.remove();
      cards.delete(id);
    }
    fields.forEach((job, index) => {
      if (!cards.has(job.id)) cards.set(job.id, fieldCard(job, { mpp, titleOf, useLayout }));
      const card = cards.get(job.id);
      if (list.children[index] !== card.node) list.insertBefore(card.node, list.children[index] ?? null);
      card.update(job);
    });
    if (asked) cards.get(asked.replace("#job-", ""))?.node.scrollIntoView();
    asked = "";
  });
  return { show: (id) => cards.get(id)?.node.scrollIntoView({ block: "nearest" }) };
}

/** One field's card: {node, update(job)}. */
function fieldCard(job, { mpp, titleOf, useLayout }) {
  const tissues = job.request.tissues.map(titleOf).join(", ");
  const [width, height] = job.painted.size;
  const um = (px) => Math.round(px * mpp).toLocaleString("en");
  const picture = element("div", { class: "field-picture" });
  const state = element("p", { class: "state" });
  const buttons = element("div", { class: "row" }), files = element("ul", { class: "files", "aria-label": "Files" });
  const progress = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${job.title}` });
  const node = element("li", { class: "card pad job", id: `job-${job.id}` }, picture,
    element("div", { class: "field-about" },
      element("h3", {}, `${width.toLocaleString("en")} × ${height.toLocaleString("en")} px`),
      element("p", { class: "small soft" }, `${um(width)} × ${um(height)} µm · ${tissues}`),
      state, progress, buttons, files,
      element("details", { class: "small" }, element("summary", {}, "On the command line"),
        element("p", { class: "soft" }, "This command continues the field where it was stopped, or paints it again from its layout:"),
        element("pre", {}, element("code", { tabindex: "0" }, job.painted.command)))));
  let shown = "";

  function update(latest) {
    const before = job.state;
    job = latest;
    const [first, ...rest] = stateText(job).split(" · ");
    const facts = [...rest, `seed ${job.request.seed}`, new Date(job.time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }), ...(job.message ? [job.message] : [])];
    state.replaceChildren(element("strong", { class: job.state === "failed" ? "bad" : null }, first), ` · ${facts.join(" · ")}`);
    progress.hidden = job.state === "done" || (hasEnded(job) && job.share === 0);
    progress.value = job.share;
    if (before !== job.state && hasEnded(job)) announce(`${job.title}: ${STATES[job.state].toLowerCase()}`);
    const now = `${job.state} ${job.painted.files.length}`;
    if (shown === now) return;
    shown = now;
    picture.replaceChildren(...pictureOf(job, tissues));
    buttons.replaceChildren(...buttonsOf(job, useLayout));
    files.replaceChildren(...job.painted.files.map(({ title, href }) => element("li", {}, element("a", { href, download: "" }, title))));
  }

  return { node, update };
}

function pictureOf(job, tissues) {
  const { picture } = job.painted;
  if (!picture) return [];
  const entry = { src: picture, text: `Synthetic field of ${tissues}`, facts: [["Synthetic", "painted by a model; not for diagnosis"], ["Tissues", tissues], ["Seed", job.request.seed]], actions: [{ title: "Look at it at any size", href: job.painted.page }] };
  return [element("button", { type: "button", class: "picture", "aria-haspopup": "dialog", onclick: () => enlarge([entry], 0) },
    element("img", { src: picture, alt: `Synthetic field of ${tissues}`, loading: "lazy" }))];
}

function buttonsOf(job, useLayout) {
  const button = (title, run, kind = "") => element("button", { type: "button", class: kind, onclick: () => run().catch(showError).finally(poll) }, title);
  const post = (action) => api(`/api/jobs/${job.id}/${action}`, { method: "POST" });
  const remove = async () => {
    if (!confirm("Delete this field and its files from the disk?")) return;
    await api(`/api/jobs/${job.id}`, { method: "DELETE" });
    toast("The field and its files are deleted.");
  };
  const use = button("Use its layout", () => useLayout(job));
  if (!hasEnded(job)) return [button("Cancel", () => post("cancel")), use];
  return [
    ...(job.painted.page ? [element("a", { class: "button", href: job.painted.page }, "Look at it")] : []),
    ...(job.state === "done" ? [] : [button("Continue", () => post("resume"))]),
    use, button("Delete", remove, "danger")];
}

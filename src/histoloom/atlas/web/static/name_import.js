// Import of a table of names: choose a file; what is wrong with it is listed row by row, and nothing is taken then.

import { api, complain, element, toast } from "./common.js";

const LARGEST = 700_000; // bytes; in base64 they still fit a request

export function importing({ button, file, dialog, body, whose, done }) {
  let data = "";

  async function chosen() {
    const [found] = file.files;
    file.value = "";
    if (!found) return;
    if (found.size > LARGEST) {
      toast(`The table is too large for this page (${found.size} bytes); use histoloom names RUN --import FILE.csv`, { problem: true });
      return;
    }
    data = base64(new Uint8Array(await found.arrayBuffer()));
    body.replaceChildren(
      element("p", {}, "Take the names in ", element("strong", {}, found.name), "? Empty cells change nothing, and one Undo takes it all back."),
      element("div", { class: "row" },
        element("button", { type: "button", class: "primary", onclick: () => run({ rater: whose() }) }, `As names of ${whose()}`),
        element("button", { type: "button", onclick: () => run({}) }, "As names of the raters in the table"),
        cancel()));
    dialog.showModal();
  }

  async function take(how) {
    const found = await api("/api/names/import", { body: { data, ...how } });
    if (found.problems.length) {
      refused(found.problems, how);
      return;
    }
    dialog.close();
    await done();
    toast(`${found.changes} changes from ${found.rows} rows with names; ${found.empty} empty rows`);
  }

  function refused(problems, how) {
    const forced = !how.force && problems.some((line) => line.includes("force imports it anyway"));
    body.replaceChildren(
      element("p", {}, "Nothing was taken:"),
      element("ul", { class: "problems", tabindex: "0", "aria-label": "Problems" }, problems.map((line) => element("li", {}, line))),
      element("div", { class: "row" },
        forced ? element("button", { type: "button", class: "danger", onclick: () => run({ ...how, force: true }) }, "Take it all the same") : null,
        cancel()));
    body.querySelector("button").focus();
  }

  const run = (how) => take(how).catch(complain);
  const cancel = () => element("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  button.addEventListener("click", () => file.click());
  file.addEventListener("change", () => chosen().catch(complain));
}

function base64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 8192) text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  return btoa(text);
}

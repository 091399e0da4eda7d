// The import of a table of names. If any row has a problem, all problems are listed and nothing is imported.

import { api, element, showError, toast } from "./common.js";

const MAX_BYTES = 700_000; // in base64 they still fit into a request

/** `getRater()` returns the rater's name; `onImported()` is called after an import. */
export function importDialog({ button, file, dialog, body, getRater, onImported }) {
  let data = ""; // the table in base64

  const run = (request) => importTable(request).catch(showError);
  const cancelButton = () => element("button", { type: "button", onclick: () => dialog.close() }, "Cancel");

  async function openDialog() {
    const [table] = file.files;
    file.value = "";
    if (!table) return;
    if (table.size > MAX_BYTES) {
      toast(`The table is too large for this page (${table.size} bytes); use histoloom names RUN --import FILE.csv`, { problem: true });
      return;
    }
    const bytes = new Uint8Array(await table.arrayBuffer());
    let binary = "";
    for (let start = 0; start < bytes.length; start += 8192) binary += String.fromCharCode(...bytes.subarray(start, start + 8192));
    data = btoa(binary);
    body.replaceChildren(
      element("p", {}, "Import the names in ", element("strong", {}, table.name), "? Empty cells change nothing. One undo takes back the whole import."),
      element("div", { class: "row" },
        element("button", { type: "button", class: "primary", onclick: () => run({ rater: getRater() }) }, `As names of ${getRater()}`),
        element("button", { type: "button", onclick: () => run({}) }, "As names of the raters in the table"),
        cancelButton()));
    dialog.showModal();
  }

  async function importTable(request) {
    const result = await api("/api/names/import", { body: { data, ...request } });
    if (result.problems.length) {
      showProblems(result.problems, request);
      return;
    }
    dialog.close();
    await onImported();
    toast(`${result.changes} changes from ${result.rows} rows with names; ${result.empty} empty rows`);
  }

  function showProblems(problems, request) {
    const canForce = !request.force && problems.some((line) => line.includes("force imports it anyway"));
    body.replaceChildren(
      element("p", {}, "Nothing was imported:"),
      element("ul", { class: "problems", tabindex: "0", "aria-label": "Problems" }, problems.map((line) => element("li", {}, line))),
      element("div", { class: "row" },
        canForce ? element("button", { type: "button", class: "danger", onclick: () => run({ ...request, force: true }) }, "Import anyway") : null,
        cancelButton()));
    body.querySelector("button").focus();
  }

  button.addEventListener("click", () => file.click());
  file.addEventListener("change", () => openDialog().catch(showError));
}

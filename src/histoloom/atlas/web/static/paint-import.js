// Opening a layout: a GeoJSON, or an indexed PNG with its legend, is read by the server as the command line reads it.

import { api, openDialog, showError } from "./common.js";

const MOST_BYTES = 60_000_000, MOST_LEGEND = 8000; // as the server
const byId = (id) => document.getElementById(id);

/** Call `use(layout, empty)` with what a file holds. `k`: number of groups. */
export function importDialog({ k, use }) {
  const dialog = byId("import-dialog"), file = byId("import-file"), legend = byId("import-legend"), mpp = byId("import-mpp"), problem = byId("import-problem");
  const isPng = () => /\.png$/i.test(file.files[0]?.name ?? "");

  /** What is missing or wrong before anything is sent, and the field; null where all is right. */
  function wrong() {
    const [chosen] = file.files;
    if (!chosen) return [file, "Choose a file."];
    if (chosen.size > MOST_BYTES) return [file, `${chosen.name} has more than ${MOST_BYTES / 1e6} MB; simplify its outlines.`];
    if (isPng() && !legend.files[0]) return [legend, "Choose the legend too: the JSON file that names the values of the PNG."];
    if (isPng() && legend.files[0].size > MOST_LEGEND) return [legend, "The legend is too long; it names each value once."];
    if (!(Number(mpp.value) > 0)) return [mpp, "Enter the µm/px of the file."];
    return null;
  }

  async function open(event) {
    event.preventDefault();
    const found = wrong();
    for (const field of [file, legend, mpp]) field.setAttribute("aria-invalid", field === found?.[0]);
    problem.textContent = found?.[1] ?? "";
    if (found) return found[0].focus();
    const query = new URLSearchParams({ k, mpp: mpp.value });
    if (isPng()) query.set("legend", await legend.files[0].text());
    const body = new Blob([file.files[0]], { type: isPng() ? "image/png" : "application/geo+json" });
    byId("import-use").disabled = true;
    try {
      const { layout, empty } = await api(`/api/paint/import?${query}`, { file: body });
      dialog.close();
      use(layout, empty);
    } catch (error) {
      if (error.status >= 400 && error.status < 500) problem.textContent = error.message;
      else showError(error);
    } finally {
      byId("import-use").disabled = false;
    }
  }

  file.addEventListener("change", () => { byId("legend-field").hidden = !isPng(); });
  byId("import-form").addEventListener("submit", open);
  byId("import-cancel").addEventListener("click", () => dialog.close());
  byId("open-import").addEventListener("click", () => { problem.textContent = ""; openDialog(dialog); });
}

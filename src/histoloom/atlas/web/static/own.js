// The user's own pictures on the page that generates: a file is added with its um/px, and those that are there can be used again.

import { announce, api, element, showError } from "./common.js";

const MAX_BYTES = 60_000_000; // as the server
const byId = (id) => document.getElementById(id);
const list = byId("own-list"), problem = byId("own-problem"), file = byId("own-file"), mpp = byId("own-mpp");
const tissue = byId("own-tissue"); // only where the generator cannot tell the tissue of a picture

/** Call `use(source)` with a picture that the user has added or chosen. `tissues` are those of the form, `k` their number of groups. */
export async function showOwn({ tissues, k, use }) {
  tissue?.replaceChildren(...tissues.map(({ title }, index) => element("option", { value: index }, title)));
  byId("own-add").addEventListener("click", () => add({ tissues, k, use }));
  mpp.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would send the whole form
    byId("own-add").click();
  });
  await refresh(use);
}

async function refresh(use) {
  const pictures = await api("/api/draw/own");
  list.replaceChildren(...pictures.map((picture) => element("li", {},
    element("button", { type: "button", title: picture.title, onclick: () => use(picture) }, element("img", { src: picture.src, alt: `Use ${picture.title}`, width: 72, height: 72 })),
    element("button", { type: "button", class: "remove", "aria-label": `Remove ${picture.title}`, onclick: () => remove(picture, use).catch(showError) }, "×"))));
}

async function remove(picture, use) {
  await api(`/api/draw/${picture.name}`, { method: "DELETE" });
  announce(`${picture.title} is removed`);
  await refresh(use);
}

/** What is missing or wrong before anything is sent, and the field; null where all is right. */
function wrong() {
  const [chosen] = file.files;
  if (!chosen) return [file, "Choose a PNG or JPEG file."];
  if (chosen.size > MAX_BYTES) return [file, `${chosen.name} has more than ${MAX_BYTES / 1e6} MB; cut out the part that matters.`];
  if (!(Number(mpp.value) > 0)) return [mpp, "Enter the um/px of the file: without it nobody knows how large its cells are."];
  return null;
}

async function add({ tissues, k, use }) {
  const found = wrong();
  for (const field of [file, mpp]) field.setAttribute("aria-invalid", field === found?.[0]);
  problem.textContent = found?.[1] ?? "";
  if (found) return found[0].focus();
  const query = new URLSearchParams({ title: file.files[0].name, mpp: mpp.value, k });
  if (tissue) query.set("cluster", tissues[tissue.value].clusters[0]);
  byId("own-add").disabled = true;
  try {
    const picture = await api(`/api/draw/own?${query}`, { file: file.files[0] });
    announce(`${picture.title} is chosen`);
    file.value = "";
    await refresh(use);
    await use(picture);
  } catch (error) {
    if (error.status >= 400 && error.status < 500) problem.textContent = error.message;
    else showError(error);
  } finally {
    byId("own-add").disabled = false;
  }
}

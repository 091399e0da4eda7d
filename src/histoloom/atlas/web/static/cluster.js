// A group's galleries: its real patches in one of three orders, and its samples if it has clusters. The address holds the page of each.

import { drawActions } from "./basket.js";
import { announce, api, element, gallery, refreshParts, setQuery, showError } from "./common.js";
import { CORRECTED } from "./correct.js";
import { patchPicture } from "./patch.js";
import { patchSelection } from "./select_patches.js";

const patchList = document.getElementById("real");
const sampleList = document.getElementById("samples");
const orderButtons = [...document.querySelectorAll("[data-order]")];
const { k, cluster, source } = patchList.dataset;
const onlyCorrected = document.getElementById("only-corrected");
const ORDERS = {
  typical: "The most probable first. Patches of equal probability are mixed.",
  random: "A random order, the same each time.",
  borderline: "First those that are almost as probable in another cluster.",
};

const filterSelects = [...document.querySelectorAll("#real-filters select")];

const select = patchSelection({ list: patchList, button: document.getElementById("select-patches"), panel: document.getElementById("selection"), k });
const query = new URLSearchParams(location.search);
let corrected = query.get("corrected") === "1"; // whether only those are shown that experts sent here or away
let shownPage = 0;
let order = query.get("order") in ORDERS ? query.get("order") : "typical";
const pageNumber = (text) => (/^\d{1,6}$/.test(text ?? "") ? Number(text) : 0);

/** Show a page of the patches; returns what to announce. */
async function showPatches(page) {
  const filters = Object.fromEntries(filterSelects.map(({ name, value }) => [name, value || null]));
  const filterQuery = new URLSearchParams(Object.entries(filters).filter(([, value]) => value !== null));
  const response = await api(`${source}order=${order}&page=${page}&corrected=${Number(corrected)}&${filterQuery}`);
  if (page && page >= response.pages) return showPatches(response.pages - 1); // the last one of the page was sent away
  shownPage = page;
  const pictures = response.patches.map((patch) => patchPicture(patch, { k }));
  gallery(patchList, pictures.map((picture) => ({ ...picture, note: picture.badge ? null : order === "borderline" ? picture.borderlineNote : picture.note })));
  select(response.patches.map((patch) => patch.id));
  onlyCorrected.hidden = !corrected && (!response.corrected || response.cluster === null); // all of a group without clusters are
  onlyCorrected.textContent = `Corrected (${response.corrected.toLocaleString("en")})`;
  onlyCorrected.setAttribute("aria-pressed", String(corrected));
  for (const button of orderButtons) button.setAttribute("aria-pressed", button.dataset.order === order);
  const what = corrected ? "patches that experts sent here or away." : "patches.";
  document.getElementById("real-order").textContent = `${response.total.toLocaleString("en")} ${what} ${orderButtons.length ? ORDERS[order] : ""}`;
  for (const link of document.querySelectorAll("[data-sheet]")) link.href = `/compare.${link.dataset.sheet}?k=${k}&left=${cluster}&right=&order=${order}&page=${page}&${filterQuery}`;
  fillPager("real-pager", response, (next) => turnPage(showPatches, next, patchList));
  setQuery({ ...filters, order: order === "typical" ? null : order, corrected: corrected ? 1 : null, page: page || null });
  return `${response.total} ${orderButtons.length ? order : "corrected"} patches, page ${page + 1} of ${response.pages}`;
}

/** Show a page of the samples; returns what to announce. */
async function showSamples(page) {
  const response = await api(`/api/clusters/${k}/${cluster}/samples?page=${page}`);
  gallery(sampleList, response.samples.map((sample) => ({
    src: sample.src,
    text: `Synthetic patch number ${sample.index + 1}`,
    facts: [["Synthetic", "not a photograph of tissue"], ["Sample", sample.id]],
    actions: drawActions(`samples/${sample.id}`, { k }),
  })));
  fillPager("samples-pager", response, (next) => turnPage(showSamples, next, sampleList));
  setQuery({ samples: page || null });
  return `samples, page ${page + 1} of ${response.pages}`;
}

function fillPager(id, { page, pages, total }, goTo) {
  const button = (target, title, sign) => element("button", {
    type: "button", disabled: target < 0 || target >= pages, "aria-label": title, onclick: () => goTo(target),
  }, sign);
  const bar = document.getElementById(id);
  bar.hidden = pages < 2;
  bar.replaceChildren(
    button(page - 1, "The previous page", "←"),
    element("span", {}, `${page + 1} of ${pages}`),
    button(page + 1, "The next page", "→"),
    element("span", { class: "soft small" }, `${total.toLocaleString("en")} in all`));
}

async function turnPage(show, page, list) {
  try {
    announce(await show(page));
    list.querySelector("button")?.focus();
  } catch (error) {
    showError(error);
  }
}

for (const button of orderButtons) {
  button.addEventListener("click", () => {
    order = button.dataset.order;
    showPatches(0).then(announce, showError);
  });
}
for (const filter of filterSelects) filter.addEventListener("change", () => showPatches(0).then(announce, showError));
onlyCorrected.addEventListener("click", () => {
  corrected = !corrected;
  showPatches(0).then(announce, showError);
});

/** Corrections have changed: show what the group has now. A group without clusters may be no more. */
async function refresh() {
  try {
    await showPatches(shownPage);
    await refreshParts("#group-summary");
  } catch (error) {
    if (error.status !== 404) throw error;
    patchList.replaceChildren();
    document.getElementById("real-order").textContent = "All corrections to this group are undone; it has no patches.";
  }
}

document.addEventListener(CORRECTED, () => refresh().catch(showError));
showPatches(pageNumber(query.get("page"))).catch(showError);
if (Number(sampleList?.dataset.total)) showSamples(pageNumber(query.get("samples"))).catch(showError);

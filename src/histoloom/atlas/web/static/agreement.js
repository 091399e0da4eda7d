// The agreement of the raters: whose names count, the kappas, and all names side by side.

import { api, element, showError, toast } from "./common.js";

const format = (value) => (value === null ? "–" : value.toFixed(2));

/** Fill `container`; `colours` are those of the clusters. */
export async function showAgreement(container, { k, rater, colours }) {
  const response = await api(`/api/names/${k}/agreement`);
  const hadFocus = container.contains(document.activeElement);
  const setReference = async (reference) => {
    await api("/api/names/reference", { body: { rater, reference } });
    await showAgreement(container, { k, rater, colours });
  };
  const setSynonyms = async (rows) => {
    try {
      await api("/api/names/synonyms", { body: { rows } });
      container.querySelector("[data-edited]")?.removeAttribute("data-edited");
      await showAgreement(container, { k, rater, colours });
      toast("The synonyms are saved.");
    } catch (error) {
      showError(error);
    }
  };
  const cards = [referenceCard(response, setReference), kappaCard(response), namesCard(response, colours)];
  const edited = container.querySelector("[data-edited]");
  if (edited) {
    // What is being typed stays when another rater changes something, and so does the cursor in it: the card is not moved.
    while (edited.previousSibling) edited.previousSibling.remove();
    edited.before(...cards);
  } else {
    container.replaceChildren(...cards, synonymsCard(response, setSynonyms));
  }
  if (hadFocus && !container.contains(document.activeElement)) container.querySelector("select").focus();
}

/** The table of words that mean the same, which all raters share. */
function synonymsCard({ synonyms }, setSynonyms) {
  const rows = element("tbody", {});
  const cell = (label, value) => element("td", {}, element("input", { "aria-label": label, maxlength: "200", list: "suggestions", value }));
  const addRow = ({ name, means }) => {
    const row = element("tr", {}, cell("Name", name), element("td", {}, "means the same as"), cell("Means the same as", means),
      element("td", {}, element("button", { type: "button", class: "quiet", onclick: () => row.remove() }, "Remove")));
    rows.append(row);
    return row;
  };
  synonyms.forEach(addRow);
  const table = () => [...rows.querySelectorAll("tr")].map((row) => [...row.querySelectorAll("input")].map((input) => input.value.trim()))
    .filter(([name, means]) => name || means).map(([name, means]) => ({ name, means }));
  const card = element("div", { class: "card scroll", oninput: () => { card.dataset.edited = ""; }, onclick: () => { card.dataset.edited = ""; } },
    element("h2", {}, "Words that mean the same"),
    element("p", { class: "soft" }, "Agreement takes synonyms for one name. All raters share this table; the names stay as they were given."),
    element("table", {}, rows),
    element("div", { class: "row" },
      element("button", { type: "button", onclick: () => addRow({ name: "", means: "" }).querySelector("input").focus() }, "Add a synonym"),
      element("button", { type: "button", class: "primary", onclick: () => setSynonyms(table()) }, "Save the synonyms")));
  return card;
}

/** The choice of whose names count. */
function referenceCard({ raters, reference }, setReference) {
  const options = [["", "The latest name by anyone"], ...raters.map((name) => [name, `Only the names of ${name}`])];
  if (reference && !raters.includes(reference)) options.push([reference, `Only the names of ${reference}`]);
  const select = element("select", { id: "reference", onchange: () => setReference(select.value).catch(showError) },
    options.map(([value, text]) => element("option", { value, selected: value === reference }, text)));
  return element("div", { class: "card" },
    element("h2", {}, "Whose names count"),
    element("p", { class: "soft" }, "Samples, maps, the report and the generator use the names that count. The names of all raters are kept in any case."),
    element("div", { class: "row" }, element("label", { for: "reference" }, "What counts"), select,
      element("a", { class: "button", href: "/api/names/table.csv", download: "" }, "Export the names of all")));
}

function kappaCard({ agreement }) {
  const card = element("div", { class: "card scroll" }, element("h2", {}, "Agreement"));
  if (!agreement.length) {
    card.append(element("p", {}, "Agreement needs two raters. A second rater names the same groups under another name (the button with your name above)."));
    return card;
  }
  const columns = ["raters", "groups", "kappa, every group equal", "95 % interval", "kappa, by patches", "95 % interval"];
  card.append(element("table", {},
    element("caption", {}, "Cohen's kappa of two raters, Fleiss' kappa of three and more: 1 means the same names, 0 the agreement expected by chance. Case and spaces do not count. Only groups that all of the raters named are compared."),
    element("thead", {}, element("tr", {}, columns.map((text, index) => element("th", { scope: "col", class: index ? null : "text" }, text)))),
    element("tbody", {}, agreement.map((row) => element("tr", {},
      element("th", { scope: "row", class: "text" }, `${row.raters.join(" and ")} (${row.kind})`), element("td", {}, String(row.clusters)),
      ...[row.equal, row.by_patches].flatMap((kappa) => [
        element("td", {}, kappa ? format(kappa.value) : "–"),
        element("td", {}, kappa && kappa.value !== null ? `${format(kappa.low)} to ${format(kappa.high)}` : "–"),
      ]))))));
  return card;
}

function namesCard({ k, raters, clusters }, colours) {
  const flag = (text) => (text ? element("span", { class: "flag" }, text) : null);
  const differing = clusters.filter((cluster) => cluster.differ).length;
  return element("div", { class: "card scroll" },
    element("h2", {}, "Names side by side"),
    element("table", {},
      element("caption", {}, differing ? `Shaded: ${differing} of ${k} groups that raters named differently.` : "No group was named differently."),
      element("thead", {}, element("tr", {}, ["group", "patches", "counts", ...raters].map((text, index) =>
        element("th", { scope: "col", class: index > 1 ? "text" : null }, text)))),
      element("tbody", {}, clusters.map((row) => element("tr", {},
        element("th", { scope: "row" }, element("span", { class: "swatch", vars: { "--c": colours[row.cluster] }, "aria-hidden": "true" }), String(row.cluster)),
        element("td", {}, row.patches.toLocaleString("en")),
        element("td", { class: "text" }, row.counts || "–", flag(row.flag)),
        ...raters.map((name) => element("td", { class: row.differ ? "text differ" : "text" }, row.names[name] || "–", flag(row.flags[name]))))))));
}

// All raters side by side: what each calls every cluster, where they differ, how far they agree, and whose names count.

import { api, complain, element } from "./common.js";

const number = (value) => (value === null ? "–" : value.toFixed(2));

/** `colours` are those in which the clusters are drawn. */
export async function showAgreement(place, { k, rater, colours }) {
  const found = await api(`/api/names/${k}/agreement`);
  const choosing = place.contains(document.activeElement);
  place.replaceChildren(counting(found, { k, rater, colours, place }), kappas(found), side(found, colours));
  if (choosing) place.querySelector("select").focus();
}

function counting(found, { k, rater, colours, place }) {
  const options = [["", "The latest name by anyone"], ...found.raters.map((name) => [name, `Only the names of ${name}`])];
  if (found.reference && !found.raters.includes(found.reference)) options.push([found.reference, `Only the names of ${found.reference}`]);
  const choose = async () => {
    await api("/api/names/reference", { body: { rater, reference: select.value } });
    await showAgreement(place, { k, rater, colours });
  };
  const select = element("select", { id: "reference", onchange: () => choose().catch(complain) },
    options.map(([value, text]) => element("option", { value, selected: value === found.reference }, text)));
  return element("div", { class: "card" },
    element("h2", {}, "Whose names count"),
    element("p", { class: "soft" }, "Samples, maps, the report and the generator use the names that count. Everybody's own names are kept in any case."),
    element("div", { class: "row" }, element("label", { for: "reference" }, "What counts"), select,
      element("a", { class: "button", href: "/api/names/table.csv", download: "" }, "Export the names of all")));
}

function kappas(found) {
  const head = ["raters", "clusters", "kappa, every cluster equal", "95 % interval", "kappa, by patches", "95 % interval"];
  const card = element("div", { class: "card scroll" }, element("h2", {}, "Agreement"));
  if (!found.agreement.length) {
    card.append(element("p", {}, "It takes two raters. Another one names the same clusters under another name (the button with your name above)."));
    return card;
  }
  card.append(element("table", {},
    element("caption", {}, "Cohen's kappa of two raters, Fleiss' kappa of three and more: 1 is the same names, 0 what chance gives. Names are the same where they differ only in case and spaces; compared are the clusters that all of them named."),
    element("thead", {}, element("tr", {}, head.map((text, place) => element("th", { scope: "col", class: place ? null : "text" }, text)))),
    element("tbody", {}, found.agreement.map((one) => element("tr", {},
      element("th", { scope: "row", class: "text" }, `${one.raters.join(" and ")} (${one.kind})`), element("td", {}, String(one.clusters)),
      ...[one.equal, one.by_patches].flatMap((kappa) => [
        element("td", {}, kappa ? number(kappa.value) : "–"),
        element("td", {}, kappa && kappa.value !== null ? `${number(kappa.low)} to ${number(kappa.high)}` : "–"),
      ]))))));
  return card;
}

function side(found, colours) {
  const flag = (text) => (text ? element("span", { class: "flag" }, text) : null);
  const differing = found.clusters.filter((one) => one.differ).length;
  return element("div", { class: "card scroll" },
    element("h2", {}, "Names side by side"),
    element("table", {},
      element("caption", {}, differing ? `Shaded: ${differing} of ${found.k} clusters that raters named differently.` : "No cluster was named differently."),
      element("thead", {}, element("tr", {}, ["cluster", "patches", "counts", ...found.raters].map((text, place) =>
        element("th", { scope: "col", class: place > 1 ? "text" : null }, text)))),
      element("tbody", {}, found.clusters.map((one) => element("tr", {},
        element("th", { scope: "row" }, element("span", { class: "swatch", vars: { "--c": colours[one.cluster] }, "aria-hidden": "true" }), String(one.cluster)),
        element("td", {}, one.patches.toLocaleString("en")),
        element("td", { class: "text" }, one.counts || "–", flag(one.flag)),
        ...found.raters.map((name) => element("td", { class: one.differ ? "text differ" : "text" }, one.names[name] || "–", flag(one.flags[name]))))))));
}

// A cluster's galleries: real patches in three orders, and samples; a page of each is in the address.

import { api, complain, element, gallery, say } from "./common.js";

const real = document.getElementById("real");
const drawn = document.getElementById("samples");
const buttons = [...document.querySelectorAll("[data-order]")];
const { k, cluster } = real.dataset;
const MEANING = {
  typical: "The most probable first; those that are equally probable are mixed.",
  random: "As they come, always in the same order.",
  borderline: "First those that are almost as probable in another cluster.",
};

const asked = new URLSearchParams(location.search);
let order = asked.get("order") in MEANING ? asked.get("order") : "typical";
const whole = (text) => (/^\d{1,6}$/.test(text ?? "") ? Number(text) : 0);

async function showReal(page) {
  const found = await api(`/api/clusters/${k}/${cluster}/patches?order=${order}&page=${page}`);
  gallery(real, found.patches.map(described));
  for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.order === order);
  document.getElementById("real-order").textContent = MEANING[order];
  pager("real-pager", found, (wanted) => turn(showReal, wanted, real));
  remember({ order: order === "typical" ? null : order, page: page || null });
  return `${order} patches, page ${page + 1} of ${found.pages}`;
}

async function showSamples(page) {
  const found = await api(`/api/clusters/${k}/${cluster}/samples?page=${page}`);
  gallery(drawn, found.samples.map((sample) => ({
    src: sample.src,
    text: `Synthetic patch number ${sample.index + 1}`,
    facts: [["Synthetic", "not a photograph of tissue"], ["Sample", sample.id]],
  })));
  pager("samples-pager", found, (wanted) => turn(showSamples, wanted, drawn));
  remember({ samples: page || null });
  return `samples, page ${page + 1} of ${found.pages}`;
}

function described(patch) {
  const share = (value) => value.toFixed(value > 0.995 && value < 1 ? 4 : 2);
  return {
    src: patch.src,
    text: `Patch of ${patch.slide_id} at ${patch.x}, ${patch.y}; probability ${share(patch.probability)}`,
    note: order === "borderline" ? `${share(patch.probability)}, ${patch.second}: ${share(patch.second_probability)}` : share(patch.probability),
    facts: [
      ["Slide file", patch.slide_id], ["Slide", patch.slide], ["Patient", patch.patient], ["Place", `${patch.x}, ${patch.y} px`],
      ["Probability", share(patch.probability)], ["Next", `cluster ${patch.second}, ${share(patch.second_probability)}`],
      ["Used for", patch.held_out ? "evaluation (held out)" : "training"],
    ],
    actions: [{ title: "As PNG", href: patch.src.replace(/\.jpg(?=\?|$)/, ".png") }],
  };
}

function pager(id, { page, pages, total }, go) {
  const turnTo = (wanted, title, sign) => element("button", {
    type: "button", disabled: wanted < 0 || wanted >= pages, "aria-label": title, onclick: () => go(wanted),
  }, sign);
  const bar = document.getElementById(id);
  bar.hidden = pages < 2;
  bar.replaceChildren(
    turnTo(page - 1, "The page before", "←"),
    element("span", {}, `${page + 1} of ${pages}`),
    turnTo(page + 1, "The next page", "→"),
    element("span", { class: "soft small" }, `${total.toLocaleString("en")} in all`));
}

async function turn(show, page, list) {
  try {
    say(await show(page));
    list.querySelector("button")?.focus();
  } catch (error) {
    complain(error);
  }
}

function remember(changes) {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) value === null ? query.delete(key) : query.set(key, value);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    order = button.dataset.order;
    showReal(0).then(say, complain);
  });
}
showReal(whole(asked.get("page"))).catch(complain);
if (Number(drawn.dataset.total)) showSamples(whole(asked.get("samples"))).catch(complain);

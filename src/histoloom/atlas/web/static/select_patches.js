// Selecting several patches of a gallery, over its pages too, and sending them to another group.

import { announce, element } from "./common.js";
import { correctionForm } from "./correct.js";

/**
 * Let `button` switch a gallery (`list`) between enlarging patches and selecting them; `panel` is shown meanwhile. Returns a function to
 * call with the ids of the patches whenever the gallery has been filled.
 */
export function patchSelection({ list, button, panel, k }) {
  const selected = new Set();
  let ids = []; // of the patches on this page
  let on = false;
  let last = -1; // the place that was toggled last, from which Shift extends

  const number = element("p", { role: "status" });
  const all = element("button", { type: "button", onclick: () => change(() => ids.forEach((id) => selected.add(id))) }, "All on this page");
  const none = element("button", { type: "button", onclick: () => change(() => selected.clear()) }, "None");
  const form = correctionForm({
    k, patches: () => [...selected], onSent: () => change(() => selected.clear()), onCancel: () => turn(false), cancelTitle: "Stop",
  });
  panel.append(element("div", { class: "row" }, number, all, none), form);

  /** Mark what is selected, and say how many they are. */
  function mark() {
    list.classList.toggle("selecting", on);
    list.querySelectorAll("li > button").forEach((picture, place) => {
      if (on) picture.setAttribute("aria-pressed", String(selected.has(ids[place])));
      else picture.removeAttribute("aria-pressed");
      if (on) picture.removeAttribute("aria-haspopup");
      else picture.setAttribute("aria-haspopup", "dialog");
    });
    const here = ids.filter((id) => selected.has(id)).length;
    const text = `${selected.size} selected${here < selected.size ? `, ${here} of them on this page` : ""}`;
    if (number.textContent !== text) number.textContent = text;
    form.querySelector("button[type=submit]").disabled = !selected.size;
  }

  function change(action) {
    action();
    mark();
  }

  function turn(wanted) {
    on = wanted;
    selected.clear();
    panel.hidden = !on;
    button.setAttribute("aria-pressed", String(on));
    mark();
    if (on) announce("Select patches: Enter or Space selects, Shift extends, Escape stops.");
    else button.focus();
  }

  function toggle(place, { extend }) {
    const adding = !selected.has(ids[place]);
    const [from, to] = extend && last >= 0 ? [Math.min(last, place), Math.max(last, place)] : [place, place];
    for (const id of ids.slice(from, to + 1)) adding || extend ? selected.add(id) : selected.delete(id);
    last = place;
  }

  button.addEventListener("click", () => turn(!on));
  // In the capture phase: a picture does not learn of the click, which would enlarge it.
  list.addEventListener("click", (event) => {
    const picture = on && event.target.closest("li > button");
    if (!picture) return;
    event.stopPropagation();
    change(() => toggle([...list.children].indexOf(picture.parentElement), { extend: event.shiftKey }));
  }, true);
  for (const part of [list, panel]) {
    part.addEventListener("keydown", (event) => {
      if (!on || event.key !== "Escape") return;
      event.preventDefault();
      turn(false);
    });
  }
  return (shown) => {
    ids = shown;
    last = -1;
    mark();
  };
}

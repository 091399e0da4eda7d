// Corrections of single patches: the form that sends them to another group, and a message that undoes exactly this step.

import { api, element, openDialog, showError, toast } from "./common.js";

export const CORRECTED = "histoloom-corrected"; // the document's event: corrections have changed
const RATER = "histoloom-rater"; // key of the browser's storage, as on the page Name
const [NEW, NONE, OWN] = ["new", "none", "own"]; // choices beside the groups, which are numbered

const patchCount = (n) => `${n.toLocaleString("en")} ${n === 1 ? "patch" : "patches"}`;
const storedRater = () => localStorage.getItem(RATER) ?? "";
let forms = 0; // ids of fields are unique on a page

/** "3 · fat", "Group 3" where it has no name, "fat" where no cluster has the name. */
export function groupTitle({ name, clusters }) {
  if (!clusters.length) return name;
  return name === `cluster ${clusters[0]}` ? `Group ${clusters[0]}` : `${clusters.join(", ")} · ${name}`;
}

/** The name of a group of the API in words: "group 3" where it has none. */
export const groupWords = (name) => name.replace(/^cluster (\d+)$/, "group $1") || "no tissue";

/** "corrected: fat, by Dr A". */
export const badgeText = ({ group, corrected_by: rater }) => `corrected: ${groupWords(group)}, by ${rater}`;

/** Send patches (ids) to a target of the API, as one step. Throws `ApiError`. */
async function send(ids, { k, target, title, rater }) {
  const state = await api(`/api/corrections/${k}`, { body: { rater, patches: ids, target } });
  const counts = !state.reference || state.reference === rater;
  document.dispatchEvent(new CustomEvent(CORRECTED));
  toast(`${patchCount(ids.length)}: ${title}${counts ? "" : `; only the corrections of ${state.reference} count`}`, {
    action: { title: "Undo", run: () => undo(state.step, { k, rater }).catch(showError) }, key: "correction", seconds: 12,
  });
}

/** Undo exactly this step. */
async function undo(step, { k, rater }) {
  await api(`/api/corrections/${k}/undo`, { body: { rater, step } });
  document.dispatchEvent(new CustomEvent(CORRECTED));
  toast("The correction is undone.", { key: "correction", seconds: 4 });
}

/** Send one patch back to its own group, by the rater who was here last; the form asks for one where there is none. */
export function sendBack(id, { k }) {
  const rater = storedRater();
  if (rater) return send([id], { k, target: null, title: "back to its own group", rater }).catch(showError);
  return openCorrection([id], { k, choice: OWN });
}

/** A form that sends `patches()` (ids) to what is chosen in it; `onSent` is called after that, `onCancel` by its second button. */
export function correctionForm({ k, patches, choice = "", question = "These show", onSent, onCancel, cancelTitle = "Cancel" }) {
  const id = (forms += 1);
  const select = element("select", { id: `correct-target-${id}` });
  const name = element("input", { id: `correct-name-${id}`, list: `correct-names-${id}`, maxlength: 200, autocomplete: "off", spellcheck: "true" });
  const names = element("datalist", { id: `correct-names-${id}` });
  const rater = element("input", { id: `correct-rater-${id}`, maxlength: 200, value: storedRater(), autocomplete: "off" });
  const problem = element("p", { class: "problem small", role: "alert" });
  const newName = element("div", { class: "field", hidden: true }, element("label", { for: name.id }, "Name of the group"), name, names);
  const button = element("button", { type: "submit", class: "primary" }, "Send");
  let groups = [];

  const fill = (state) => {
    const chosen = select.value || choice;
    groups = state.groups;
    select.replaceChildren(
      element("option", { value: "" }, "Choose …"),
      ...groups.map((group, place) => element("option", { value: String(place) }, groupTitle(group))),
      element("option", { value: NEW }, "A new group …"), element("option", { value: NONE }, "No tissue"),
      element("option", { value: OWN }, "Their own groups again"));
    select.value = chosen;
    names.replaceChildren(...state.suggestions.map((text) => element("option", { value: text })));
  };
  const load = () => api(`/api/corrections/${k}?${new URLSearchParams({ rater: storedRater() })}`).then(fill, showError);

  const complain = (text, field) => {
    problem.textContent = text;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    const ids = patches(), by = rater.value.trim();
    if (!select.value) return complain("Choose what these patches show.", select);
    if (select.value === NEW && !name.value.trim()) return complain("Enter the name of the group.", name);
    if (!by) return complain("Enter your own name: corrections are saved under it.", rater);
    const group = groups[Number(select.value)];
    const [target, title] = {
      [NEW]: [name.value.trim(), name.value.trim()], [NONE]: ["", "no tissue"], [OWN]: [null, "back to their own groups"],
    }[select.value] ?? [group.clusters[0] ?? group.name, groupTitle(group)];
    localStorage.setItem(RATER, by);
    button.disabled = true; // a second click would be a second step
    try {
      await send(ids, { k, target, title, rater: by });
      name.value = select.value = "";
      newName.hidden = true;
      load();
      onSent?.();
    } catch (error) {
      if (error.status > 0) complain(`Not saved: ${error.message}`, select.value === NEW ? name : select);
      else throw error;
    } finally {
      button.disabled = false;
    }
  };

  select.addEventListener("change", () => {
    newName.hidden = select.value !== NEW;
    if (!newName.hidden) name.focus();
  });
  load();
  return element("form", { class: "correct", autocomplete: "off", novalidate: true, onsubmit: (event) => submit(event).catch(showError) },
    element("div", { class: "field" }, element("label", { for: select.id }, question), select), newName,
    element("div", { class: "field" }, element("label", { for: rater.id }, "Corrected by (your name)"), rater),
    problem,
    element("div", { class: "row" }, button, onCancel ? element("button", { type: "button", onclick: onCancel }, cancelTitle) : null));
}

/** Ask in a dialog where patches (ids) belong; resolves when it is closed. */
export function openCorrection(ids, { k, choice }) {
  const dialog = element("dialog", { class: "correction", "aria-label": "Correct" });
  dialog.append(element("h2", {}, `Correct ${patchCount(ids.length)}`),
    correctionForm({ k, patches: () => ids, choice, question: ids.length === 1 ? "This patch shows" : undefined, onSent: () => dialog.close(), onCancel: () => dialog.close() }));
  return new Promise((resolve) => {
    dialog.addEventListener("close", resolve);
    openDialog(dialog);
    dialog.querySelector("select").focus();
  });
}

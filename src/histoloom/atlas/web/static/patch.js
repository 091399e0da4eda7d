// A real patch in a gallery: what is known of it, and what can be done with it. The same wherever a patch is enlarged.

import { drawActions } from "./basket.js";
import { api } from "./common.js";
import { badgeText, groupWords, openCorrection, sendBack } from "./correct.js";

const probabilityText = (probability) => probability.toFixed(probability > 0.995 && probability < 1 ? 4 : 2);

/** The picture of a patch as `gallery` and `enlarge` take it; `patch` is a patch of the API, at `k` clusters. */
export function patchPicture(patch, { k }) {
  const probability = probabilityText(patch.probability), second = probabilityText(patch.second_probability);
  return {
    id: patch.id,
    src: patch.src,
    text: `Patch of ${patch.slide_id} at ${patch.x}, ${patch.y}; ${patch.corrected_by ? badgeText(patch) : `probability ${probability}`}`,
    note: probability,
    badge: patch.corrected_by ? { text: badgeText(patch), undo: () => sendBack(patch.id, { k }) } : null,
    reload: () => loadPatch(patch.id, { k }),
    borderlineNote: `${probability}, ${patch.second}: ${second}`,
    facts: [
      ["Slide file", patch.slide_id], ["Slide", patch.slide], ["Patient", patch.patient], ["Position", `${patch.x}, ${patch.y} px`],
      ...(patch.corrected_by ? [["Group", groupWords(patch.group)], ["Corrected by", patch.corrected_by], ["The program's group", clusterName(patch.cluster, patch.name)]]
        : [["Group", clusterName(patch.cluster, patch.name)]]),
      ["Probability", probability], ["Second", `group ${patch.second}, ${second}`],
      ["Used for", patch.held_out ? "evaluation (held out)" : "training"],
    ],
    actions: [
      { title: "Correct …", run: (_, dialog, reload) => openCorrection([patch.id], { k }).then(() => dialog.open && reload()) },
      ...(patch.corrected_by ? [{ title: "Undo the correction", run: (_, dialog, reload) => sendBack(patch.id, { k }).then(() => dialog.open && reload()) }] : []),
      ...drawActions(patch.id, { k }),
      { title: "On its slide", href: `/slides/${encodeURIComponent(patch.slide_id)}?k=${k}&cluster=${patch.cluster}&patch=${patch.x},${patch.y}` },
      { title: "To its group", href: patch.page },
      { title: "As PNG", href: patch.src.replace(/\.jpg(?=\?|$)/, ".png") },
    ],
  };
}

/** A picture of which only the address is known; `enlarge` loads the rest when it is shown. */
export function laterPicture({ id, src }, { k }) {
  return { src, text: `Patch ${id}`, load: () => loadPatch(id, { k }) };
}

const loadPatch = async (id, { k }) => patchPicture(await api(`/api/patches/${encodeURIComponent(id)}?k=${k}`), { k });

function clusterName(cluster, name) {
  return name === `cluster ${cluster}` ? `${cluster}` : `${cluster} · ${name}`;
}

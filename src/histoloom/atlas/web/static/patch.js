// A real patch in a gallery: what is known of it, and what can be done with it. The same wherever a patch is enlarged.

import { drawActions } from "./basket.js";
import { api } from "./common.js";

const probabilityText = (probability) => probability.toFixed(probability > 0.995 && probability < 1 ? 4 : 2);

/** The picture of a patch as `gallery` and `enlarge` take it; `patch` is a patch of the API, at `k` clusters. */
export function patchPicture(patch, { k }) {
  const probability = probabilityText(patch.probability), second = probabilityText(patch.second_probability);
  return {
    src: patch.src,
    text: `Patch of ${patch.slide_id} at ${patch.x}, ${patch.y}; probability ${probability}`,
    note: probability,
    borderlineNote: `${probability}, ${patch.second}: ${second}`,
    facts: [
      ["Slide file", patch.slide_id], ["Slide", patch.slide], ["Patient", patch.patient], ["Position", `${patch.x}, ${patch.y} px`],
      ["Group", clusterName(patch.cluster, patch.name)],
      ["Probability", probability], ["Second", `group ${patch.second}, ${second}`],
      ["Used for", patch.held_out ? "evaluation (held out)" : "training"],
    ],
    actions: [
      ...drawActions(patch.id, { k }),
      { title: "On its slide", href: `/slides/${encodeURIComponent(patch.slide_id)}?k=${k}&cluster=${patch.cluster}&patch=${patch.x},${patch.y}` },
      { title: "To its group", href: `/clusters/${k}/${patch.cluster}` },
      { title: "As PNG", href: patch.src.replace(/\.jpg(?=\?|$)/, ".png") },
    ],
  };
}

/** A picture of which only the address is known; `enlarge` loads the rest when it is shown. */
export function laterPicture({ id, src }, { k }) {
  return { src, text: `Patch ${id}`, load: async () => patchPicture(await api(`/api/patches/${encodeURIComponent(id)}?k=${k}`), { k }) };
}

function clusterName(cluster, name) {
  return name === `cluster ${cluster}` ? `${cluster}` : `${cluster} · ${name}`;
}

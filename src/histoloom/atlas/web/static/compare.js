// Galleries of links to slides: each is one stop of the Tab key, as every other gallery, and a click enlarges a patch.

import { arrowKeys, enlarge, refreshParts, showError } from "./common.js";
import { CORRECTED } from "./correct.js";
import { laterPicture } from "./patch.js";

const { k } = document.body.dataset;

/** The patch of a link, which may show it with the tissue about it. */
const pictureOf = (link) => laterPicture({ id: link.dataset.patch, src: link.querySelector("img").src.replace("/surroundings.jpg", ".jpg") }, { k });

function start() {
  for (const list of document.querySelectorAll(".same-scale")) {
    const links = [...list.querySelectorAll("a")], patches = links.filter((link) => link.dataset.patch);
    for (const [index, link] of links.entries()) link.tabIndex = index ? -1 : 0;
    arrowKeys(list, "a");
    for (const [index, link] of patches.entries()) {
      link.setAttribute("aria-haspopup", "dialog");
      link.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the slide, in a tab of its own
        event.preventDefault();
        enlarge(patches.map(pictureOf), index);
      });
    }
  }
}

start();
document.addEventListener(CORRECTED, () => refreshParts("#galleries").then(start, showError));

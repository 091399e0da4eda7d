// A gallery of links is one stop of the Tab key, as every other gallery.

import { arrowKeys } from "./common.js";

for (const list of document.querySelectorAll(".same-scale")) {
  for (const [index, link] of [...list.querySelectorAll("a")].entries()) link.tabIndex = index ? -1 : 0;
  arrowKeys(list, "a");
}

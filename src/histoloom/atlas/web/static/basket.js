// The basket of pictures for "between two": up to two names, kept by the browser for this run, from page to page.

import { toast } from "./common.js";

const KEY = `histoloom-basket:${document.body.dataset.run}`;
const PLACES = 2;
export const BASKET_CHANGED = "histoloom-basket"; // the document's event

/** The names in the basket, in the order in which they were chosen. */
export function basket() {
  const names = JSON.parse(localStorage.getItem(KEY) ?? "[]");
  return names.slice(0, PLACES);
}

export function setBasket(names) {
  localStorage.setItem(KEY, JSON.stringify(names));
  document.dispatchEvent(new Event(BASKET_CHANGED));
}

/** Put a picture into the basket, and return what happened. Where it is full, the picture takes the second place, and the first one stays. */
export function addToBasket(name) {
  const names = basket();
  const isFull = names.length === PLACES;
  setBasket(isFull ? [names[0], name] : [...names, name]);
  if (isFull) return "The picture takes the place of the second one.";
  return names.length ? "Two pictures are chosen." : "The first of two pictures is chosen. Choose “Between two” at a second one, on any page.";
}

export const removeFromBasket = (place) => setBasket(basket().filter((_, index) => index !== place));

/** The address of the page that generates, with the basket as what it starts from. */
export const betweenAddress = () => `/draw?${document.body.dataset.k ? `k=${document.body.dataset.k}&` : ""}mode=between`;

/** What an enlarged picture offers: generating more like it, and its place between two. `name` is a patch's id, or `samples/` and a sample's. */
export function drawActions(name, { k }) {
  const choose = (_, dialog) => {
    const text = addToBasket(name);
    dialog.close();
    const go = { title: "Generate", run: () => { location.href = betweenAddress(); } };
    toast(text, { action: basket().length === PLACES ? go : undefined, key: "basket" });
  };
  return [{ title: "More like this", href: `/draw?k=${k}&like=${encodeURIComponent(name)}` }, { title: "Between two", run: choose }];
}

addEventListener("storage", ({ key }) => key === KEY && document.dispatchEvent(new Event(BASKET_CHANGED))); // another tab

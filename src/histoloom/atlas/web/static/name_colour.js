// The dialog in which a cluster's colour is chosen: from colours that stay apart, or any other.

/** `now(row)` gives {colour, shown}; `chosen(row, colour)` is told, `done(row)` when the dialog closes. Returns what opens it. */
export function colouring({ now, chosen, done }) {
  const dialog = document.getElementById("colour-dialog");
  const own = document.getElementById("own-colour");
  const buttons = [...dialog.querySelectorAll("[data-colour]")];
  const palette = [...dialog.querySelectorAll(".palette button")];
  let open = null;

  for (const button of buttons) {
    button.addEventListener("click", () => {
      chosen(open, button.dataset.colour);
      dialog.close();
    });
  }
  own.addEventListener("change", () => chosen(open, own.value));
  document.getElementById("colour-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => done(open));
  dialog.querySelector(".palette").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8 };
    const here = palette.indexOf(document.activeElement);
    if (here < 0 || !(event.key in steps)) return;
    event.preventDefault();
    palette[Math.min(palette.length - 1, Math.max(0, here + steps[event.key]))].focus();
  });

  return (row) => {
    open = row;
    const { colour, shown } = now(row);
    document.getElementById("colour-title").textContent = `Colour of cluster ${row.cluster}`;
    own.value = colour || shown;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.colour === colour));
    dialog.showModal();
    (palette.find((button) => button.dataset.colour === (colour || shown)) ?? palette[0]).focus();
  };
}

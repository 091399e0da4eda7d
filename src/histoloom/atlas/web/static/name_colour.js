// The dialog that chooses a cluster's colour: one of a palette of distinguishable colours, or any other.

/** `current(row)` returns {colour, shown}; `onChange(row, colour)` and `onClose(row)` are called. Returns a function that opens the dialog for a row. */
export function colourDialog({ current, onChange, onClose }) {
  const dialog = document.getElementById("colour-dialog");
  const ownColour = document.getElementById("own-colour");
  const buttons = [...dialog.querySelectorAll("[data-colour]")];
  const palette = [...dialog.querySelectorAll(".palette button")];
  let openRow = null;

  for (const button of buttons) {
    button.addEventListener("click", () => {
      onChange(openRow, button.dataset.colour);
      dialog.close();
    });
  }
  ownColour.addEventListener("change", () => onChange(openRow, ownColour.value));
  document.getElementById("colour-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => onClose(openRow));
  dialog.querySelector(".palette").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8 };
    const focused = palette.indexOf(document.activeElement);
    if (focused < 0 || !(event.key in steps)) return;
    event.preventDefault();
    palette[Math.min(palette.length - 1, Math.max(0, focused + steps[event.key]))].focus();
  });

  return (row) => {
    openRow = row;
    const { colour, shown } = current(row);
    document.getElementById("colour-title").textContent = `Colour of group ${row.cluster}`;
    ownColour.value = colour || shown;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.colour === colour));
    dialog.showModal();
    (palette.find((button) => button.dataset.colour === (colour || shown)) ?? palette[0]).focus();
  };
}

// Naming by keyboard. One row is current: Tab moves through its controls only, and every action has a key.

/**
 * `rows` have {node, name, mergeSelect, flags, controls}. `actions` are what the keys call: `isReady()`, `undoOrRedo("undo" | "redo")`,
 * `toggleFlag(row, flag)`, `removeFlag(row)`, `openColourDialog(row)`, `mergeWithSelected(row)`, `enlarge(row)`.
 * Returns {focusRow, restoreFocus, makeCurrent}.
 */
export function keyboard(rows, actions) {
  /** Focus a row, or with `typing` its name; nothing where there is no such row. */
  function focusRow(row, { typing = false } = {}) {
    if (!row) return;
    makeCurrent(row);
    (typing ? row.name : row.node).focus({ preventScroll: true });
    if (typing) row.name.select();
    row.node.scrollIntoView({ block: "nearest" });
  }

  /** Focus the row after its dialog closed, unless another row has the focus: the close event comes late, and a fast typist is there already. */
  function restoreFocus(row) {
    if (!rows.some((other) => other !== row && other.node.contains(document.activeElement))) focusRow(row);
  }

  /** Only the controls of the current row can be reached with Tab. */
  function makeCurrent(row) {
    for (const other of rows) for (const control of [other.node, ...other.controls]) control.tabIndex = other === row ? 0 : -1;
  }

  const keys = {
    n: (row, index) => focusRow(rows[index + 1]),
    ArrowDown: (row, index) => focusRow(rows[index + 1]),
    p: (row, index) => focusRow(rows[index - 1]),
    ArrowUp: (row, index) => focusRow(rows[index - 1]),
    Home: () => focusRow(rows[0]),
    End: () => focusRow(rows.at(-1)),
    Enter: (row) => focusRow(row, { typing: true }),
    c: (row) => actions.openColourDialog(row),
    m: (row) => row.mergeSelect.focus(),
    o: (row) => actions.enlarge(row),
  };

  function setFlag(row, digit) {
    if (digit === "0") actions.removeFlag(row);
    else actions.toggleFlag(row, row.flags[Number(digit) - 1].dataset.flag);
  }

  /** Handle a key pressed within a row; returns whether it did anything. */
  function handleRowKey(event, row) {
    const index = rows.indexOf(row);
    // The digit by the key's position too: on a French keyboard, 1 needs Shift.
    const digit = /^Digit([0-3])$/.exec(event.code)?.[1] ?? (/^[0-3]$/.test(event.key) ? event.key : null);
    if (event.target === row.name) {
      const next = rows[index + (event.shiftKey ? -1 : 1)];
      if (event.key === "Enter") focusRow(next ?? row, { typing: next !== undefined });
      else if (event.key === "Escape") focusRow(row);
      else if (event.altKey && digit !== null) setFlag(row, digit);
      else return false;
      return true;
    }
    if (event.target === row.mergeSelect && ["Enter", "Escape"].includes(event.key)) {
      if (event.key === "Escape") row.mergeSelect.value = "";
      actions.mergeWithSelected(row);
      return true;
    }
    if (event.target.matches("select, input") || event.altKey) return false;
    if (event.target.matches("button, a") && ["Enter", " "].includes(event.key)) return false;
    if (digit !== null) setFlag(row, digit);
    else if (event.key in keys) keys[event.key](row, index);
    else return false;
    return true;
  }

  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && !event.altKey) {
      if (!["z", "y"].includes(key)) return;
      event.preventDefault();
      actions.undoOrRedo(key === "y" || event.shiftKey ? "redo" : "undo");
      return;
    }
    if (!actions.isReady()) return;
    const row = rows.find((one) => one.node.contains(document.activeElement));
    if (row) {
      if (handleRowKey(event, row)) event.preventDefault();
    } else if (document.activeElement === document.body && ["n", "ArrowDown"].includes(event.key)) {
      event.preventDefault();
      focusRow(rows.find((one) => one.node.tabIndex === 0) ?? rows[0]);
    }
  });
  return { focusRow, restoreFocus, makeCurrent };
}

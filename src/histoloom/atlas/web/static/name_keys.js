// Naming without a mouse: one row is current, the Tab key goes through its controls alone, and every step has a key.

/**
 * `rows` have {node, name, same, flags, controls}. What the keys do: `ready()`, `step("undo" | "redo")`, `flag(row, flag)`, `noFlag(row)`,
 * `colour(row)`, `joined(row)` when another tissue was chosen, `large(row)`. Returns {go, back, reachable}, which make a row the current one.
 */
export function keyboard(rows, does) {
  function go(row, { typing = false } = {}) {
    if (!row) return;
    reachable(row);
    const target = typing ? row.name : row.node;
    target.focus({ preventScroll: true });
    if (typing) row.name.select();
    row.node.scrollIntoView({ block: "nearest" });
  }

  /** After a dialog: its end is told late, and who types fast is in another row by then, and stays there. */
  function back(row) {
    if (!rows.some((other) => other !== row && other.node.contains(document.activeElement))) go(row);
  }

  function reachable(row) {
    for (const other of rows) for (const one of [other.node, ...other.controls]) one.tabIndex = other === row ? 0 : -1;
  }

  const keys = {
    n: (row, place) => go(rows[place + 1]),
    ArrowDown: (row, place) => go(rows[place + 1]),
    p: (row, place) => go(rows[place - 1]),
    ArrowUp: (row, place) => go(rows[place - 1]),
    Home: () => go(rows[0]),
    End: () => go(rows.at(-1)),
    Enter: (row) => go(row, { typing: true }),
    c: (row) => does.colour(row),
    m: (row) => row.same.focus(),
    o: (row) => does.large(row),
  };

  function flagged(row, digit) {
    if (digit === "0") does.noFlag(row);
    else does.flag(row, row.flags[Number(digit) - 1].dataset.flag);
  }

  /** What a key does in a row; false where it does nothing. */
  function inRow(event, row) {
    const place = rows.indexOf(row);
    // By its place on the keyboard too: a French one gives 1 with Shift alone.
    const digit = /^Digit([0-3])$/.exec(event.code)?.[1] ?? (/^[0-3]$/.test(event.key) ? event.key : null);
    if (event.target === row.name) {
      const next = rows[place + (event.shiftKey ? -1 : 1)];
      if (event.key === "Enter") go(next ?? row, { typing: next !== undefined });
      else if (event.key === "Escape") go(row);
      else if (event.altKey && digit !== null) flagged(row, digit);
      else return false;
      return true;
    }
    if (event.target === row.same && ["Enter", "Escape"].includes(event.key)) {
      if (event.key === "Escape") row.same.value = "";
      does.joined(row);
      return true;
    }
    if (event.target.matches("select, input") || event.altKey) return false;
    if (event.target.matches("button, a") && ["Enter", " "].includes(event.key)) return false;
    if (digit !== null) flagged(row, digit);
    else if (event.key in keys) keys[event.key](row, place);
    else return false;
    return true;
  }

  function pressed(event) {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && !event.altKey) {
      if (!["z", "y"].includes(key)) return;
      event.preventDefault();
      does.step(key === "y" || event.shiftKey ? "redo" : "undo");
      return;
    }
    if (!does.ready()) return;
    const row = rows.find((one) => one.node.contains(document.activeElement));
    if (row) {
      if (inRow(event, row)) event.preventDefault();
    } else if (document.activeElement === document.body && ["n", "ArrowDown"].includes(event.key)) {
      event.preventDefault();
      go(rows.find((one) => one.node.tabIndex === 0) ?? rows[0]);
    }
  }

  document.addEventListener("keydown", pressed);
  return { go, back, reachable };
}

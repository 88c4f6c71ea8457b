"use strict";
// Tensors arranged for a heat map: names that differ in one number stand side by side. Nothing here touches the page.
const stacks = (() => {
  const LEAST_COLUMNS = 2;

  // `layers.3.attn.weight` is in the stack `layers`, in column 3, in row `attn.weight`; a name without a number is a
  // row of its own in the stack of what is above it.
  function arrange(names) {
    const numbered = new Map();
    const places = names.map((name, index) => placeOf(name, index));
    for (const { stack, column } of places) {
      if (column === null) continue;
      if (!numbered.has(stack)) numbered.set(stack, new Set());
      numbered.get(stack).add(column);
    }
    const isStackedAt = ({ stack, column }) => column !== null && numbered.get(stack).size >= LEAST_COLUMNS;
    const above = sharedBeginnings(places.filter((place) => !isStackedAt(place)).map(({ name }) => name));
    const found = new Map();
    for (const place of places) {
      const { stack, column, row, name, index } = place;
      const isStacked = isStackedAt(place);
      const key = isStacked ? stack : above.get(name.split(".")[0]);
      if (!found.has(key)) found.set(key, { name: key, rows: new Map(), columns: new Set(), cells: [] });
      const into = found.get(key);
      const rowName = isStacked ? row : name.slice(key ? key.length + 1 : 0);
      const rowIndex = into.rows.get(rowName) ?? into.rows.set(rowName, into.rows.size).get(rowName);
      const columnName = isStacked ? column : "";
      into.columns.add(columnName);
      into.cells.push({ row: rowIndex, column: columnName, index });
    }
    return [...found.values()].map(finish);
  }

  function placeOf(name, index) {
    const labels = name.split(".");
    const at = labels.findIndex((label) => /^\d+$/.test(label));
    if (at < 0 || at === labels.length - 1) return { stack: "", column: null, row: name, name, index };
    return {
      stack: labels.slice(0, at).join("."),
      column: Number(labels[at]),
      row: labels.slice(at + 1).join("."),
      name,
      index,
    };
  }

  // By the first label, the labels that all such names begin with, without the last label of any.
  function sharedBeginnings(names) {
    const shared = new Map();
    for (const name of names) {
      const labels = name.split(".");
      const known = shared.get(labels[0]) ?? labels.slice(0, -1);
      const length = known.findIndex((label, place) => label !== labels[place] || place >= labels.length - 1);
      shared.set(labels[0], length < 0 ? known : known.slice(0, length));
    }
    return new Map([...shared].map(([first, labels]) => [first, labels.join(".")]));
  }

  function finish({ name, rows, columns, cells }) {
    const ordered = [...columns].sort((a, b) => (a === "" ? -1 : b === "" ? 1 : a - b));
    const placeOfColumn = new Map(ordered.map((column, place) => [column, place]));
    return {
      name,
      rows: [...rows.keys()],
      columns: ordered,
      cells: cells.map((cell) => ({ ...cell, column: placeOfColumn.get(cell.column) })),
    };
  }

  return { arrange };
})();

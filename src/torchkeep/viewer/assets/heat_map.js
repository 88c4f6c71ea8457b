"use strict";
// One stack of layers as cells: a row per kind of tensor, a column per layer, a colour for how far it moved.
const heatMap = (() => {
  const { el, tip, hideTip, announce } = elements;
  const CELL = 20;
  const WIDEST = 46;
  const HEADER = 18;
  const LONGEST = 30;

  // `colourOf(index)` is a ground, or null for what is not in both; `tell(index)` gives lines; `onPick(index)` is
  // called for a tensor; `room()` is how wide it may be.
  function create(stack, { room, colourOf, tell, onPick, isCurrent }) {
    const at = new Map(stack.cells.map((cell) => [`${cell.row} ${cell.column}`, cell.index]));
    const hasColumns = stack.columns.some((column) => column !== "");
    const size = `${text.counted(stack.rows.length, "row")}, ${text.counted(stack.columns.length, "column")}`;
    const label_ = `Heat map of ${stack.name || "the top"}: ${size}. Arrow keys move, Enter shows the tensor.`;
    const canvas = el("canvas", { tabindex: 0, role: "application", "aria-label": label_ });
    const about = hasColumns ? ` ${stack.columns.length} layers` : "";
    const node = el(
      "div",
      { class: "stack" },
      el("h3", {}, stack.name || "top level", el("span", {}, about)),
      el("div", { class: "stack-scroll" }, canvas),
    );
    let label = 0;
    let width = CELL; // of a cell: as wide as the room gives
    let pointed = null;

    function draw() {
      const context = canvas.getContext("2d");
      context.font = `11px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;
      label = Math.ceil(Math.max(...stack.rows.map((row) => context.measureText(cut(row)).width))) + 10;
      width = Math.max(CELL - 4, Math.min(WIDEST, Math.floor((room() - label - 2) / stack.columns.length)));
      canvas.style.width = `${label + stack.columns.length * width + 1}px`;
      canvas.style.height = `${(hasColumns ? HEADER : 0) + stack.rows.length * CELL + 1}px`;
      paint(treemap.sharpened(canvas));
    }

    const top_ = hasColumns ? HEADER : 0;

    function paint(context) {
      const faint = colours.of("--ink-faint");
      const line = colours.of("--line");
      context.font = `11px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;
      context.textBaseline = "middle";
      context.fillStyle = colours.of("--ink-soft");
      stack.rows.forEach((row, index) => context.fillText(cut(row), 0, top_ + (index + 0.5) * CELL));
      if (hasColumns) columnNames(context, faint);
      for (const cell of stack.cells) {
        const ground = colourOf(cell.index);
        const box = [label + cell.column * width, top_ + cell.row * CELL];
        context.fillStyle = ground;
        context.strokeStyle = line;
        if (ground) context.fillRect(...box, width - 1, CELL - 1);
        else context.strokeRect(box[0] + 0.5, box[1] + 0.5, width - 2, CELL - 2);
      }
      for (const cell of stack.cells) if (isCurrent(cell.index)) outline(context, cell, colours.of("--other"), 2);
      if (pointed) outline(context, pointed, colours.of("--ink"), 1.5);
    }

    function outline(context, { row, column }, colour, thickness) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.strokeRect(label + column * width - 0.5, top_ + row * CELL - 0.5, width, CELL);
    }

    function columnNames(context, faint) {
      context.fillStyle = faint;
      context.textAlign = "center";
      const every = Math.ceil(28 / width);
      stack.columns.forEach((column, place) => {
        if (column !== "" && place % every === 0)
          context.fillText(String(column), label + (place + 0.5) * width, HEADER / 2);
      });
      context.textAlign = "left";
    }

    function point(cell, event) {
      const index = cell && at.get(`${cell.row} ${cell.column}`);
      pointed = cell;
      draw();
      if (index === undefined || index === null) {
        hideTip();
        return;
      }
      const box = canvas.getBoundingClientRect();
      tip(
        tell(index),
        event?.clientX ?? box.left + label + cell.column * width,
        event?.clientY ?? box.top + top_ + cell.row * CELL,
      );
      if (!event) announce(tell(index).join(", "));
    }

    function cellAt(event) {
      const column = Math.floor((event.offsetX - label) / width);
      const row = Math.floor((event.offsetY - top_) / CELL);
      return column >= 0 && column < stack.columns.length && row >= 0 && row < stack.rows.length
        ? { row, column }
        : null;
    }

    canvas.addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      if (cell?.row !== pointed?.row || cell?.column !== pointed?.column) point(cell, event);
    });
    canvas.addEventListener("pointerleave", () => point(null));
    canvas.addEventListener("blur", () => point(null));
    canvas.addEventListener("click", (event) => pick(cellAt(event)));
    canvas.addEventListener("keydown", (event) => {
      const ways = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (ways[event.key]) {
        const [rows, columns] = ways[event.key];
        const from = pointed ?? { row: 0, column: -columns };
        point({
          row: within(from.row + rows, stack.rows.length),
          column: within(from.column + columns, stack.columns.length),
        });
      } else if (event.key === "Enter") pick(pointed);
      else return;
      event.preventDefault();
    });

    function pick(cell) {
      const index = cell && at.get(`${cell.row} ${cell.column}`);
      if (index !== undefined && index !== null) onPick(index);
    }

    return { node, draw };
  }

  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  const cut = (name) => (name.length > LONGEST ? `…${name.slice(1 - LONGEST)}` : name);

  return { create };
})();

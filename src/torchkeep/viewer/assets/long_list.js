"use strict";
// A list of any length that draws only the rows in sight. One stop for the Tab key; arrow keys move within.
const longList = (() => {
  const { el } = elements;
  const ROW_HEIGHT = 30;
  const AROUND = 8;

  const GAP = 16;
  const EDGE = 14;

  // Columns are {title, least, share?, cell(row), className?, sort?(row)}: at least so many pixels wide, and a share of
  // the room that is left. `idOf(row)` tells rows apart over updates.
  function create({ label, columns, idOf, onPick, rowClass, isSelected, empty = "Nothing here.", count }) {
    const template = columns
      .map(({ least, share }) => (share ? `minmax(${least}px, ${share}fr)` : `${least}px`))
      .join(" ");
    const minWidth = `${columns.reduce((sum, { least }) => sum + least + GAP, 2 * EDGE - GAP)}px`;
    const body = el("div", { class: "list-body", role: "rowgroup", style: { minWidth } });
    const head = el("div", { class: "list-head", role: "row", style: { minWidth, gridTemplateColumns: template } });
    const scroll = el(
      "div",
      { class: "list-scroll", role: "grid", tabindex: 0, "aria-label": label, "aria-colcount": columns.length },
      head,
      body,
    );
    const said = el("p", { class: "list-count" });
    const node = el("div", {}, el("div", { class: "list" }, scroll), said);
    let given = [];
    let rows = [];
    let current = -1;
    let order = null; // {column, isFalling}

    function drawHead() {
      head.replaceChildren(
        ...columns.map((column, index) => {
          const sort = order?.column === index ? (order.isFalling ? "descending" : "ascending") : null;
          const name = column.sort
            ? el("button", { type: "button", tabindex: -1, onclick: () => sortBy(index) }, column.title)
            : column.title;
          return el("div", { class: `cell ${column.className ?? ""}`, role: "columnheader", "aria-sort": sort }, name);
        }),
      );
    }

    function sortBy(index) {
      if (order?.column !== index) order = { column: index, isFalling: Boolean(columns[index].isFalling) };
      else if (order.isFalling === Boolean(columns[index].isFalling))
        order = { column: index, isFalling: !order.isFalling };
      else order = null;
      arrange();
      scroll.scrollTop = 0;
    }

    function arrange() {
      rows = given;
      if (order) {
        const value = columns[order.column].sort;
        const sign = order.isFalling ? -1 : 1;
        rows = given
          .map((row, index) => [value(row), index, row])
          .sort(([a, i], [b, j]) => sign * compared(a, b) || i - j)
          .map(([, , row]) => row);
      }
      current = Math.min(current, rows.length - 1);
      scroll.setAttribute("aria-rowcount", rows.length + 1);
      body.style.height = `${Math.max(rows.length * ROW_HEIGHT, 0)}px`;
      said.textContent = count ? count(rows) : "";
      drawHead();
      draw();
    }

    function draw() {
      if (!rows.length) {
        body.style.height = "auto";
        body.replaceChildren(el("div", { class: "list-empty" }, empty));
        scroll.removeAttribute("aria-activedescendant");
        return;
      }
      const first = Math.max(0, Math.floor(scroll.scrollTop / ROW_HEIGHT) - AROUND);
      const last = Math.min(
        rows.length,
        Math.ceil((scroll.scrollTop + (scroll.clientHeight || 640)) / ROW_HEIGHT) + AROUND,
      );
      body.replaceChildren(...rows.slice(first, last).map((row, index) => drawRow(row, first + index)));
      mark();
    }

    // Where the keys are. Rows stay the elements they are: one that goes away under the pointer gets no click.
    function mark() {
      const here = idAt(current);
      for (const row of body.children)
        row.classList.toggle("current", row.id === here && document.activeElement === scroll);
      if (document.getElementById(here)) scroll.setAttribute("aria-activedescendant", here);
      else scroll.removeAttribute("aria-activedescendant");
    }

    const idAt = (index) => `${label.replace(/\W+/g, "-")}-${index}`;

    function drawRow(row, index) {
      const classes = ["list-row", onPick && "pick", rowClass?.(row)];
      return el(
        "div",
        {
          class: classes.filter(Boolean).join(" "),
          id: idAt(index),
          role: "row",
          "aria-rowindex": index + 2,
          "aria-selected": isSelected ? String(isSelected(row)) : null,
          style: { top: `${index * ROW_HEIGHT}px`, gridTemplateColumns: template },
          onclick: (event) => pick(index, event),
        },
        columns.map((column) => {
          const content = column.cell(row);
          const title = typeof content === "string" && content.length > 24 ? content : null;
          return el("div", { class: `cell ${column.className ?? ""}`, role: "gridcell", title }, content);
        }),
      );
    }

    function pick(index, event) {
      current = index;
      if (onPick) onPick(rows[index], event);
      draw();
    }

    function move(index) {
      current = Math.max(0, Math.min(rows.length - 1, index));
      const top_ = current * ROW_HEIGHT;
      const room = scroll.clientHeight - head.offsetHeight;
      if (top_ < scroll.scrollTop) scroll.scrollTop = top_;
      else if (top_ + ROW_HEIGHT > scroll.scrollTop + room) scroll.scrollTop = top_ + ROW_HEIGHT - room;
      draw();
    }

    scroll.addEventListener("scroll", draw, { passive: true });
    scroll.addEventListener("focus", mark);
    scroll.addEventListener("blur", mark);
    scroll.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(scroll.clientHeight / ROW_HEIGHT) - 2);
      const places = {
        ArrowDown: current + 1,
        ArrowUp: current - 1,
        PageDown: current + page,
        PageUp: current - page,
        Home: 0,
        End: rows.length - 1,
      };
      if (event.key in places && rows.length) move(places[event.key]);
      else if (event.key === "Enter" && current >= 0) pick(current, event);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(draw).observe(scroll);

    function show(list) {
      given = list;
      arrange();
    }

    // Bring a row into sight, without taking the focus.
    function reveal(id) {
      const index = rows.findIndex((row) => idOf(row) === id);
      if (index >= 0) move(index);
    }

    return { node, show, draw, reveal, sortBy, rows: () => rows };
  }

  function compared(a, b) {
    if (typeof a === "string" || typeof b === "string")
      return String(a).localeCompare(String(b), "en", { numeric: true });
    const [x, y] = [a ?? -Infinity, b ?? -Infinity].map((value) => (Number.isNaN(value) ? -Infinity : value));
    return x < y ? -1 : x > y ? 1 : 0;
  }

  return { create };
})();

"use strict";
// The weights as areas: a group opens into what it holds, as deep as there is room. Drawn on a canvas: a large
// checkpoint has ten thousand of them. The list below it says the same in words.
const treemap = (() => {
  const { el, tip, hideTip, announce } = elements;
  const HEIGHTS = [300, 480];
  const HOW = "Arrow keys move, Enter shows a tensor, Shift and Enter open its group, Backspace leaves a group.";

  // `colourOf(cell)` gives a ground and an ink; `onPick(index)` is called for a tensor; `tell(node)` gives lines.
  function create({ colourOf, onPick, tell, isCurrent }) {
    const canvas = el("canvas", {
      tabindex: 0,
      role: "application",
      "aria-label": `Treemap of tensors by size. ${HOW}`,
    });
    const crumbs = el("nav", { class: "crumbs", "aria-label": "Group shown" });
    const node = el("div", { class: "map" }, crumbs, canvas);
    let root = null;
    let shown = null;
    let cells = [];
    let pointed = null;

    function show(tree) {
      const path = shown?.path ?? "";
      root = tree;
      shown = treemapLayout.find(root, path);
      if (!shown.children.length) shown = root;
      layOut();
    }

    function go(to) {
      shown = to;
      pointed = null;
      hideTip();
      layOut();
      announce(`${to.path || "everything"}, ${text.bytes(to.bytes)}`);
    }

    function layOut() {
      if (!root) return;
      const width = canvas.clientWidth || 600;
      const height = Math.max(HEIGHTS[0], Math.min(HEIGHTS[1], width * 0.42));
      canvas.style.height = `${height}px`;
      cells = treemapLayout.rectangles(shown, width, height);
      drawCrumbs();
      draw();
    }

    function drawCrumbs() {
      const way = [];
      for (
        let at = root;
        at;
        at =
          at === shown
            ? null
            : at.children.find((child) => shown.path === child.path || shown.path.startsWith(`${child.path}.`))
      )
        way.push(at);
      crumbs.replaceChildren(
        ...way.flatMap((at, index) => {
          const button = el(
            "button",
            { type: "button", onclick: () => go(at), disabled: at === shown },
            index ? at.label : "everything",
          );
          return index ? [el("span", { class: "dot" }, "›"), button] : [button];
        }),
      );
    }

    function draw() {
      const context = sharpened(canvas);
      const line = colours.of("--surface");
      const ink = colours.of("--ink");
      context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
      context.textBaseline = "middle";
      for (const cell of cells) paint(context, cell, line, ink, colourOf(cell));
      for (const cell of cells)
        if (!cell.isOpen && isCurrent(cell.node)) outline(context, cell, colours.of("--accent"), 2.5);
      if (pointed) outline(context, pointed, ink, 1.5);
    }

    function hit(x, y) {
      let found = null;
      for (const cell of cells) {
        if (x >= cell.x && x < cell.x + cell.width && y >= cell.y && y < cell.y + cell.height) found = cell;
      }
      return found;
    }

    function point(cell, event) {
      if (cell !== pointed) {
        pointed = cell;
        draw();
      }
      if (!cell) {
        hideTip();
        return;
      }
      const box = canvas.getBoundingClientRect();
      const lines = tell(cell.node, root);
      tip(
        lines,
        event?.clientX ?? box.left + cell.x + cell.width / 2,
        event?.clientY ?? box.top + cell.y + cell.height / 2,
      );
      if (!event) announce(lines.join(", "));
    }

    function enter(cell) {
      if (!cell) return;
      if (cell.node.children.length) go(cell.node);
      else onPick(cell.node.index);
    }

    // The nearest closed cell in a direction, from the middle of the one that is pointed at.
    function step(dx, dy) {
      const leaves = cells.filter((cell) => !cell.isOpen);
      const middle = (cell) => [cell.x + cell.width / 2, cell.y + cell.height / 2];
      if (!pointed || pointed.isOpen) return leaves[0] ?? null;
      const [x, y] = middle(pointed);
      let best = pointed;
      let least = Infinity;
      for (const cell of leaves) {
        const [cx, cy] = middle(cell);
        const along = (cx - x) * dx + (cy - y) * dy;
        const aside = Math.abs((cx - x) * dy + (cy - y) * dx);
        if (along > 0.5 && along + 2 * aside < least) [best, least] = [cell, along + 2 * aside];
      }
      return best;
    }

    function above() {
      let at = root;
      while (at !== shown) {
        const next = at.children.find((child) => shown.path === child.path || shown.path.startsWith(`${child.path}.`));
        if (!next || next === shown) break;
        at = next;
      }
      return at;
    }

    canvas.addEventListener("pointermove", (event) => point(hit(event.offsetX, event.offsetY), event));
    canvas.addEventListener("pointerleave", () => point(null));
    canvas.addEventListener("blur", () => point(null));
    canvas.addEventListener("click", (event) => enter(hit(event.offsetX, event.offsetY)));
    canvas.addEventListener("keydown", (event) => {
      const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (ways[event.key]) point(step(...ways[event.key]));
      else if (event.key === "Enter") enter(event.shiftKey ? groupOf(cells, pointed) : pointed);
      else if (event.key === "Backspace" && shown !== root) go(above());
      else return;
      event.preventDefault();
    });
    new ResizeObserver(layOut).observe(node);
    return { node, show, draw };
  }

  // The group at the top of what is shown that a cell stands in.
  function groupOf(cells, cell) {
    return (
      cell &&
      cells.find(
        (each) =>
          each.depth === 1 &&
          cell.x >= each.x &&
          cell.x < each.x + each.width &&
          cell.y >= each.y &&
          cell.y < each.y + each.height,
      )
    );
  }

  function sharpened(canvas) {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    return context;
  }

  function paint(context, cell, line, ink, { ground, onGround }) {
    const { x, y, width, height, node, isOpen } = cell;
    context.fillStyle = ground;
    context.fillRect(x, y, width, height);
    if (width > 3 && height > 3) {
      context.strokeStyle = line;
      context.lineWidth = isOpen ? 1 : 0.75;
      context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
    }
    if (width < 38 || height < 16 || (isOpen && (height <= 54 || width <= 46))) return;
    context.save();
    context.beginPath();
    context.rect(x, y, width - 3, height);
    context.clip();
    context.fillStyle = onGround ?? ink;
    context.fillText(fitted(context, node.label, width - 9), x + 5, isOpen ? y + 9 : y + Math.min(height / 2, 12));
    if (!isOpen && height > 36 && width > 60) {
      context.globalAlpha = 0.72;
      context.fillText(text.bytes(node.bytes), x + 5, y + 27);
    }
    context.restore();
  }

  // As much of a label as there is room for.
  function fitted(context, label, room) {
    if (context.measureText(label).width <= room) return label;
    let length = Math.min(label.length - 1, Math.floor(room / 5));
    while (length > 1 && context.measureText(`${label.slice(0, length)}…`).width > room) length -= 1;
    return `${label.slice(0, length)}…`;
  }

  function outline(context, { x, y, width, height }, colour, thickness) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.strokeRect(
      x + thickness / 2,
      y + thickness / 2,
      Math.max(0, width - thickness),
      Math.max(0, height - thickness),
    );
  }

  return { create, sharpened };
})();

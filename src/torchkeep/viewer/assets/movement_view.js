"use strict";
// How far each tensor moved from one checkpoint to another: heat maps by layer, and the list, largest movers first.
const movementView = (() => {
  const { el, card, note } = elements;
  const DECADES = 5; // the scale runs from 1e-5 to 1
  const LARGE_BYTES = 4e9; // of values that are read only when asked
  const STATES = {
    equal: ["bit-equal", "good"],
    changed: ["changed", ""],
    shape: ["shape differs", "bad"],
    unread: ["not read", "warn"],
  };

  const shareOf = (relative) =>
    relative <= 0 ? 0 : Math.max(0.02, Math.min(1, (Math.log10(relative) + DECADES) / DECADES));

  function create({ onMeasured, onForce }) {
    const progress = el("div", { class: "progress", hidden: true }, el("span", {}));
    const maps = el("div", { class: "stacks" });
    const parts = el("div", { class: "chips", role: "group", "aria-label": "Part of the checkpoint" });
    const counts = el("p", { class: "aside-text" });
    const notes = el("div", {});
    const mapCard = card(
      "How far each layer moved",
      "Relative change: the norm of the difference over the norm before.",
      progress,
      maps,
      el(
        "div",
        { class: "legend" },
        scale(),
        el("span", {}, el("i", { style: { background: "var(--sunken)" } }), "bit-equal"),
        el("span", {}, el("i", { style: { border: "1px solid var(--line)" } }), "not in both"),
        el("span", {}, el("i", { style: { background: "var(--bad-ground)" } }), "shape differs"),
      ),
    );
    mapCard.tools.append(parts);
    const list = moverList();
    const listCard = card("Largest movers", "", list.node);
    const node = el("div", { class: "view" }, notes, mapCard, listCard);
    let columns = null;
    let rows = new Map(); // position: row
    let pair = "";
    let part = "";
    let isShown = () => true; // by position: whether a tensor is of the part
    let stop = new AbortController();
    let drawn = [];

    // `names` says how people call both; nothing is read twice for the same pair.
    async function show({ tensors, weights, at, from, names, force = false }) {
      columns = tensors;
      if (`${from} ${at}` === pair && !force) return;
      stop.abort();
      stop = new AbortController();
      pair = `${from} ${at}`;
      rows = new Map();
      part = weights?.entry.split(".")[0] || "";
      notes.replaceChildren();
      mapCard.said.textContent = `From ${names.from} to ${names.at}: the norm of the difference over the norm before.`;
      build();
      const mine = stop.signal;
      try {
        await read({ from, to: at, ...(force || answers.standsAlone ? {} : { limit_bytes: LARGE_BYTES }) }, mine);
      } catch (error) {
        if (mine.aborted) return;
        pair = "";
        notes.replaceChildren(
          note(`${error.message}.`, error.remedy, { bad: !answers.standsAlone, list: error.faults ?? [] }),
        );
      }
      if (!mine.aborted) progress.hidden = true;
    }

    async function read(asked, mine) {
      let head = null;
      let isDue = false; // a redraw, once for all lines that come within a frame
      for await (const line of answers.lines("movement", asked, mine)) {
        if (mine.aborted) return;
        if (!head) {
          head = line;
          if (head.total_bytes > asked.limit_bytes) {
            notes.replaceChildren(ask(head));
            pair = "";
            return;
          }
          progress.hidden = !head.total_bytes;
          alone(head);
          continue;
        }
        for (const row of line.rows) rows.set(row[0], row);
        progress.firstChild.style.width = `${(100 * line.done_bytes) / Math.max(1, head.total_bytes)}%`;
        isDue ||= Boolean(
          requestAnimationFrame(() => {
            isDue = false;
            redraw();
          }),
        );
      }
      redraw();
      onMeasured({ shareOf: (index) => shareOfRow(rows.get(index)), wordsOf: (index) => wordsOf(rows.get(index)) });
      elements.announce(counts.textContent);
    }

    function ask({ total_bytes: bytes }) {
      const asking = note("A large one.", "Both checkpoints are read from the disk to compare their values. ");
      asking.append(el("button", { type: "button", class: "tool", onclick: onForce }, `Read ${text.bytes(bytes)}`));
      return asking;
    }

    function alone({ only_from: gone, only_to: fresh }) {
      const names = { before: gone, after: fresh.map((index) => columns.name[index]) };
      for (const [which, list_] of Object.entries(names)) {
        const said = `Only in the one ${which}: ${text.counted(list_.length, "tensor")}.`;
        if (list_.length) notes.append(note(said, "", { list: list_ }));
      }
    }

    function build() {
      const names = columns.name;
      const kinds = [...new Set(names.map((name) => name.split(".")[0]))];
      const isParted = kinds.length > 1 && kinds.length < 10 && kinds.includes(part);
      parts.replaceChildren(
        ...(isParted ? [...kinds, ""] : []).map((kind) =>
          el(
            "button",
            {
              type: "button",
              class: "chip",
              "aria-pressed": String(kind === part),
              onclick: () => {
                part = kind;
                build();
                redraw();
              },
            },
            kind || "everything",
          ),
        ),
      );
      isShown = (index) => !isParted || !part || names[index].split(".")[0] === part;
      const kept = names.map((name, index) => index).filter(isShown);
      const arranged = stacks.arrange(kept.map((index) => names[index]));
      for (const stack of arranged)
        stack.cells.forEach((cell) => {
          cell.index = kept[cell.index];
        });
      drawn = arranged.map((stack) =>
        heatMap.create(stack, {
          room: () => maps.clientWidth,
          colourOf: (index) => colourOf(rows.get(index)),
          tell: (index) => [names[index], wordsOf(rows.get(index))],
          isCurrent: (index) => names[index] === state.chosen.tensor,
          onPick: (index) => state.choose({ tensor: names[index] }),
        }),
      );
      maps.replaceChildren(...drawn.map((map) => map.node));
      list.setNames(names);
      redraw();
    }

    function redraw() {
      drawn.forEach((map) => map.draw());
      search();
      const states = [...rows.values()].filter((row) => isShown(row[0])).map((row) => row[1]);
      const of = (kind) => text.count(states.filter((each) => each === kind).length);
      const unlike = states.includes("shape") ? `, ${of("shape")} of another shape` : "";
      listCard.said.textContent = `${of("changed")} changed, ${of("equal")} bit-equal${unlike}`;
      counts.textContent = listCard.said.textContent;
    }

    function search() {
      if (!columns) return;
      const found = text.matcher(state.chosen.query);
      list.show([...rows.values()].filter((row) => isShown(row[0]) && found(columns.name[row[0]])));
    }

    return { node, show, search, redraw: () => columns && redraw() };
  }

  function colourOf(row) {
    if (!row || row[1] === "unread") return null;
    if (row[1] === "shape") return colours.of("--bad-ground");
    const share = shareOfRow(row);
    return share ? colours.scale(share) : colours.of("--sunken");
  }

  const shareOfRow = (row) => (row && row[2] !== null ? shareOf(Number(row[2])) : 0);

  function wordsOf(row) {
    if (!row) return "not in both";
    const [, kind, relative, cosine, largest] = row;
    if (kind !== "changed") return STATES[kind][0];
    const [moved, angle, step] = [text.number(relative, 3), text.number(cosine, 6), text.number(largest, 3)];
    return `moved by ${moved}, cosine ${angle}, largest step ${step}`;
  }

  function moverList() {
    let names = [];
    const number = (title, at, digits) => ({
      title,
      least: 100,
      className: "number",
      isFalling: true,
      cell: (row) => text.number(row[at], digits),
      sort: (row) => (row[at] === null ? -1 : Number(row[at])),
    });
    const list = longList.create({
      label: "Largest movers",
      columns: [
        {
          title: "name",
          least: 260,
          share: 1,
          className: "name",
          cell: (row) => names[row[0]],
          sort: (row) => names[row[0]],
        },
        {
          title: "state",
          least: 108,
          cell: (row) => el("span", { class: `state ${STATES[row[1]][1]}` }, STATES[row[1]][0]),
          sort: (row) => row[1],
        },
        number("relative", 2, 3),
        number("cosine", 3, 6),
        number("largest step", 4, 3),
        number("elements", 5, 6),
      ],
      idOf: (row) => row[0],
      isSelected: (row) => names[row[0]] === state.chosen.tensor,
      onPick: (row) => state.choose({ tensor: names[row[0]] }),
      empty: "Nothing to compare.",
      count: (found) => text.counted(found.length, "tensor"),
    });
    list.show([]);
    list.sortBy(2);
    return Object.assign(list, {
      setNames: (given) => {
        names = given;
      },
    });
  }

  function scale() {
    const canvas = el("canvas", {
      width: 260,
      height: 10,
      role: "img",
      "aria-label": "From 1e-5 to 1 on a logarithmic scale",
    });
    const draw = () => {
      const context = canvas.getContext("2d");
      for (let x = 0; x < 260; x += 1) {
        context.fillStyle = colours.scale(x / 259);
        context.fillRect(x, 0, 1, 10);
      }
    };
    draw();
    colours.onChange(draw);
    return el("div", { class: "scale" }, canvas, el("span", {}, "10⁻⁵ and less"), el("span", {}, "1 and more"));
  }

  return { create, scale };
})();

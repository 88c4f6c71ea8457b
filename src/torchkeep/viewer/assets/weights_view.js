"use strict";
// One checkpoint: facts, a map of its tensors by size, the list of them, and its plain values.
const weightsView = (() => {
  const { el, pairs, card, note } = elements;
  const LEGEND = 12;

  function create() {
    const factsNode = el("div", {});
    const legend = el("div", { class: "legend" });
    const byChoice = el(
      "select",
      { onchange: () => redraw() },
      ["group", "dtype", "movement"].map((kind) => el("option", { value: kind }, kind)),
    );
    const values = el("details", { class: "card" }, el("summary", {}, "Values beside the tensors"), el("div", {}));
    let shown = null; // the answer to `checkpoint`
    let movement = null; // relative change by position, when it was read

    const map = treemap.create({
      colourOf,
      onPick: pick,
      tell,
      isCurrent: (node) => node.index >= 0 && shown.tensors.name[node.index] === state.chosen.tensor,
    });
    const list = tensorList(() => shown, pick);
    const mapCard = card("By size", "", map.node, legend);
    mapCard.tools.append(el("label", {}, "colour by", byChoice));
    const listCard = card("Tensors", "", list.node);
    const node = el(
      "div",
      { class: "view" },
      el("section", { class: "card", "aria-label": "Facts" }, factsNode),
      mapCard,
      listCard,
      values,
    );

    function pick(index) {
      state.choose({ tensor: shown.tensors.name[index] });
    }

    function show(checkpoint) {
      shown = checkpoint;
      const { tensors } = checkpoint;
      factsNode.replaceChildren(
        pairs(factsOf(checkpoint), "facts"),
        ...(checkpoint.weights_note ? [note("Weights:", checkpoint.weights_note)] : []),
      );
      map.show(treemapLayout.grow(tensors.name, (index) => (tensors.tied[index] < 0 ? tensors.nbytes[index] : 0)));
      const counted = text.counted(tensors.name.length, "tensor");
      mapCard.hidden = !total(tensors);
      mapCard.said.textContent = `Areas are bytes: ${text.bytes(total(tensors))} in ${counted}.`;
      values.lastChild.replaceChildren(pairs(checkpoint.values));
      values.hidden = !checkpoint.values.length;
      search();
      redraw();
    }

    function search() {
      if (!shown) return;
      const found = text.matcher(state.chosen.query);
      const rows = [];
      shown.tensors.name.forEach((name, index) => {
        if (found(name)) rows.push(index);
      });
      list.show(rows);
    }

    function redraw() {
      if (!shown) return;
      map.draw();
      drawLegend();
      list.draw();
    }

    function colourOf({ node: group, depth, hue }) {
      const plain = { ground: colours.group(hue, depth) };
      if (byChoice.value === "dtype") {
        if (group.index < 0) return { ground: colours.of("--sunken") };
        return { ground: colours.group(shown.tensors.dtype.at[group.index], 1) };
      }
      if (byChoice.value !== "movement") return plain;
      const share = group.index < 0 ? null : (movement?.shareOf(group.index) ?? null);
      if (share === null) return { ground: colours.of("--sunken") };
      return { ground: colours.scale(share), onGround: colours.onScale(share) };
    }

    function drawLegend() {
      const dot = (colour, name) => el("span", {}, el("i", { style: { background: colour } }), name);
      if (byChoice.value === "dtype")
        legend.replaceChildren(
          ...shown.tensors.dtype.of.slice(0, LEGEND).map((name, index) => dot(colours.group(index, 1), name)),
        );
      else if (byChoice.value === "movement")
        legend.replaceChildren(
          movement
            ? movementView.scale()
            : el("span", {}, "Open Movement once, between two checkpoints: the colours come from there."),
        );
      else legend.replaceChildren();
      legend.hidden = !legend.childElementCount;
    }

    function tell(group) {
      const { tensors } = shown;
      const share = text.percent(group.bytes / Math.max(1, total(tensors)));
      const size = `${text.bytes(group.bytes)}, ${share} of the checkpoint`;
      if (group.index < 0) return [group.path, `${text.counted(group.count, "tensor")}, ${size}`];
      const moved = movement?.wordsOf(group.index);
      return [
        tensors.name[group.index],
        `${tensors.dtype.of[tensors.dtype.at[group.index]]} ${text.shape(tensors.shape[group.index])}`,
        size,
        ...(moved ? [moved] : []),
      ];
    }

    function setMovement(found) {
      movement = found;
      redraw();
    }

    const reveal = () => list.reveal(shown?.tensors.name.indexOf(state.chosen.tensor));
    return { node, show, search, redraw, setMovement, reveal };
  }

  const totals = new WeakMap();
  function total(tensors) {
    if (!totals.has(tensors))
      totals.set(
        tensors,
        tensors.nbytes.reduce((sum, bytes, index) => sum + (tensors.tied[index] < 0 ? bytes : 0), 0),
      );
    return totals.get(tensors);
  }

  function factsOf({ format, step, weights, tensors, facts, path }) {
    const ties = tensors.tied.filter((first) => first >= 0).length;
    return [
      ["format", format],
      ["step", step === null ? "" : text.count(step)],
      [
        "weights",
        weights
          ? `${weights.entry || "the whole file"}, ${text.counted(weights.tensor_count, "tensor")}`
          : "none found",
      ],
      ["parameters", weights ? text.count(weights.parameter_count) : ""],
      ["bytes", text.bytes(total(tensors))],
      ["dtypes", tensors.dtype.of.join(", ")],
      ["tied", ties ? text.counted(ties, "tensor") : ""],
      ["devices", tensors.device.of.filter(Boolean).join(", ")],
      ...facts.slice(0, 8),
      ["path", path],
    ];
  }

  function tensorList(shown, pick) {
    const of = (column) => (index) => shown().tensors[column].of[shown().tensors[column].at[index]];
    const marked = (index) => {
      const name = shown().tensors.name[index];
      const query = state.chosen.query.trim().toLowerCase();
      const at = query && !/[\s*]/.test(query) ? name.toLowerCase().indexOf(query) : -1;
      return at < 0
        ? name
        : el(
            "span",
            { title: name },
            name.slice(0, at),
            el("mark", {}, name.slice(at, at + query.length)),
            name.slice(at + query.length),
          );
    };
    return longList.create({
      label: "Tensors",
      columns: [
        {
          title: "name",
          least: 260,
          share: 3,
          className: "name",
          cell: marked,
          sort: (index) => shown().tensors.name[index],
        },
        { title: "dtype", least: 96, cell: of("dtype"), sort: of("dtype") },
        {
          title: "shape",
          least: 140,
          share: 1,
          cell: (index) => text.shape(shown().tensors.shape[index]),
          sort: (index) => text.elements(shown().tensors.shape[index]),
          isFalling: true,
        },
        {
          title: "size",
          least: 84,
          className: "number",
          cell: (index) => text.bytes(shown().tensors.nbytes[index]),
          sort: (index) => shown().tensors.nbytes[index],
          isFalling: true,
        },
      ],
      idOf: (index) => index,
      isSelected: (index) => shown().tensors.name[index] === state.chosen.tensor,
      onPick: (index) => pick(index),
      empty: "No tensor has such a name.",
      count: (rows) => `${text.count(rows.length)} of ${text.counted(shown().tensors.name.length, "tensor")}`,
    });
  }

  return { create };
})();

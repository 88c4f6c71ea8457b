"use strict";
// One tensor: what it is, what its values are like, how far they are from those in the other checkpoint.
const tensorPanel = (() => {
  const { el, one, pairs, note, copy } = elements;
  let latest = 0;
  let opener = null;

  // `columns` are the tensors of the checkpoint `at`; `names` says how people call both checkpoints.
  async function show({ columns, index, at, from, names }) {
    const mine = ++latest;
    const panel = one("panel");
    const wasHidden = panel.hidden;
    if (wasHidden) opener = document.activeElement;
    const values = el(
      "div",
      { class: "panel-part", "aria-busy": "true" },
      el("p", { class: "aside-text" }, "Reading its values …"),
    );
    panel.replaceChildren(head(columns.name[index]), facts(columns, index), values);
    panel.hidden = false;
    document.body.classList.add("has-panel");
    const asked = { of: at, at: String(index) };
    if (from && from !== at && answers.has("tensor", { ...asked, beside: from })) asked.beside = from;
    try {
      const found = await answers.once("tensor", asked);
      if (mine === latest) values.replaceChildren(...measured(found, names, columns, index));
    } catch (error) {
      if (mine === latest)
        values.replaceChildren(
          note(`${error.message}.`, error.remedy, { bad: !answers.standsAlone, list: error.faults ?? [] }),
        );
    }
    values.removeAttribute("aria-busy");
  }

  function hide() {
    latest += 1;
    const panel = one("panel");
    const hadFocus = panel.contains(document.activeElement);
    panel.hidden = true;
    document.body.classList.remove("has-panel");
    if (hadFocus) opener?.focus?.();
  }

  function head(name) {
    const copying = el("button", { type: "button", class: "tool", onclick: () => copy(copying, name) }, "Copy name");
    const closing = el(
      "button",
      { type: "button", class: "tool", onclick: () => state.choose({ tensor: "" }) },
      "Close",
    );
    return el(
      "div",
      {},
      el("div", { class: "panel-head" }, el("h2", {}, name || "(no name)")),
      el("div", { class: "chips" }, copying, closing),
    );
  }

  const coded = (column, index) => column.of[column.at[index]];

  function facts(columns, index) {
    const shape = columns.shape[index];
    const tied = columns.tied[index];
    return el(
      "div",
      { class: "panel-part" },
      pairs([
        ["dtype", coded(columns.dtype, index)],
        ["shape", text.shape(shape)],
        ["elements", text.count(text.elements(shape))],
        ["size", text.bytes(columns.nbytes[index])],
        ["device", coded(columns.device, index)],
        ["trains", columns.trains[index] ? "yes, it was saved with requires_grad" : ""],
        ["same as", tied >= 0 ? columns.name[tied] : ""],
        ["file", coded(columns.shard, index)],
      ]),
    );
  }

  function measured({ statistics, histogram: bins, beside }, names, columns, index) {
    if (!statistics) return [note("No statistics:", "values of less than a byte are not read.")];
    const parts = [];
    const count = text.elements(columns.shape[index]);
    if (bins) {
      const legend = beside?.counts
        ? el(
            "div",
            { class: "legend" },
            el("span", {}, el("i", { class: "key-dot" }), names.at),
            el("span", {}, el("i", { class: "key-dot other" }), names.from),
          )
        : null;
      parts.push(el("h3", {}, "Values"), histogram.draw(bins, beside?.counts), legend);
    }
    parts.push(el("div", { class: "panel-part" }, pairs(rowsOf(statistics, beside?.statistics, count))));
    if (beside) parts.push(el("div", { class: "panel-part" }, el("h3", {}, `Against ${names.from}`), change(beside)));
    return parts;
  }

  function rowsOf(here, there, count) {
    const both = (key, say = (value) => text.number(value)) =>
      there
        ? el(
            "span",
            { class: "both" },
            el("span", {}, say(here[key])),
            el("span", { class: "aside-text" }, say(there[key])),
          )
        : say(here[key]);
    const share = (value) => (value ? `${text.count(value)} (${text.percent(value / Math.max(1, count))})` : "none");
    return [
      ["minimum", both("minimum")],
      ["maximum", both("maximum")],
      ["mean", both("mean")],
      ["std", both("std")],
      ["zeros", both("zero_count", share)],
      ["NaN", wrong(here.nan_count, here.first_nan, share)],
      ["infinite", wrong(here.inf_count, here.first_inf, share)],
    ];
  }

  function wrong(count, first, share) {
    if (!count) return "none";
    return el("span", { class: "state bad" }, `${share(count)}, first at [${first.join(", ")}]`);
  }

  function change({ change: row, shape, dtype }) {
    if (!row) return el("p", { class: "aside-text" }, `There it is ${dtype} ${text.shape(shape)}: shapes differ.`);
    const [kind, relative, cosine, largest, differing] = row;
    if (kind === "equal") return el("p", {}, el("span", { class: "state good" }, "bit-equal"));
    if (kind === "unread")
      return el("p", { class: "aside-text" }, "Bytes differ; values of less than a byte are not read.");
    return pairs([
      ["relative change", text.number(relative, 4)],
      ["cosine", text.number(cosine, 6)],
      ["largest step", text.number(largest, 4)],
      ["elements changed", text.count(differing)],
    ]);
  }

  return { show, hide };
})();

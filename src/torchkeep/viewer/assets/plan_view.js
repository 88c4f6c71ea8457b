"use strict";
// What would become of each tensor, were the weights of one checkpoint loaded where those of another are.
const planView = (() => {
  const { el, card, note, copy } = elements;
  const LABELS = {
    shape_differs: ["shape differs", "bad"],
    dtype_differs: ["dtype differs", "bad"],
    only_in_model: ["only in model", "bad"],
    only_in_checkpoint: ["only in checkpoint", "bad"],
    skipped: ["skipped", "warn"],
    matched: ["matched", "good"],
  };

  function create({ onRules }) {
    const bar = el("div", { class: "bar", role: "img" }, el("span", {}));
    const chips = el("div", { class: "chips", role: "group", "aria-label": "Show only" });
    const rules = el("div", {});
    const notes = el("div", {});
    const list = rowList();
    const summary = card("Load plan", "", bar, rules);
    const rowCard = card("Tensors", "", chips, el("p", {}, "\u00a0"), list.node);
    const node = el("div", { class: "view" }, notes, summary, rowCard);
    let plan = null;
    let only = "";
    let latest = 0;

    async function show({ at, into, withRules, names }) {
      const mine = ++latest;
      try {
        const found = await answers.once("plan", { from: at, into, ...(withRules ? { rules: "suggested" } : {}) });
        if (mine !== latest) return;
        plan = found;
        notes.replaceChildren();
        draw(names, withRules, { at, into });
      } catch (error) {
        if (mine !== latest) return;
        notes.replaceChildren(
          note(`${error.message}.`, error.remedy, { bad: !answers.standsAlone, list: error.faults ?? [] }),
        );
      }
      summary.hidden = rowCard.hidden = !plan || notes.childElementCount > 0;
    }

    function draw(names, withRules, asked) {
      const counted = `${text.count(plan.matched_count)} of ${text.counted(plan.model_count, "tensor")}`;
      const covered = `${text.percent(plan.coverage)} of the model's elements`;
      summary.said.textContent = `The weights of ${names.at} into a model like ${names.from}: ${counted}, ${covered}.`;
      bar.firstChild.style.width = `${100 * plan.coverage}%`;
      bar.setAttribute("aria-label", `${text.percent(plan.coverage)} of the model's elements are matched`);
      drawRules(withRules, asked);
      drawChips();
      search();
    }

    function drawRules(withRules, { at, into }) {
      if (!plan.suggested.length) {
        rules.replaceChildren(el("p", { class: "aside-text panel-part" }, "It fits as it is: no rule is needed."));
        return;
      }
      const code = `rules=[${plan.suggested.map((rule) => `\n    ${rule},`).join("")}\n]`;
      const copying = el("button", { type: "button", class: "tool", onclick: () => copy(copying, code) }, "Copy");
      const canApply = answers.has("plan", { from: at, into, rules: "suggested" });
      const applying = el(
        "button",
        {
          type: "button",
          class: "tool",
          "aria-pressed": String(withRules),
          disabled: !canApply,
          onclick: () => onRules(!withRules),
        },
        "With these rules",
      );
      rules.replaceChildren(
        el(
          "div",
          { class: "panel-part" },
          el(
            "div",
            { class: "card-head" },
            el("h3", {}, "Rules that would make it fit"),
            el("div", { class: "card-tools" }, applying, copying),
          ),
          el("pre", { class: "code", tabindex: 0 }, code),
        ),
      );
      if (plan.collisions.length) rules.prepend(note("Names collide:", "", { bad: true, list: plan.collisions }));
    }

    function drawChips() {
      const counts = new Map();
      for (const [status] of plan.rows) counts.set(status, (counts.get(status) ?? 0) + 1);
      if (!counts.has(only)) only = "";
      const kinds = ["", ...Object.keys(LABELS).filter((status) => counts.has(status))];
      chips.replaceChildren(
        ...kinds.map((status) =>
          el(
            "button",
            {
              type: "button",
              class: "chip",
              "aria-pressed": String(status === only),
              onclick: () => {
                only = status;
                drawChips();
                search();
              },
            },
            status ? LABELS[status][0] : "all",
            el("span", { class: "count" }, text.count(status ? counts.get(status) : plan.rows.length)),
          ),
        ),
      );
    }

    function search() {
      if (!plan) return;
      const found = text.matcher(state.chosen.query);
      list.show(plan.rows.filter((row) => (!only || row[0] === only) && (found(row[2]) || found(row[3] ?? ""))));
    }

    return { node, show, search };
  }

  function rowList() {
    const spec = (side) => (side ? `${side[0]} ${text.shape(side[1])}` : "–");
    const rank = Object.keys(LABELS);
    const list = longList.create({
      label: "Tensors of the plan",
      columns: [
        {
          title: "status",
          least: 150,
          cell: (row) => el("span", { class: `state ${LABELS[row[0]][1]}` }, [LABELS[row[0]][0], ...row[1]].join(", ")),
          sort: (row) => rank.indexOf(row[0]),
        },
        {
          title: "name in the model",
          least: 240,
          share: 3,
          className: "name",
          cell: (row) => row[2],
          sort: (row) => row[2],
        },
        { title: "in the checkpoint", least: 150, share: 1, cell: (row) => spec(row[4]) },
        { title: "in the model", least: 150, share: 1, cell: (row) => spec(row[5]) },
        { title: "what happens", least: 240, share: 3, cell: (row) => row[6], sort: (row) => row[6] },
      ],
      idOf: (row) => row[2],
      empty: "No tensor of that kind.",
      count: (rows) => text.counted(rows.length, "row"),
    });
    list.show([]);
    list.sortBy(0);
    return list;
  }

  return { create };
})();

"use strict";
// A run: each metric over steps, what every save added to the disk, and the list of what is kept.
const runView = (() => {
  const { el, card, note } = elements;

  // `run` is the answer to `subject`; `onPick(id, asFrom)` chooses a checkpoint.
  function create(run, onPick) {
    const kept = run.checkpoints;
    const names = [...new Set(kept.flatMap((each) => Object.keys(each.metrics)))];
    const byId = new Map(kept.map((each) => [each.id, each]));
    const chosen = () => state.chosen;
    const tell = ({ id }) => lines(byId.get(id));
    const charts = names.map((name) =>
      lineChart.create({
        title: name,
        points: kept
          .filter((each) => Object.hasOwn(each.metrics, name))
          .map((each) => ({ x: each.step, y: Number(each.metrics[name]), id: each.id })),
        chosen,
        onPick,
        tell,
      }),
    );
    const sum = (key) => text.bytes(kept.reduce((bytes, each) => bytes + each[key], 0));
    const disk = barChart.create({
      title: "on disk",
      about: `${text.bytes(run.disk_bytes)} in all`,
      bars: kept.map((each) => ({
        id: each.id,
        label: String(each.step),
        whole: each.total_bytes,
        added: each.added_bytes,
      })),
      chosen,
      onPick,
      tell,
    });
    const list = checkpointList(kept, names, onPick);
    const metrics = names.length
      ? card(
          "Metrics",
          "At the steps of the checkpoints that are kept. Choose one to look into it; with Shift, to compare with it.",
          el(
            "div",
            { class: "chart-grid" },
            charts.map((chart) => chart.node),
          ),
        )
      : card(
          "Metrics",
          "",
          note(
            "No metrics were saved.",
            "They come with after_step(step, metrics={...}) or save(step, metrics={...}).",
          ),
        );
    if (names.length) metrics.tools.append(logarithm(charts));
    const sizes = card(
      "What each save added",
      `${sum("added_bytes")} written once, where whole files would be ${sum("total_bytes")}.`,
      disk.node,
      el(
        "div",
        { class: "legend" },
        el("span", {}, el("i", { style: { background: "var(--accent)" } }), "added: no earlier checkpoint has it"),
        el("span", {}, el("i", { style: { background: "var(--accent-ground)" } }), "the whole checkpoint"),
      ),
    );
    metrics.hidden = sizes.hidden = !kept.length;
    const node = el("div", { class: "view" }, passedOver(run), metrics, sizes, card("Checkpoints", "", list.node));
    return {
      node,
      update: () => {
        charts.forEach((chart) => chart.mark());
        disk.mark();
        list.draw();
      },
    };
  }

  // A metric may be called as what every object has.
  const metric = (each, name) => (Object.hasOwn(each.metrics, name) ? each.metrics[name] : null);

  function passedOver(run) {
    const lines_ = Object.entries(run.passed_over).map(([name, reason]) => `${name}: ${reason}`);
    return lines_.length
      ? note(`${text.counted(lines_.length, "folder")} passed over:`, "these look like checkpoints and are not.", {
          bad: true,
          list: lines_,
        })
      : null;
  }

  function lines(each) {
    const metrics = Object.entries(each.metrics)
      .slice(0, 12)
      .map(([name, value]) => `${name} ${text.number(value)}`);
    const tags = each.tags.length ? [`tags: ${each.tags.join(", ")}`] : [];
    const wrong = each.nonfinite ? [`NaN or inf in ${each.nonfinite}`] : [];
    return [
      `step ${text.count(each.step)}`,
      ...metrics,
      `${text.bytes(each.total_bytes)}, added ${text.bytes(each.added_bytes)}`,
      ...tags,
      ...wrong,
    ];
  }

  function badges({ tags, nonfinite }) {
    const wrong = nonfinite && el("span", { class: "state bad", title: nonfinite }, "NaN or inf");
    return el(
      "span",
      { class: "chips" },
      wrong,
      tags.map((tag) => el("span", { class: "state" }, tag)),
    );
  }

  function logarithm(charts) {
    const button = el(
      "button",
      {
        type: "button",
        class: "tool",
        "aria-pressed": "false",
        onclick: () => {
          const wanted = button.getAttribute("aria-pressed") !== "true";
          button.setAttribute("aria-pressed", String(wanted));
          charts.forEach((chart) => chart.setLogarithmic(wanted));
        },
      },
      "Log scale",
    );
    return button;
  }

  function checkpointList(kept, names, onPick) {
    const bytes = (title, key, least = 84) => ({
      title,
      least,
      className: "number",
      cell: (each) => text.bytes(each[key]),
      sort: (each) => each[key],
      isFalling: true,
    });
    const list = longList.create({
      label: "Checkpoints",
      columns: [
        {
          title: "step",
          least: 80,
          className: "number",
          cell: (each) => text.count(each.step),
          sort: (each) => each.step,
          isFalling: true,
        },
        {
          title: "age",
          least: 60,
          className: "number",
          cell: (each) => text.age(each.saved_at),
          sort: (each) => -Date.parse(each.saved_at),
        },
        ...names.map((name) => ({
          title: name,
          least: 96,
          share: 1,
          className: "number",
          cell: (each) => text.number(metric(each, name)),
          sort: (each) => Number(metric(each, name) ?? NaN),
        })),
        bytes("size", "total_bytes"),
        bytes("added", "added_bytes"),
        bytes("own", "own_bytes"),
        ...(kept.some((each) => each.tags.length || each.nonfinite)
          ? [{ title: "tags", least: 130, share: 1, cell: badges, sort: (each) => each.tags.join(" ") }]
          : []),
        {
          title: "compare",
          least: 118,
          cell: (each) =>
            el(
              "button",
              {
                type: "button",
                class: "chip",
                tabindex: -1,
                onclick: (event) => {
                  event.stopPropagation();
                  onPick(each.id, true);
                },
              },
              "with this",
            ),
        },
      ],
      idOf: (each) => each.id,
      isSelected: (each) => each.id === state.chosen.at,
      rowClass: (each) => each.id === state.chosen.from && "is-from",
      onPick: (each, event) => onPick(each.id, event.shiftKey),
      empty: "No committed checkpoint yet. Read it again with r.",
      count: (rows) => `${text.counted(rows.length, "checkpoint")}. own is what removing that one alone would free.`,
    });
    list.show(kept);
    if (kept.length) list.sortBy(0);
    return list;
  }

  return { create };
})();

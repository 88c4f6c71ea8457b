"use strict";
// What each checkpoint holds, and what of it no earlier one has: a pale bar with a full one in it, in order of steps.
const barChart = (() => {
  const { el, svg } = elements;
  const HEIGHT = 190;
  const EDGE = { left: 62, right: 8, top: 10, bottom: 24 };

  // `bars` are {id, label, whole, added}.
  function create({ title, about, bars, chosen, onPick, tell }) {
    const drawing = svg("svg", {
      height: HEIGHT,
      tabindex: 0,
      role: "img",
      "aria-label": `${title}: ${about}. Arrow keys read the values.`,
    });
    const node = el(
      "div",
      { class: "chart" },
      el("div", { class: "chart-title" }, el("h3", {}, title), el("p", {}, about)),
      drawing,
    );
    let place = null;
    let hovered = -1;

    function draw() {
      const width = Math.max(200, drawing.clientWidth || 340);
      drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      const slot = Math.min(46, (width - EDGE.left - EDGE.right) / bars.length);
      const y = axes.linear(0, Math.max(1, ...bars.map((bar) => bar.whole)) * 1.05, HEIGHT - EDGE.bottom, EDGE.top, 4);
      place = { slot, y, width };
      drawing.replaceChildren(...grid(y, width), ...columns(slot, y), ...labels(slot), svg("g", { class: "marks" }));
      mark();
    }

    const bottom = HEIGHT - EDGE.bottom;
    const left = (index) => EDGE.left + index * place.slot;

    function columns(slot, y) {
      const gap = slot > 6 ? Math.min(6, slot * 0.25) : 0;
      const height = (bytes) => (bytes ? Math.max(1.5, bottom - y.place(bytes)) : 0);
      const path = (bytesOf) =>
        axes.columns(
          bars.map((bar) => height(bytesOf(bar))),
          { left: EDGE.left, bottom, slot, gap },
        );
      return [
        svg("path", { class: "bar-whole", d: path((bar) => bar.whole) }),
        svg("path", { class: "bar-added", d: path((bar) => bar.added) }),
        svg("line", {
          class: "axis-line",
          x1: EDGE.left,
          x2: place.width - EDGE.right,
          y1: bottom + 0.5,
          y2: bottom + 0.5,
        }),
      ];
    }

    function labels(slot) {
      const every = Math.ceil(60 / slot);
      return bars
        .map(
          (bar, index) =>
            index % every === 0 &&
            index * slot + slot / 2 > 0 &&
            svg(
              "text",
              { x: EDGE.left + (index + 0.5) * slot, y: HEIGHT - 6, "text-anchor": "middle" },
              axes.short(Number(bar.label)),
            ),
        )
        .filter(Boolean);
    }

    function mark() {
      const group = drawing.querySelector(".marks");
      if (!group) return;
      const { at, from } = chosen();
      const marks = [
        [from, "from"],
        [at, "at"],
      ].map(([id, kind]) => [bars.findIndex((bar) => bar.id === id), kind]);
      group.replaceChildren(
        ...marks
          .filter(([index]) => index >= 0)
          .map(([index, kind]) =>
            svg("circle", { class: `mark ${kind}`, r: 4.5, cx: left(index) + place.slot / 2, cy: bottom }),
          ),
        ...(hovered >= 0
          ? [
              svg("rect", {
                class: "bar-hover",
                x: left(hovered),
                y: EDGE.top,
                width: place.slot,
                height: bottom - EDGE.top,
              }),
            ]
          : []),
      );
    }

    steering.attach(drawing, {
      count: bars.length,
      indexAt: (x) => {
        const index = Math.floor((x - EDGE.left) / place.slot);
        return index >= 0 && index < bars.length ? index : -1;
      },
      placeOf: (index) => [left(index), HEIGHT / 2],
      start: () => bars.findIndex((bar) => bar.id === chosen().at),
      mark: (index) => {
        hovered = index;
        mark();
      },
      tell: (index) => tell(bars[index]),
      pick: (index, withShift) => onPick(bars[index].id, withShift),
    });
    new ResizeObserver(draw).observe(drawing);
    return { node, mark };
  }

  function grid(y, width) {
    return y.ticks
      .filter((value) => value > 0)
      .flatMap((value) => {
        const at = Math.round(y.place(value)) + 0.5;
        return [
          svg("line", { class: "grid-line", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }),
          svg("text", { x: EDGE.left - 8, y: at + 4, "text-anchor": "end" }, text.bytes(value).replace(".0 ", " ")),
        ];
      });
  }

  return { create };
})();

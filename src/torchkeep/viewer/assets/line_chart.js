"use strict";
// One metric over steps, with a dot for each checkpoint that is kept.
const lineChart = (() => {
  const { el, svg } = elements;
  const HEIGHT = 190;
  const EDGE = { left: 52, right: 12, top: 10, bottom: 24 };
  const MANY = 150;

  // `points` are {x, y, id} in order of x; `chosen()` gives {at, from}; `onPick(id, asFrom)` is called for a choice.
  function create({ title, points, chosen, onPick, tell }) {
    const finite = points.filter((point) => Number.isFinite(point.y));
    const drawing = svg("svg", {
      height: HEIGHT,
      tabindex: 0,
      role: "img",
      "aria-label": about(title, points, finite),
    });
    const head = el("div", { class: "chart-title" }, el("h3", { title }, title), el("p", {}, extremes(finite)));
    const node = el("div", { class: "chart" }, head, drawing);
    let scales = null;
    let isLogarithmic = false;
    let hovered = -1;

    function draw() {
      const width = Math.max(200, drawing.clientWidth || 340);
      drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      scales = scalesOf(points, finite, width, isLogarithmic);
      drawing.replaceChildren(...grid(scales, width), ...curves(points, scales), svg("g", { class: "marks" }));
      mark();
    }

    function mark() {
      const group = drawing.querySelector(".marks");
      if (!group) return;
      const { at, from } = chosen();
      const marks = [
        [from, "from"],
        [at, "at"],
      ].map(([id, kind]) =>
        dot(
          points.find((point) => point.id === id),
          kind,
        ),
      );
      const hover = hovered >= 0 ? [lineAt(points[hovered]), dot(points[hovered], "hover")] : [];
      group.replaceChildren(...[...hover, ...marks].filter(Boolean));
    }

    const yOf = (point) => (Number.isFinite(point.y) ? scales.y.place(point.y) : EDGE.top);
    const dot = (point, kind) =>
      point && svg("circle", { class: `mark ${kind}`, r: 5, cx: scales.x.place(point.x), cy: yOf(point) });
    const lineAt = (point) =>
      svg("line", {
        class: "hover-line",
        x1: scales.x.place(point.x),
        x2: scales.x.place(point.x),
        y1: EDGE.top,
        y2: HEIGHT - EDGE.bottom,
      });

    steering.attach(drawing, {
      count: points.length,
      indexAt: (x) => nearest(points, scales.x.place, x),
      placeOf: (index) => [scales.x.place(points[index].x), yOf(points[index])],
      start: () => points.findIndex((point) => point.id === chosen().at),
      mark: (index) => {
        hovered = index;
        mark();
      },
      tell: (index) => tell(points[index]),
      pick: (index, withShift) => onPick(points[index].id, withShift),
    });
    new ResizeObserver(draw).observe(drawing);
    return {
      node,
      mark,
      setLogarithmic: (wanted) => {
        isLogarithmic = wanted;
        draw();
      },
    };
  }

  function scalesOf(points, finite, width, isLogarithmic) {
    const xs = points.map((point) => point.x);
    const ys = finite.map((point) => point.y);
    const [low, high] = ys.length ? [least(ys), most(ys)] : [0, 1];
    const kind = isLogarithmic && low > 0 ? axes.logarithmic : axes.linear;
    const room = (high - low) * 0.06;
    const [bottom, top_] = kind === axes.logarithmic ? [low, high] : [low - room, high + room];
    return {
      x: axes.linear(xs[0], xs.at(-1), EDGE.left + 6, width - EDGE.right - 6, Math.max(3, Math.floor(width / 80))),
      y: kind(bottom, top_, HEIGHT - EDGE.bottom, EDGE.top, 4),
    };
  }

  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

  function grid({ x, y }, width) {
    const bottom = HEIGHT - EDGE.bottom;
    const lines = y.ticks.flatMap((value) => {
      const at = Math.round(y.place(value)) + 0.5;
      return [
        svg("line", { class: "grid-line", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }),
        svg("text", { x: EDGE.left - 8, y: at + 4, "text-anchor": "end" }, axes.short(value)),
      ];
    });
    const steps = x.ticks
      .filter(Number.isInteger)
      .map((value) => svg("text", { x: x.place(value), y: HEIGHT - 6, "text-anchor": "middle" }, axes.short(value)));
    return [
      ...lines,
      ...steps,
      svg("line", { class: "axis-line", x1: EDGE.left, x2: width - EDGE.right, y1: bottom + 0.5, y2: bottom + 0.5 }),
    ];
  }

  // The line breaks where a value is not finite, and a cross at the top says so. All dots are one path.
  function curves(points, { x, y }) {
    let line = "";
    let dots = "";
    let crosses = "";
    let isBroken = true;
    for (const point of points) {
      const left = x.place(point.x).toFixed(1);
      if (!Number.isFinite(point.y)) {
        crosses += `M${left - 3} ${EDGE.top - 3}l6 6m0 -6l-6 6`;
        isBroken = true;
        continue;
      }
      const place = `${left} ${y.place(point.y).toFixed(1)}`;
      line += `${isBroken ? "M" : "L"}${place}`;
      dots += `M${place}h0`;
      isBroken = false;
    }
    return [
      svg("path", { class: "curve", d: line }),
      svg("path", { class: points.length > MANY ? "curve-dots many" : "curve-dots", d: dots }),
      crosses && svg("path", { class: "not-finite", d: crosses }),
    ].filter(Boolean);
  }

  function nearest(points, place, x) {
    let found = -1;
    let distance = Infinity;
    points.forEach((point, index) => {
      const away = Math.abs(place(point.x) - x);
      if (away < distance) [found, distance] = [index, away];
    });
    return found;
  }

  function extremes(finite) {
    if (!finite.length) return "no finite value";
    const ys = finite.map((point) => point.y);
    return `${text.number(least(ys), 4)} – ${text.number(most(ys), 4)}, last ${text.number(finite.at(-1).y, 4)}`;
  }

  function about(title, points, finite) {
    return `${title}: ${text.counted(points.length, "checkpoint")}, ${extremes(finite)}. Arrow keys read the values.`;
  }

  return { create };
})();

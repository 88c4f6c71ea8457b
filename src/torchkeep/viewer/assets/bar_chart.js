"use strict";
// What each checkpoint holds, and what of it no earlier one has: a pale bar with a full one in it, in order of steps.
const barChart = (() => {
  const { el, svg, tip, hideTip, announce } = elements;
  const HEIGHT = 190;
  const EDGE = { left: 62, right: 8, top: 10, bottom: 24 };

  // `bars` are {id, label, whole, added}.
  function create({ title, about, bars, chosen, onPick, tell }) {
    const drawing = svg("svg", { height: HEIGHT, tabindex: 0, role: "img", "aria-label": `${title}: ${about}. Arrow keys read the values.` });
    const node = el("div", { class: "chart" }, el("div", { class: "chart-title" }, el("h3", {}, title), el("p", {}, about)), drawing);
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
      const path = (heightOf) => bars.map((bar, index) => {
        const height = heightOf(bar);
        return `M${(EDGE.left + index * slot + gap / 2).toFixed(2)} ${bottom}v${(-height).toFixed(2)}h${(slot - gap).toFixed(2)}v${height.toFixed(2)}z`;
      }).join("");
      const height = (bytes) => (bytes ? Math.max(1.5, bottom - y.place(bytes)) : 0);
      return [
        svg("path", { class: "bar-whole", d: path((bar) => height(bar.whole)) }),
        svg("path", { class: "bar-added", d: path((bar) => height(bar.added)) }),
        svg("line", { class: "axis-line", x1: EDGE.left, x2: place.width - EDGE.right, y1: bottom + 0.5, y2: bottom + 0.5 }),
      ];
    }

    function labels(slot) {
      const every = Math.ceil(60 / slot);
      return bars.map((bar, index) => index % every === 0 && index * slot + slot / 2 > 0 &&
        svg("text", { x: EDGE.left + (index + 0.5) * slot, y: HEIGHT - 6, "text-anchor": "middle" }, axes.short(Number(bar.label)))).filter(Boolean);
    }

    function mark() {
      const group = drawing.querySelector(".marks");
      if (!group) return;
      const { at, from } = chosen();
      const marks = [[from, "from"], [at, "at"]].map(([id, kind]) => [bars.findIndex((bar) => bar.id === id), kind]);
      group.replaceChildren(
        ...marks.filter(([index]) => index >= 0).map(([index, kind]) =>
          svg("circle", { class: `mark ${kind}`, r: 4.5, cx: left(index) + place.slot / 2, cy: bottom })),
        ...(hovered >= 0 ? [svg("rect", { class: "bar-hover", x: left(hovered), y: EDGE.top, width: place.slot, height: bottom - EDGE.top })] : []),
      );
    }

    function hover(index, event) {
      hovered = index;
      mark();
      if (index < 0) {
        hideTip();
        return;
      }
      const box = drawing.getBoundingClientRect();
      tip(tell(bars[index]), event?.clientX ?? box.left + left(index), event?.clientY ?? box.top + HEIGHT / 2);
      if (!event) announce(tell(bars[index]).join(", "));
    }

    drawing.addEventListener("pointermove", (event) => {
      const index = Math.floor((event.clientX - drawing.getBoundingClientRect().left - EDGE.left) / place.slot);
      hover(index >= 0 && index < bars.length ? index : -1, event);
    });
    drawing.addEventListener("pointerleave", () => hover(-1));
    drawing.addEventListener("blur", () => hover(-1));
    drawing.addEventListener("click", (event) => {
      if (hovered >= 0) onPick(bars[hovered].id, event.shiftKey);
    });
    drawing.addEventListener("keydown", (event) => {
      const last = bars.length - 1;
      const start = hovered < 0 ? Math.max(0, bars.findIndex((bar) => bar.id === chosen().at)) : hovered;
      const places = { ArrowLeft: start - 1, ArrowRight: start + 1, Home: 0, End: last };
      if (event.key in places) hover(Math.max(0, Math.min(last, places[event.key])));
      else if (event.key === "Enter" && hovered >= 0) onPick(bars[hovered].id, event.shiftKey);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(draw).observe(drawing);
    return { node, mark };
  }

  function grid(y, width) {
    return y.ticks.filter((value) => value > 0).flatMap((value) => {
      const at = Math.round(y.place(value)) + 0.5;
      return [
        svg("line", { class: "grid-line", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }),
        svg("text", { x: EDGE.left - 8, y: at + 4, "text-anchor": "end" }, text.bytes(value).replace(".0 ", " ")),
      ];
    });
  }

  return { create };
})();

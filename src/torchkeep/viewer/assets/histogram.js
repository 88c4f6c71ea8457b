"use strict";
// How the values of a tensor are spread, and beside them those of the same tensor in another checkpoint.
const histogram = (() => {
  const { el, svg } = elements;
  const WIDTH = 380;
  const HEIGHT = 150;
  const EDGE = { top: 6, bottom: 20 };

  function draw({ low, high, counts }, besideCounts) {
    const tallest = Math.max(1, ...counts, ...(besideCounts ?? []));
    const bottom = HEIGHT - EDGE.bottom;
    const slot = WIDTH / counts.length;
    const height = (count) => (count ? Math.max(1, (count / tallest) * (bottom - EDGE.top)) : 0);
    const bars = axes.columns(counts.map(height), { left: 0, bottom, slot, gap: 1 });
    const zero = low < 0 && high > 0 ? ((0 - low) / (high - low)) * WIDTH : null;
    const values = text.counted(
      counts.reduce((sum, count) => sum + count, 0),
      "value",
    );
    const fullest = text.count(Math.max(...counts));
    const about = `${values} from ${text.number(low, 3)} to ${text.number(high, 3)}, at most ${fullest} in a bin`;
    return el(
      "div",
      { class: "histogram" },
      svg(
        "svg",
        {
          viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
          role: "img",
          "aria-label": `Histogram: ${about}`,
        },
        zero !== null && svg("line", { class: "zero", x1: zero, x2: zero, y1: EDGE.top, y2: bottom }),
        svg("path", { class: "here", d: bars }),
        besideCounts && svg("path", { class: "there", d: outline(besideCounts, slot, bottom, height) }),
        svg("line", { class: "axis-line", x1: 0, x2: WIDTH, y1: bottom + 0.5, y2: bottom + 0.5 }),
        svg("text", { x: 0, y: HEIGHT - 5 }, text.number(low, 3)),
        zero !== null &&
          zero > 60 &&
          zero < WIDTH - 60 &&
          svg("text", { x: zero, y: HEIGHT - 5, "text-anchor": "middle" }, "0"),
        svg("text", { x: WIDTH, y: HEIGHT - 5, "text-anchor": "end" }, text.number(high, 3)),
      ),
    );
  }

  function outline(counts, slot, bottom, height) {
    const steps = counts.map(
      (count, index) => `L${(index * slot).toFixed(2)} ${(bottom - height(count)).toFixed(2)}h${slot.toFixed(2)}`,
    );
    return `M0 ${bottom}${steps.join("")}V${bottom}`;
  }

  return { draw };
})();

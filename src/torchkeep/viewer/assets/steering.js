"use strict";
// Reading a chart item by item, by pointer or arrow keys: which one is meant, what is said of it, and choosing it.
const steering = (() => {
  const { tip, hideTip, announce } = elements;

  // `indexAt(x, y)` is the item under a point of the drawing or -1, `placeOf(index)` its point, `start()` where keys
  // begin; `mark(index)` shows which one is meant, `tell(index)` gives lines, `pick(index, withShift)` chooses it.
  function attach(drawing, { count, indexAt, placeOf, start, mark, tell, pick }) {
    let meant = -1;

    function mean(index, event) {
      meant = index;
      mark(index);
      if (index < 0) {
        hideTip();
        return;
      }
      const box = drawing.getBoundingClientRect();
      const [x, y] = event
        ? [event.clientX, event.clientY]
        : placeOf(index).map((at, axis) => at + [box.left, box.top][axis]);
      tip(tell(index), x, y);
      if (!event) announce(tell(index).join(", "));
    }

    drawing.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect();
      mean(indexAt(event.clientX - box.left, event.clientY - box.top), event);
    });
    drawing.addEventListener("pointerleave", () => mean(-1));
    drawing.addEventListener("blur", () => mean(-1));
    drawing.addEventListener("click", (event) => {
      if (meant >= 0) pick(meant, event.shiftKey);
    });
    drawing.addEventListener("keydown", (event) => {
      const from = meant < 0 ? Math.max(0, start()) : meant;
      const places = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: count - 1 };
      if (event.key in places) mean(Math.max(0, Math.min(count - 1, places[event.key])));
      else if (event.key === "Enter" && meant >= 0) pick(meant, event.shiftKey);
      else return;
      event.preventDefault();
    });
  }

  return { attach };
})();

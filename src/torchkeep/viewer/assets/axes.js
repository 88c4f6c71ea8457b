"use strict";
// Round numbers along an axis. Nothing here touches the page.
const axes = (() => {
  // Multiples of 1, 2 or 5 times a power of ten that lie between two numbers, about as many as wanted.
  function ticks(low, high, wanted) {
    if (!(high > low)) return [low];
    const rough = (high - low) / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => rough <= factor * power * 1.0001);
    const found = [];
    for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1)
      found.push(index * step);
    return found;
  }

  function decades(low, high, wanted) {
    const first = Math.ceil(Math.log10(low) - 1e-9);
    const last = Math.floor(Math.log10(high) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(1, wanted)));
    const found = [];
    for (let power = first; power <= last; power += every) found.push(10 ** power);
    return found.length > 1 ? found : ticks(low, high, wanted);
  }

  // A function from values to places, with the numbers to write beside it.
  function linear(low, high, from, to, wanted) {
    const span = high - low || Math.abs(low) || 1;
    const [least, most] = high > low ? [low, high] : [low - span / 2, high + span / 2];
    const place = (value) => from + ((value - least) / (most - least)) * (to - from);
    return { place, ticks: ticks(least, most, wanted) };
  }

  function logarithmic(low, high, from, to, wanted) {
    const [least, most] = high > low ? [low, high] : [low / 2, high * 2];
    const span = Math.log(most / least);
    const place = (value) => from + (Math.log(value / least) / span) * (to - from);
    return { place, ticks: decades(least, most, wanted) };
  }

  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e9 || (size > 0 && size < 1e-3)) return text.number(value, 3);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
    if (size >= 1e3) return Math.round(value).toLocaleString("en-US").replace("-", "−");
    return String(Number(value.toPrecision(4))).replace("-", "−");
  }

  // Columns of some heights that stand side by side on a line, as one path.
  function columns(heights, { left, bottom, slot, gap }) {
    const column = (height, index) => {
      const [x, up, across] = [left + index * slot + gap / 2, height, slot - gap].map((size) => size.toFixed(2));
      return `M${x} ${bottom}v-${up}h${across}v${up}z`;
    };
    return heights.map(column).join("");
  }

  return { columns, ticks, linear, logarithmic, short };
})();

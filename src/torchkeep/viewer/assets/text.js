"use strict";
// Numbers, sizes and times as people read them. Nothing here touches the page.
const text = (() => {
  const UNITS = ["kB", "MB", "GB"];
  const AGES = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
  ];

  function bytes(count) {
    if (count < 1000) return `${count} byte${count === 1 ? "" : "s"}`;
    let size = count;
    for (const unit of UNITS) {
      size /= 1000;
      if (size < 999.95) return `${size.toFixed(1)} ${unit}`;
    }
    return `${(size / 1000).toFixed(1)} TB`;
  }

  const count = (value) => value.toLocaleString("en-US");
  const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

  // Six digits, as `%.6g`: what is not finite comes from Python as text.
  function number(value, digits = 6) {
    if (value === null || value === undefined) return "–";
    const real = Number(value);
    if (Number.isNaN(real)) return "NaN";
    if (!Number.isFinite(real)) return real > 0 ? "∞" : "−∞";
    if (real === 0) return "0";
    const size = Math.abs(real);
    if (size < 1e-4 || size >= 10 ** digits)
      return real
        .toExponential(Math.min(digits - 1, 3))
        .replace(/\.?0+e/, "e")
        .replace("e+", "e")
        .replace("-", "−");
    return String(Number(real.toPrecision(digits))).replace("-", "−");
  }

  function percent(share) {
    return share >= 1 ? "100 %" : `${(Math.floor(share * 1000 + 1e-9) / 10).toFixed(1)} %`;
  }

  const shape = (sizes) => (sizes.length ? sizes.join(" × ") : "scalar");
  const elements = (sizes) => sizes.reduce((product, size) => product * size, 1);

  function age(since, now = Date.now()) {
    const seconds = Math.max(0, Math.floor((now - Date.parse(since)) / 1000));
    const [size, unit] = AGES.find(([least]) => seconds >= least) ?? [1, "s"];
    return `${Math.floor(seconds / size)} ${unit}`;
  }

  // What a person types: every word must occur, case does not count; `*` stands for anything.
  function matcher(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = words.map((word) => {
      if (!word.includes("*")) return (name) => name.includes(word);
      const parts = word.split("*").filter(Boolean);
      return (name) => {
        let from = 0;
        for (const part of parts) {
          const found = name.indexOf(part, from);
          if (found < 0) return false;
          from = found + part.length;
        }
        return true;
      };
    });
    return (name) => {
      const lower = name.toLowerCase();
      return tests.every((test) => test(lower));
    };
  }

  return { bytes, count, counted, number, percent, shape, elements, age, matcher };
})();

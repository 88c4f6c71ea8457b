"use strict";
// The scheme, and colours for what is drawn on a canvas, which takes no CSS variables.
const colours = (() => {
  const ORDER = ["system", "light", "dark"];
  const HUES = [188, 48, 285, 130, 18, 240, 90, 330];
  const LIGHT_STOPS = [
    [226, 240, 231],
    [174, 219, 196],
    [104, 186, 174],
    [43, 142, 160],
    [33, 93, 140],
    [40, 46, 104],
  ];
  const DARK_STOPS = [
    [33, 46, 74],
    [35, 85, 124],
    [30, 138, 140],
    [88, 184, 120],
    [208, 214, 98],
    [255, 243, 184],
  ];
  const listeners = new Set();
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  let scheme = "system";

  const isDark = () => (scheme === "system" ? preferred.matches : scheme === "dark");

  function choose(name) {
    scheme = name;
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    for (const listener of listeners) listener();
  }

  function next() {
    choose(ORDER[(ORDER.indexOf(scheme) + 1) % ORDER.length]);
    return scheme;
  }

  const probe = document.createElement("span");
  const found = new Map(); // of the scheme that is shown
  listeners.add(() => found.clear());

  // What a variable of theme.css is in the scheme that is shown.
  function of(variable) {
    if (!found.has(variable)) {
      document.body.append(probe);
      probe.style.color = `var(${variable})`;
      found.set(variable, getComputedStyle(probe).color);
      probe.remove();
    }
    return found.get(variable);
  }

  // A group's ground: as many hues as an eye tells apart, then the same again, duller.
  function group(index, depth = 0) {
    const hue = HUES[index % HUES.length];
    const chroma = (index >= HUES.length ? 0.03 : 0.062) + 0.004 * depth;
    const light = isDark() ? 0.37 + 0.035 * depth : 0.885 - 0.03 * depth;
    return `oklch(${light} ${chroma} ${hue})`;
  }

  // From what fades into the ground (0) to what stands out (1), even to a colour-blind eye: lightness alone carries it.
  function scale(share) {
    const stops = isDark() ? DARK_STOPS : LIGHT_STOPS;
    const t = Math.max(0, Math.min(1, share)) * (stops.length - 1);
    const first = Math.min(Math.floor(t), stops.length - 2);
    const mixed = stops[first].map((value, channel) =>
      Math.round(value + (t - first) * (stops[first + 1][channel] - value)),
    );
    return `rgb(${mixed.join(" ")})`;
  }

  const onScale = (share) => (isDark() === share < 0.55 ? "#ffffff" : "#14171a");

  preferred.addEventListener("change", () => {
    if (scheme === "system") for (const listener of listeners) listener();
  });

  return {
    of,
    group,
    scale,
    onScale,
    isDark,
    choose,
    next,
    current: () => scheme,
    onChange: (listener) => listeners.add(listener),
  };
})();

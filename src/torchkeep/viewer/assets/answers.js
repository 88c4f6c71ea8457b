"use strict";
// What Python knows, asked a question at a time: from the server, or from the lines that an exported page carries.
const answers = (() => {
  const carried = JSON.parse(document.getElementById("answers").textContent);
  const kept = new Map();
  const MOST_KEPT = 400;

  class Fault extends Error {
    constructor({ what, where, faults, remedy }) {
      super(what);
      Object.assign(this, { where, faults: faults ?? [], remedy });
    }
  }

  // As `answers.key_of` in Python makes it.
  function keyOf(question, asked) {
    return [
      question,
      ...Object.entries(asked)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, value]) => `${name}=${value}`),
    ].join(" ");
  }

  function has(question, asked) {
    return carried === null || Object.hasOwn(carried, keyOf(question, asked));
  }

  async function* lines(question, asked, signal) {
    if (carried !== null) {
      const found = carried[keyOf(question, asked)];
      if (!found)
        throw new Fault({ what: "this report does not hold that", remedy: "open the run itself: torchkeep view" });
      for (const line of found) yield checked(line);
      return;
    }
    const response = await fetch(`${question}?${new URLSearchParams(asked)}`, { signal }).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Fault({
        what: "torchkeep view does not answer",
        remedy: "start it again and open the address it prints",
      });
    });
    if (!response.ok && response.status !== 422) throw new Fault({ what: (await response.text()).trim() });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield checked(JSON.parse(part));
    }
  }

  function checked(line) {
    if (line.fault) throw new Fault(line.fault);
    return line;
  }

  async function first(question, asked, signal) {
    for await (const line of lines(question, asked, signal)) return line;
    throw new Fault({ what: "no answer", remedy: "read it again" });
  }

  // Answers do not change while a checkpoint stays; what failed is asked again.
  function once(question, asked, signal) {
    const key = keyOf(question, asked);
    if (!kept.has(key)) {
      if (kept.size >= MOST_KEPT) kept.delete(kept.keys().next().value);
      kept.set(key, first(question, asked, signal));
      kept.get(key).catch(() => kept.delete(key));
    }
    return kept.get(key);
  }

  return {
    standsAlone: carried !== null,
    carried: Object.keys(carried ?? {}),
    has,
    lines,
    first,
    once,
    forget: () => kept.clear(),
    Fault,
  };
})();

"use strict";
// What is chosen: the view, the checkpoint, what it is compared with, a tensor, the search. It stands in the address,
// so that a reload, the back button and a bookmark of an export come back to it.
const state = (() => {
  const chosen = { tab: "", at: "", from: "", tensor: "", query: "" };
  const listeners = new Set();

  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.keys(chosen).map((key) => [key, asked.get(key) ?? ""]));
  }

  function write() {
    const said = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== ""));
    history.replaceState(null, "", `#${said}`);
  }

  // Tell every listener once, with the names of what changed.
  function choose(changes) {
    const changed = Object.keys(changes).filter((key) => chosen[key] !== changes[key]);
    if (!changed.length) return;
    Object.assign(chosen, changes);
    write();
    for (const listener of listeners) listener(new Set(changed));
  }

  return { chosen, read, choose, onChange: (listener) => listeners.add(listener) };
})();

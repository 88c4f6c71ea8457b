"use strict";
// The page: which views there are, how they follow what is chosen, and the keys.
(() => {
  const { one, note } = elements;
  const { chosen } = state;
  const views = {};
  let looked = null; // the run or file
  let around = null; // the frame
  let checkpoint = null; // the answer for the one that is looked into
  let withRules = false;

  async function start() {
    Object.assign(chosen, state.read());
    frame.begin();
    document.addEventListener("keydown", onKey);
    try {
      build(await answers.first("subject", {}));
    } catch (error) {
      one("notices").replaceChildren(fault(error));
      return;
    }
    state.onChange(follow);
    colours.onChange(redraw);
    await open();
  }

  function build(run) {
    looked = subject.create(run);
    const isKnown = looked.ids.includes(chosen.at) && looked.ids.includes(chosen.from);
    if (!isKnown) Object.assign(chosen, { ...looked.first(), ...known("at"), ...known("from") });
    views.weights = weightsView.create();
    views.movement = movementView.create({ onMeasured: views.weights.setMovement, onForce: () => fill(true) });
    views.plan = planView.create({ onRules: setRules });
    if (run.is_run) views.run = runView.create(run, pick);
    const tabs = tabsOf(run);
    if (!tabs.some(([name]) => name === chosen.tab)) chosen.tab = tabs[0][0];
    around = frame.create(
      looked,
      tabs,
      Object.fromEntries(Object.entries(views).map(([name, { node }]) => [name, node])),
    );
  }

  const known = (key) => (looked.ids.includes(chosen[key]) ? { [key]: chosen[key] } : {});

  function tabsOf(run) {
    const tabs = run.is_run ? [["run", "Run"]] : [];
    if (looked.kept.length) tabs.push(["weights", "Weights"]);
    if (looked.kept.length && looked.ids.length > 1) tabs.push(["movement", "Movement"], ["plan", "Load plan"]);
    return tabs;
  }

  function setRules(wanted) {
    withRules = wanted;
    fill();
  }

  function pick(id, asFrom) {
    state.choose(asFrom ? { from: id } : { at: id, tensor: "" });
    elements.announce(asFrom ? `compared with ${looked.label(id)}` : `looking into ${looked.label(id)}`);
  }

  const fault = (error, of = "") =>
    note(`${of}${error.message}.`, error.remedy, { bad: !answers.standsAlone, list: error.faults ?? [] });

  // What is chosen has changed: `changed` has the names.
  async function follow(changed) {
    around.update();
    if (changed.has("at") || changed.has("from")) {
      views.run?.update();
      views.weights.setMovement(null);
    }
    if (changed.has("query")) search();
    if (changed.has("at")) await open();
    else if (changed.has("tab") || changed.has("from")) fill();
    if (changed.has("tensor") || changed.has("from")) showTensor();
    if (changed.has("tensor")) {
      views.weights.reveal();
      redraw();
    }
  }

  function search() {
    if (chosen.tab === "run" && chosen.query) state.choose({ tab: "weights" });
    for (const name of ["weights", "movement", "plan"]) views[name].search();
  }

  async function open() {
    const wanted = chosen.at;
    if (!wanted) return;
    one("notices").replaceChildren();
    try {
      const found = await answers.once("checkpoint", { of: wanted });
      if (wanted !== chosen.at) return;
      checkpoint = found;
    } catch (error) {
      if (wanted !== chosen.at) return;
      checkpoint = null;
      one("notices").replaceChildren(fault(error, `${looked.label(wanted)}: `));
      return;
    }
    const { format, tensors } = checkpoint;
    if (!looked.run.is_run) one("summary").textContent = `${format} · ${text.counted(tensors.name.length, "tensor")}`;
    views.weights.show(checkpoint);
    fill();
    showTensor();
  }

  // Ask for what the view that is open needs.
  function fill(force = false) {
    const { tab, at, from } = chosen;
    if (!checkpoint || !from) return;
    const names = { at: looked.label(at), from: looked.label(from) };
    if (tab === "movement") views.movement.show({ ...checkpoint, at, from, names, force });
    if (tab === "plan") views.plan.show({ at, into: from, withRules, names });
  }

  function showTensor() {
    const { at, from, tensor } = chosen;
    const index = checkpoint && tensor ? checkpoint.tensors.name.indexOf(tensor) : -1;
    if (index < 0) {
      tensorPanel.hide();
      return;
    }
    const names = { at: looked.label(at), from: looked.label(from) };
    tensorPanel.show({ columns: checkpoint.tensors, index, at, from, names });
  }

  function redraw() {
    views.weights.redraw();
    views.movement.redraw();
  }

  async function readAgain() {
    if (answers.standsAlone) return;
    answers.forget();
    build(await answers.first("subject", {}).catch(() => looked.run));
    await open();
    elements.announce(`read again: ${looked.summary()}`);
  }

  function step(key, by) {
    const id = looked.ids[looked.ids.indexOf(chosen[key]) + by];
    if (id && looked.holds(key, id)) state.choose({ [key]: id });
  }

  const KEYS = {
    "/": () => one("search").focus(),
    "?": () => one("help").showModal(),
    t: colours.next,
    r: readAgain,
    "[": () => step("at", -1),
    "]": () => step("at", 1),
    "{": () => step("from", -1),
    "}": () => step("from", 1),
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target instanceof Element && event.target.matches("input, select, textarea");
    if (event.key === "Escape" && !one("help").open) {
      if (isTyping && chosen.query) state.choose({ query: "" });
      else if (isTyping) event.target.blur();
      else state.choose({ tensor: "" });
      return;
    }
    if (isTyping || !looked) return;
    const tab = one("tabs").children[Number(event.key) - 1];
    const act = tab ? () => tab.click() : KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  start();
})();

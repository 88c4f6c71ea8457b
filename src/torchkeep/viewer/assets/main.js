"use strict";
// The page: which views there are, which checkpoints are chosen, and the keys.
(() => {
  const { el, one, note } = elements;
  const { chosen } = state;
  const views = {};
  let run = null;
  let checkpoint = null; // the answer for the one that is looked into
  let withRules = false;
  const pickers = {};

  async function start() {
    Object.assign(chosen, state.read());
    chrome();
    try {
      run = await answers.first("subject", {});
    } catch (error) {
      one("notices").replaceChildren(note(`${error.message}.`, error.remedy, { bad: true }));
      return;
    }
    build();
    state.onChange(follow);
    colours.onChange(redraw);
    await open();
  }

  // -- the frame ------------------------------------------------------------------------------------------------

  function chrome() {
    const theme = one("theme");
    const sayTheme = () => { theme.textContent = { system: "Auto", light: "Light", dark: "Dark" }[colours.current()]; theme.setAttribute("aria-label", `Colours: ${colours.current()}`); };
    theme.addEventListener("click", colours.next);
    colours.onChange(sayTheme);
    sayTheme();
    one("help-button").addEventListener("click", () => one("help").showModal());
    const search = one("search");
    search.value = chosen.query;
    search.addEventListener("input", () => state.choose({ query: search.value }));
    one("tabs").addEventListener("keydown", moveTab);
    document.addEventListener("keydown", key);
  }

  function build() {
    one("title").textContent = run.path;
    one("title").title = run.path;
    document.title = `${run.path} – torchkeep`;
    one("summary").textContent = summary();
    const ids = ids_();
    if (!ids.includes(chosen.at)) chosen.at = kept().at(-1) ?? "";
    if (!ids.includes(chosen.from)) chosen.from = defaultFrom();
    const shown = tabs();
    if (!shown.some(([name]) => name === chosen.tab)) chosen.tab = shown[0][0];
    views.weights = weightsView.create();
    views.movement = movementView.create({ onMeasured: views.weights.setMovement });
    views.movement.node.addEventListener("measure", () => fill(true));
    views.plan = planView.create({ onRules: (wanted) => { withRules = wanted; fill(); } });
    if (run.is_run) views.run = runView.create(run, pick);
    drawTabs(shown);
    drawPickers();
  }

  const kept = () => run.checkpoints.map((each) => each.id);
  const ids_ = () => [...kept(), ...run.beside.map((each) => each.id)];
  const pathOf = (id) => run.beside.find((each) => each.id === id)?.name ?? run.path;

  // A step, or of a path as much of its end as tells it from the others.
  function label(id) {
    const step = run.is_run && run.checkpoints.find((each) => each.id === id)?.step;
    if (typeof step === "number") return `step ${text.count(step)}`;
    const others = [...run.beside.map((each) => each.id), ...(run.is_run ? [] : kept())].filter((other) => other !== id).map(pathOf);
    const parts = pathOf(id).split("/").filter(Boolean);
    for (let count = 1; count < parts.length; count += 1) {
      const end = `/${parts.slice(-count).join("/")}`;
      if (!others.some((other) => `/${other}`.endsWith(end))) return end.slice(1);
    }
    return pathOf(id);
  }

  // A report holds one comparison: that is where it opens.
  const carriedPair = () => answers.carried.map((key) => /^movement from=(\S+) to=(\S+)$/.exec(key)).find(Boolean);

  function defaultFrom() {
    const carried = carriedPair();
    if (carried) {
      chosen.at = carried[2];
      return carried[1];
    }
    return run.beside[0]?.id ?? kept().find((id) => id !== chosen.at) ?? "";
  }

  function tabs() {
    const canCompare = ids_().length > 1;
    return [
      ...(run.is_run ? [["run", "Run"]] : []),
      ...(kept().length ? [["weights", "Weights"]] : []),
      ...(kept().length && canCompare ? [["movement", "Movement"], ["plan", "Load plan"]] : []),
    ].concat(run.is_run || kept().length ? [] : [["weights", "Weights"]]);
  }

  function summary() {
    if (!run.is_run) return "";
    const steps = run.checkpoints.map((each) => text.count(each.step));
    const range = steps.length > 1 ? `steps ${steps[0]} – ${steps.at(-1)}` : steps.length ? `step ${steps[0]}` : "";
    return [text.counted(steps.length, "checkpoint"), range, `${text.bytes(run.disk_bytes)} on disk`].filter(Boolean).join(" · ");
  }

  function drawTabs(shown) {
    one("tabs").replaceChildren(...shown.map(([name, title]) => el("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, onclick: () => state.choose({ tab: name }),
    }, title)));
    one("views").replaceChildren(...shown.map(([name]) => {
      const { node } = views[name];
      node.id = `view-${name}`;
      node.setAttribute("role", "tabpanel");
      node.setAttribute("aria-labelledby", `tab-${name}`);
      return node;
    }));
  }

  function moveTab(event) {
    const names = [...one("tabs").children].map((tab) => tab.id.slice("tab-".length));
    const places = { ArrowLeft: names.indexOf(chosen.tab) - 1, ArrowRight: names.indexOf(chosen.tab) + 1, Home: 0, End: names.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    state.choose({ tab: names[(places[event.key] + names.length) % names.length] });
    one(`tab-${chosen.tab}`).focus();
  }

  function selectTab() {
    for (const tab of one("tabs").children) {
      const isChosen = tab.id === `tab-${chosen.tab}`;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      one(tab.getAttribute("aria-controls")).hidden = !isChosen;
    }
    pickers.from.closest("label").hidden = !["movement", "plan"].includes(chosen.tab) || ids_().length < 2;
    pickers.from.closest("label").firstChild.textContent = chosen.tab === "plan" ? "into a model like" : "compared with";
    pickers.at.closest("label").hidden = ids_().length < 2;
    pickers.swap.hidden = pickers.from.closest("label").hidden || !isHere("at", chosen.from);
  }

  function drawPickers() {
    const choice = (key, title, ids) => {
      pickers[key] = el("select", { onchange: (event) => state.choose({ [key]: event.target.value, tensor: key === "at" ? "" : chosen.tensor }) },
        ids.map((id) => el("option", { value: id, disabled: !isHere(key, id), title: run.is_run ? null : pathOf(id) }, label(id))));
      return el("label", { class: `picker ${key}` }, el("span", {}, title), pickers[key]);
    };
    one("pickers").replaceChildren(
      choice("at", "checkpoint", [...kept().reverse(), ...run.beside.map((each) => each.id)]),
      pickers.swap = el("button", { type: "button", class: "tool", "aria-label": "Exchange the two", title: "Exchange the two", onclick: () => state.choose({ at: chosen.from, from: chosen.at, tensor: "" }) }, "⇄"),
      choice("from", "compared with", [...kept().reverse(), ...run.beside.map((each) => each.id)]),
    );
    selectPickers();
    selectTab();
  }

  const isHere = (key, id) => (key === "at" ? answers.has("checkpoint", { of: id }) : !answers.standsAlone || answers.carried.some((each) => each.includes(`=${id}`)));

  function selectPickers() {
    for (const key of ["at", "from"]) pickers[key].value = chosen[key];
  }

  function pick(id, asFrom) {
    state.choose(asFrom ? { from: id } : { at: id, tensor: "" });
    elements.announce(asFrom ? `compared with ${label(id)}` : `looking into ${label(id)}`);
  }

  // -- following what is chosen ----------------------------------------------------------------------------------

  async function follow(changed) {
    if (changed.has("at") || changed.has("from")) {
      selectPickers();
      views.run?.update();
      views.weights.setMovement(null);
    }
    if (changed.has("tab")) selectTab();
    if (changed.has("query")) {
      if (one("search").value !== chosen.query) one("search").value = chosen.query;
      if (chosen.tab === "run" && chosen.query) state.choose({ tab: "weights" });
      for (const name of ["weights", "movement", "plan"]) views[name].search();
    }
    if (changed.has("at")) await open();
    else if (changed.has("tab") || changed.has("from")) fill();
    if (changed.has("tensor") || changed.has("from")) showTensor();
    if (changed.has("tensor")) {
      views.weights.reveal();
      redraw();
    }
  }

  async function open() {
    if (!chosen.at) return;
    const wanted = chosen.at;
    one("notices").replaceChildren();
    try {
      const found = await answers.once("checkpoint", { of: wanted });
      if (wanted !== chosen.at) return;
      checkpoint = found;
    } catch (error) {
      if (wanted !== chosen.at) return;
      checkpoint = null;
      one("notices").replaceChildren(note(`${label(wanted)}: ${error.message}.`, error.remedy, { bad: !answers.standsAlone, list: error.faults ?? [] }));
      return;
    }
    if (!run.is_run) one("summary").textContent = `${checkpoint.format} · ${text.counted(checkpoint.tensors.name.length, "tensor")}`;
    views.weights.show(checkpoint);
    fill();
    showTensor();
  }

  function fill(force = false) {
    if (!checkpoint) return;
    const names = { at: label(chosen.at), from: label(chosen.from), into: label(chosen.from) };
    if (chosen.tab === "movement" && chosen.from) views.movement.show({ ...checkpoint, at: chosen.at, from: chosen.from, names, force });
    if (chosen.tab === "plan" && chosen.from) views.plan.show({ at: chosen.at, into: chosen.from, withRules, names });
  }

  function showTensor() {
    const index = checkpoint?.tensors.name.indexOf(chosen.tensor) ?? -1;
    if (!chosen.tensor || index < 0) {
      tensorPanel.hide();
      return;
    }
    const names = { at: label(chosen.at), from: label(chosen.from) };
    tensorPanel.show({ columns: checkpoint.tensors, index, at: chosen.at, from: chosen.from, names });
  }

  function redraw() {
    views.weights.redraw();
    views.movement.redraw();
  }

  async function readAgain() {
    if (answers.standsAlone) return;
    answers.forget();
    run = await answers.first("subject", {}).catch(() => run);
    build();
    await open();
    elements.announce(`read again: ${summary()}`);
  }

  // -- keys -----------------------------------------------------------------------------------------------------

  function neighbour(key, by) {
    const ids = ids_();
    const at = ids.indexOf(chosen[key]) + by;
    if (at >= 0 && at < ids.length && isHere(key, ids[at])) state.choose(key === "at" ? { at: ids[at] } : { from: ids[at] });
  }

  const KEYS = {
    "/": () => one("search").focus(),
    "?": () => one("help").showModal(),
    t: colours.next,
    r: readAgain,
    "[": () => neighbour("at", -1),
    "]": () => neighbour("at", 1),
    "{": () => neighbour("from", -1),
    "}": () => neighbour("from", 1),
  };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target instanceof Element && event.target.matches("input, select, textarea");
    if (event.key === "Escape" && !one("help").open) {
      if (isTyping && chosen.query) state.choose({ query: "" });
      else if (isTyping) event.target.blur();
      else state.choose({ tensor: "" });
      return;
    }
    if (isTyping || !run) return;
    const tab = one("tabs").children[Number(event.key) - 1];
    const act = tab ? () => tab.click() : KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  start();
})();

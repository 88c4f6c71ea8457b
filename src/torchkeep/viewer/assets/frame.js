"use strict";
// Around the views: the title, the tabs, the choice of two checkpoints, the scheme, the search.
const frame = (() => {
  const { el, one } = elements;
  const { chosen } = state;
  const COMPARING = ["movement", "plan"];

  // What stands there before anything is known. Listeners are added once.
  function begin() {
    const theme = one("theme");
    const say = () => {
      theme.textContent = { system: "Auto", light: "Light", dark: "Dark" }[colours.current()];
      theme.setAttribute("aria-label", `Colours: ${colours.current()}`);
    };
    theme.addEventListener("click", colours.next);
    colours.onChange(say);
    say();
    one("help-button").addEventListener("click", () => one("help").showModal());
    const search = one("search");
    search.value = chosen.query;
    search.addEventListener("input", () => state.choose({ query: search.value }));
    one("tabs").addEventListener("keydown", moveTab);
  }

  // Tabs are [name, title]; `nodes` are the views by name.
  function create(looked, tabs, nodes) {
    const selects = {};
    const swap = button("tool", "⇄", () => state.choose({ at: chosen.from, from: chosen.at, tensor: "" }));
    swap.title = "Exchange the two";
    swap.setAttribute("aria-label", "Exchange the two");
    const pickers = { at: picker("at", "checkpoint"), from: picker("from", "compared with") };
    one("title").textContent = looked.run.path;
    one("title").title = looked.run.path;
    document.title = `${looked.run.path} – torchkeep`;
    one("summary").textContent = looked.summary();
    one("tabs").replaceChildren(...tabs.map(([name, title]) => tab(name, title)));
    one("views").replaceChildren(...tabs.map(([name]) => panel(nodes[name], name)));
    one("pickers").replaceChildren(pickers.at, swap, pickers.from);

    function picker(key, title) {
      const choose = ({ target }) => state.choose({ [key]: target.value, ...(key === "at" ? { tensor: "" } : {}) });
      const option = (id) => el("option", { value: id, disabled: !looked.holds(key, id) }, looked.label(id));
      selects[key] = el("select", { onchange: choose }, looked.choices.map(option));
      return el("label", { class: `picker ${key}` }, el("span", {}, title), selects[key]);
    }

    function update() {
      for (const each of one("tabs").children) {
        const isChosen = each.id === `tab-${chosen.tab}`;
        each.setAttribute("aria-selected", String(isChosen));
        each.tabIndex = isChosen ? 0 : -1;
        one(each.getAttribute("aria-controls")).hidden = !isChosen;
      }
      for (const key of ["at", "from"]) selects[key].value = chosen[key];
      const isAlone = looked.ids.length < 2;
      pickers.at.hidden = isAlone;
      pickers.from.hidden = isAlone || !COMPARING.includes(chosen.tab);
      pickers.from.firstChild.textContent = chosen.tab === "plan" ? "into a model like" : "compared with";
      swap.hidden = pickers.from.hidden || !looked.holds("at", chosen.from);
      if (one("search").value !== chosen.query) one("search").value = chosen.query;
    }

    update();
    return { update };
  }

  const button = (className, title, onclick) => el("button", { type: "button", class: className, onclick }, title);

  function tab(name, title) {
    const made = el(
      "button",
      { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}` },
      title,
    );
    made.addEventListener("click", () => state.choose({ tab: name }));
    return made;
  }

  function panel(node, name) {
    node.id = `view-${name}`;
    node.setAttribute("role", "tabpanel");
    node.setAttribute("aria-labelledby", `tab-${name}`);
    return node;
  }

  function moveTab(event) {
    const names = [...one("tabs").children].map((each) => each.id.slice("tab-".length));
    const at = names.indexOf(chosen.tab);
    const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: names.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    state.choose({ tab: names[(places[event.key] + names.length) % names.length] });
    one(`tab-${chosen.tab}`).focus();
  }

  return { begin, create };
})();

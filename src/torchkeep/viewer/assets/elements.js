"use strict";
// Elements made from data: text is only ever text, so a tensor may be called <script> and is shown as that.
const elements = (() => {
  const MOST_LISTED = 200;
  const SVG = "http://www.w3.org/2000/svg";

  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    return node;
  }

  function el(tag, attributes, ...children) {
    const node = set(document.createElement(tag), attributes);
    node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  function svg(tag, attributes, ...children) {
    const node = set(document.createElementNS(SVG, tag), attributes);
    node.append(...children.flat(2).filter(Boolean));
    return node;
  }

  const one = (id) => document.getElementById(id);

  // A definition list; rows without a value are left out.
  function pairs(rows, className = "pairs") {
    const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    if (className === "facts")
      return el(
        "dl",
        { class: className },
        shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
      );
    return el(
      "dl",
      { class: className },
      shown.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    );
  }

  function card(title, about, ...content) {
    const tools = el("div", { class: "card-tools" });
    const said = el("p", {}, about ?? "");
    const head = el("div", { class: "card-head" }, el("div", {}, el("h2", {}, title), said), tools);
    return Object.assign(el("section", { class: "card", "aria-label": title }, head, ...content), { tools, said });
  }

  function note(strong, rest, { bad = false, list = [] } = {}) {
    const said = [el("strong", {}, strong), rest ? ` ${rest}` : ""];
    const more = list.length > MOST_LISTED ? `… and ${list.length - MOST_LISTED} more` : null;
    const lines = el(
      "ul",
      {},
      [...list.slice(0, MOST_LISTED), more].filter(Boolean).map((line) => el("li", {}, line)),
    );
    const content = list.length
      ? el("details", { open: bad && list.length < 6 }, el("summary", {}, said), lines)
      : said;
    return el("div", { class: bad ? "note bad" : "note", role: bad ? "alert" : null }, content);
  }

  // One tip for the whole page, beside the pointer or beside what has the focus.
  function tip(lines, x, y) {
    const node = one("tip");
    const [first, ...rest] = lines;
    node.replaceChildren(el("strong", {}, first), ...rest.map((line) => el("div", {}, line)));
    node.hidden = false;
    const { width, height } = node.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? Math.max(4, x - width - 14) : x + 14;
    const top_ = y + 16 + height > innerHeight ? Math.max(4, y - height - 10) : y + 16;
    Object.assign(node.style, { left: `${left}px`, top: `${top_}px` });
  }

  function hideTip() {
    one("tip").hidden = true;
  }

  // Tell a screen reader, without showing.
  function announce(message) {
    one("status").textContent = message;
  }

  function copy(button, content) {
    const said = button.textContent;
    navigator.clipboard
      .writeText(content)
      .then(
        () => {
          button.textContent = "Copied";
        },
        () => {
          button.textContent = "Select and copy it";
        },
      )
      .finally(() =>
        setTimeout(() => {
          button.textContent = said;
        }, 1600),
      );
  }

  return { el, svg, one, pairs, card, note, tip, hideTip, announce, copy };
})();

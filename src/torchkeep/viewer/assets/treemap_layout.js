"use strict";
// A tree of tensor names with sizes, and rectangles for it. Nothing here touches the page.
const treemapLayout = (() => {
  const HEADER = 17;
  const MOST_LEVELS = 24;
  const LEAST_SIDE = 26; // of a group that is worth dividing

  // Dotted names as a tree: {label, path, bytes, count, children, index}; a group with one child is one with it.
  function grow(names, bytesOf) {
    const root = { label: "", path: "", bytes: 0, count: 0, children: new Map(), index: -1 };
    names.forEach((name, index) => {
      const bytes = bytesOf(index);
      if (!bytes) return;
      let node = root;
      node.bytes += bytes;
      node.count += 1;
      for (const label of levels(name)) {
        let child = node.children.get(label);
        if (!child) {
          child = {
            label,
            path: node.path ? `${node.path}.${label}` : label,
            bytes: 0,
            count: 0,
            children: new Map(),
            index: -1,
          };
          node.children.set(label, child);
        }
        child.bytes += bytes;
        child.count += 1;
        node = child;
      }
      node.index = index;
    });
    return joined(root, true);
  }

  // A name may have ten thousand dots: what is deeper than anybody looks is one label.
  function levels(name) {
    const labels = name.split(".");
    return labels.length > MOST_LEVELS
      ? [...labels.slice(0, MOST_LEVELS - 1), labels.slice(MOST_LEVELS - 1).join(".")]
      : labels;
  }

  function joined(node, isRoot = false) {
    let children = [...node.children.values()].map((child) => joined(child));
    if (!isRoot && children.length === 1 && node.index < 0) {
      return { ...children[0], label: `${node.label}.${children[0].label}` };
    }
    children = children.sort((a, b) => b.bytes - a.bytes);
    // A name may be a tensor and the beginning of others at once.
    if (children.length && node.index >= 0) {
      const own = node.bytes - children.reduce((sum, child) => sum + child.bytes, 0);
      children.push({ label: node.label, path: node.path, bytes: own, count: 1, children: [], index: node.index });
    }
    return { ...node, children, index: children.length ? -1 : node.index };
  }

  function find(root, path) {
    if (!path) return root;
    for (let node = root; ;) {
      const next = node.children.find((child) => path === child.path || path.startsWith(`${child.path}.`));
      if (!next) return node.path ? node : root;
      if (next.path === path || !next.children.length) return next;
      node = next;
    }
  }

  // Rectangles from the outside in: {node, depth, x, y, width, height, isOpen, hue}; a group without room stays closed.
  function rectangles(root, width, height) {
    const found = [];
    place(root, { x: 0, y: 0, width, height }, 0, -1, found);
    return found;
  }

  function place(node, box, depth, hue, found) {
    const inside = depth ? inner(box) : box;
    const isOpen = node.children.length > 0 && (!depth || (inside.width > LEAST_SIDE && inside.height > LEAST_SIDE));
    if (depth) found.push({ node, depth, ...box, isOpen, hue });
    if (!isOpen) return;
    squarify(node.children, inside).forEach((childBox, index) => {
      if (childBox.width > 0.4 && childBox.height > 0.4)
        place(node.children[index], childBox, depth + 1, depth ? hue : index, found);
    });
  }

  function inner({ x, y, width, height }) {
    const header = height > 54 && width > 46 ? HEADER : 2;
    return { x: x + 2, y: y + header, width: width - 4, height: height - header - 2 };
  }

  // Squarified treemaps (Bruls, Huizing, van Wijk 2000): rows along the shorter side, as square as they get.
  function squarify(children, box) {
    const total = children.reduce((sum, child) => sum + child.bytes, 0);
    const unit = total ? (box.width * box.height) / total : 0;
    const boxes = [];
    let free = { ...box };
    for (let first = 0; first < children.length;) {
      const side = Math.min(free.width, free.height);
      let area = children[first].bytes * unit;
      let last = first + 1;
      while (last < children.length) {
        const more = area + children[last].bytes * unit;
        if (worst(children, first, last + 1, more, side, unit) > worst(children, first, last, area, side, unit)) break;
        area = more;
        last += 1;
      }
      free = layRow(children.slice(first, last), area, free, unit, boxes);
      first = last;
    }
    return boxes;
  }

  // The longest ratio of sides in a row; sizes fall, so its first and its last are the extremes.
  function worst(children, first, end, area, side, unit) {
    const thickness = area / side;
    const ratio = (child) => {
      const length = (child.bytes * unit) / thickness;
      return Math.max(length / thickness, thickness / length);
    };
    return Math.max(ratio(children[first]), ratio(children[end - 1]));
  }

  function layRow(row, area, free, unit, boxes) {
    const isColumn = free.width >= free.height;
    const thickness = area / (isColumn ? free.height : free.width) || 0;
    let at = isColumn ? free.y : free.x;
    for (const child of row) {
      const length = thickness ? (child.bytes * unit) / thickness : 0;
      boxes.push(
        isColumn
          ? { x: free.x, y: at, width: thickness, height: length }
          : { x: at, y: free.y, width: length, height: thickness },
      );
      at += length;
    }
    return isColumn
      ? { x: free.x + thickness, y: free.y, width: free.width - thickness, height: free.height }
      : { x: free.x, y: free.y + thickness, width: free.width, height: free.height - thickness };
  }

  return { grow, find, rectangles };
})();

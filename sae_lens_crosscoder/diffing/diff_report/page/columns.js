/* Which columns the list of latents shows, chosen by group. */

/** @returns {Map<string, Column[]>} */
function columnGroups() {
  const groups = new Map();
  for (const column of columns) groups.set(column.group, [...(groups.get(column.group) ?? []), column]);
  return groups;
}

function columnChooser() {
  const redraw = () => drawHead();
  const groups = [...columnGroups()].map(([group, members]) => {
    const boxes = members.map((column) => element("input", {
      type: "checkbox", checked: list.shown.has(column.name), "data-column": column.name,
      onchange: (event) => {
        if (event.target.checked) list.shown.add(column.name);
        else list.shown.delete(column.name);
        redraw();
      },
    }));
    const setAll = (/** @type {boolean} */ on) => {
      boxes.forEach((box) => { box.checked = on; });
      members.forEach((column) => (on ? list.shown.add(column.name) : list.shown.delete(column.name)));
      redraw();
    };
    return element("fieldset", {},
      element("legend", {}, visible(group)),
      element("p", { class: "all" },
        element("button", { type: "button", onclick: () => setAll(true) }, "all"),
        element("button", { type: "button", onclick: () => setAll(false) }, "none")),
      ...members.map((column, i) => element("label", { title: column.meaning },
        boxes[i], element("span", {}, visible(column.title), " ", element("code", {}, column.name)))));
  });
  const chooser = element("details", { class: "chooser" },
    element("summary", {}, "Columns"), element("div", { class: "groups" }, ...groups));
  chooser.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !chooser.open) return;
    event.stopPropagation();
    chooser.open = false;
    chooser.querySelector("summary").focus();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!chooser.contains(/** @type {Node} */ (event.target))) chooser.open = false;
  });
  return chooser;
}

/* The list of latents: only the rows in view are in the document, so that it stays fast however many there are. */

const ROW_HEIGHT = 30; // as in page.css
const SPARE_ROWS = 12; // above and below the view, so that scrolling shows no gap

const list = {
  filter: "",
  /** @type {string|null} name of the column that the list is sorted by; null: the index */
  sortedBy: null,
  descending: false,
  /** @type {number[]} latents that pass the filter, in order */
  rows: Array.from({ length: manifest.d_sae }, (_, latent) => latent),
  /** place of the active row in `rows` */
  active: 0,
  scrollTop: 0,
  shown: new Set(columns.filter((column) => column.shown).map((column) => column.name)),
};

/** @type {Object<string, HTMLElement>} Parts of the view, made once. */
const listView = {};

function showList() {
  if (!listView.root) makeList();
  listView.filter.value = list.filter;
  drawHead();
  return listView.root;
}

function makeList() {
  listView.filter = element("input", {
    id: "filter", type: "search", placeholder: "Filter: class:only nu_error<0.3", "aria-label": "Filter",
    "aria-describedby": "filter-error", autocomplete: "off", spellcheck: "false",
    oninput: () => applyFilter(listView.filter.value),
    onkeydown: (event) => {
      if (event.key === "Enter" || event.key === "ArrowDown" || event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        listView.table.focus({ preventScroll: true });
      }
    },
  });
  listView.count = element("output", { class: "count", for: "filter" });
  listView.error = element("p", { id: "filter-error", class: "error", role: "alert", hidden: true });
  listView.widths = element("colgroup");
  listView.head = element("thead");
  listView.body = element("tbody");
  listView.table = element("table", {
    class: "latents", role: "grid", tabindex: "0", "aria-label": "Latents; arrows move, Enter opens", onkeydown: moveInList,
  }, listView.widths, listView.head, listView.body);
  listView.scroller = element("div", {
    id: "scroller", class: "scroller",
    onscroll: () => {
      list.scrollTop = listView.scroller.scrollTop;
      drawRows();
    },
  }, listView.table);
  listView.root = element("div", { class: "list" },
    element("div", { class: "controls" }, listView.filter, listView.count, columnChooser()),
    listView.error, listView.scroller);
  new ResizeObserver(() => drawRows()).observe(listView.scroller);
}

/** Show what passes a filter; one that cannot be read leaves the rows as they are. @param {string} text */
function applyFilter(text) {
  let message = "";
  try {
    const test = parseFilter(text);
    list.filter = text;
    list.rows = [];
    for (let latent = 0; latent < manifest.d_sae; latent++) if (test(latent)) list.rows.push(latent);
    sortRows();
    history.replaceState(null, "", text ? listAddress(text) : "#latents");
  } catch (error) {
    if (!(error instanceof FilterError)) throw error;
    message = error.message;
  }
  if (!listView.root) return;
  listView.error.textContent = message;
  listView.error.hidden = !message;
  listView.filter.setAttribute("aria-invalid", String(Boolean(message)));
  if (!message) goTo(0);
}

/** Sort by a column; again turns the order round. Numbers begin with the largest. @param {string|null} name */
function sortBy(name) {
  const column = name === null ? null : columnNamed(name);
  list.descending = list.sortedBy === name ? !list.descending : column !== null && column.kind !== "text";
  list.sortedBy = name;
  sortRows();
  drawHead();
  goTo(0);
}

function sortRows() {
  const values = list.sortedBy === null ? null : columnNamed(list.sortedBy).values;
  const sign = list.descending ? -1 : 1;
  list.rows.sort((a, b) => {
    if (!values) return sign * (a - b);
    const [x, y] = [values[a], values[b]];
    // What is not defined comes last either way.
    if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || a - b;
    return sign * (x - y) || a - b;
  });
}

/** @returns {Column[]} */
function shownColumns() {
  return columns.filter((column) => list.shown.has(column.name));
}

function drawHead() {
  const heading = (name, title, meaning, numeric) => element("th", {
    scope: "col", class: numeric ? "number" : "",
    "aria-sort": list.sortedBy !== name ? "none" : list.descending ? "descending" : "ascending",
  }, element("button", { type: "button", "data-sort": name ?? "latent", title: meaning, onclick: () => sortBy(name) },
    visible(title), element("span", { class: "arrow", "aria-hidden": "true" },
      list.sortedBy !== name ? "" : list.descending ? " ▼" : " ▲")));
  const focused = document.activeElement?.getAttribute("data-sort");
  const shown = shownColumns();
  listView.head.replaceChildren(element("tr", {},
    heading(null, "Latent", "Index of the latent", true),
    ...shown.map((column) => heading(
      column.name, column.title, `${column.group}: ${column.meaning}`, column.kind !== "text",
    ))));
  listView.widths.replaceChildren(element("col", { class: "index" }),
    ...shown.map((column) => element("col", { class: column.kind === "text" ? "words" : "number" })));
  listView.table.style.width = `${80 + shown.reduce((sum, { kind }) => sum + (kind === "text" ? 170 : 120), 0)}px`;
  if (focused) listView.head.querySelector(`[data-sort="${focused}"]`)?.focus();
  drawRows();
}

function drawRows() {
  const { scroller, body } = listView;
  if (!scroller.isConnected) return;
  const inView = Math.ceil(scroller.clientHeight / ROW_HEIGHT);
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
  const last = Math.min(list.rows.length, first + inView + 2 * SPARE_ROWS);
  const shown = shownColumns();
  const spacer = (rows) => {
    const row = element("tr", { class: "spacer", "aria-hidden": "true" }, element("td", { colspan: shown.length + 1 }));
    row.style.height = `${rows * ROW_HEIGHT}px`;
    return row;
  };
  const rows = [];
  for (let place = first; place < last; place++) rows.push(makeRow(place, shown));
  body.replaceChildren(spacer(first), ...rows, spacer(list.rows.length - last));
  listView.table.setAttribute("aria-rowcount", String(list.rows.length + 1));
  const isActiveDrawn = list.active >= first && list.active < last;
  if (isActiveDrawn) listView.table.setAttribute("aria-activedescendant", "active-row");
  else listView.table.removeAttribute("aria-activedescendant");
  listView.count.textContent = list.rows.length === manifest.d_sae
    ? counted(manifest.d_sae, "latent")
    : `${WHOLE.format(list.rows.length)} of ${counted(manifest.d_sae, "latent")}`;
}

/** @param {number} place @param {Column[]} shown */
function makeRow(place, shown) {
  const latent = list.rows[place];
  const cells = shown.map((column) => {
    if (column.name === "class" && column.kind === "text") return element("td", {}, chip(classOf(latent)));
    const text = formatCell(column, latent);
    return element("td", { class: column.kind === "text" ? "" : "number", title: text.length > 11 && text }, text);
  });
  return element("tr", {
    id: place === list.active && "active-row", class: place === list.active ? "active" : "",
    "aria-rowindex": place + 2, "aria-selected": String(place === list.active), "data-latent": latent,
    onclick: (event) => {
      if (event.target.closest("a")) return; // the link goes there itself, or into another tab
      list.active = place;
      location.hash = `#latent=${latent}`;
    },
  }, element("td", { class: "number" }, element("a", { href: `#latent=${latent}`, tabindex: "-1" }, latent)), ...cells);
}

/** Make a row the active one and bring it into view. @param {number} place */
function goTo(place) {
  list.active = Math.max(0, Math.min(place, list.rows.length - 1));
  const { scroller, head } = listView;
  const top = list.active * ROW_HEIGHT;
  const visibleRows = scroller.clientHeight - head.offsetHeight;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + ROW_HEIGHT > scroller.scrollTop + visibleRows) scroller.scrollTop = top + ROW_HEIGHT - visibleRows;
  list.scrollTop = scroller.scrollTop;
  drawRows();
}

/** @param {KeyboardEvent} event */
function moveInList(event) {
  if (event.target !== listView.table || event.altKey || event.ctrlKey || event.metaKey) return;
  const page = Math.max(1, Math.floor(listView.scroller.clientHeight / ROW_HEIGHT) - 2);
  const moves = {
    ArrowDown: list.active + 1, ArrowUp: list.active - 1, PageDown: list.active + page, PageUp: list.active - page,
    Home: 0, End: list.rows.length - 1,
  };
  if (event.key in moves) goTo(moves[event.key]);
  else if (event.key === "Enter" && list.rows.length) location.hash = `#latent=${list.rows[list.active]}`;
  else return;
  event.preventDefault();
}

/* The first page: findings in words and numbers, classes, figures, thresholds. */

function showOverview() {
  const figures = manifest.key_figures.map(([title, value, meaning]) => element("div", { class: "key", title: meaning },
    element("dt", {}, visible(title)),
    element("dd", {}, typeof value === "string" ? visible(value) : formatNumber(value)),
    meaning ? element("dd", { class: "note" }, visible(meaning)) : null));
  const texts = manifest.paragraphs.map((text) => element("p", {}, ...text.split("\n").flatMap(
    (line, i) => (i ? [element("br"), visible(line)] : [visible(line)]),
  )));
  const histograms = manifest.histograms.map(histogramCard);
  const root = element("div", { class: "page" },
    texts.length || figures.length
      ? card("Summary", ...texts, figures.length ? element("dl", { class: "keys" }, ...figures) : null) : null,
    classCard(),
    ...manifest.tables.map(tableCard),
    manifest.scatter ? scatterCard(...manifest.scatter) : null,
    histograms.length ? element("div", { class: "figures" }, ...histograms) : null,
    pairsCard("Thresholds", manifest.thresholds), pairsCard("What was compared", manifest.metadata));
  return root;
}

/** How many latents each class has; a class opens its latents. */
function classCard() {
  const column = columnNamed("class");
  if (column?.kind !== "text") return null;
  const counts = column.names.map(() => 0);
  column.values.forEach((code) => { counts[code] += 1; });
  const largest = Math.max(...counts);
  const rows = column.names.map((name, code) => {
    const bar = element("span", { class: `share tone-${toneOf(name)}` });
    bar.style.width = `${(100 * counts[code]) / largest}%`;
    return element("tr", {},
      element("th", { scope: "row" }, element("a", { href: listAddress(`class="${name}"`) }, chip(name))),
      element("td", { class: "number" }, WHOLE.format(counts[code])),
      element("td", { class: "number" }, formatPercent(counts[code] / manifest.d_sae)),
      element("td", { class: "bars", "aria-hidden": "true" }, bar));
  });
  return card(`${counted(manifest.d_sae, "latent")} by class`,
    element("p", { class: "note" }, visible(column.meaning)), element("table", { class: "plain" }, element("tbody", {}, ...rows)));
}

/** A table whose first column says what each row is about. */
function tableCard({ title, note, columns, rows }) {
  const head = columns.map((name, i) => element("th", { scope: "col", class: i > 0 && "number" }, visible(name)));
  const body = rows.map(([name, ...cells]) => element("tr", {},
    element("th", { scope: "row" }, visible(String(name))),
    ...cells.map((cell) => element("td", { class: "number" },
      typeof cell === "number" || cell === null ? formatNumber(cell) : visible(String(cell))))));
  return card(title, note ? element("p", { class: "note" }, visible(note)) : null,
    element("div", { class: "sideways" }, element("table", { class: "plain findings" },
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body))));
}

/** @param {string} title @param {[string, any][]} pairs */
function pairsCard(title, pairs) {
  if (!pairs.length) return null;
  return card(title, element("table", { class: "plain" }, element("tbody", {}, ...pairs.map(([name, value]) => (
    element("tr", {}, element("th", { scope: "row" }, visible(name)),
      element("td", {}, typeof value === "string" ? visible(value) : formatNumber(value)))
  )))));
}

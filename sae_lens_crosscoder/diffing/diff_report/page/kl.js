/* Documents coloured by the KL between the models, or by what a latent carries of it. */

/** @type {[string, string, string][]} */
const KL_ORDERS = [
  ["total", "total KL", "Sum over the document, in nats"],
  ["mean", "mean KL", "Mean over its tokens, in nats"],
  ["max", "largest KL", "At one token, in nats"],
];
let klOrder = "mean";

/** The list of documents, most KL first. */
async function showDocuments() {
  const { documents } = manifest;
  if (!documents.length) {
    return element("div", { class: "page" }, card("KL documents", element("p", {}, "The report holds none.")));
  }
  const numbers = documents.map((_, number) => number)
    .sort((a, b) => (documents[b][klOrder] ?? -1) - (documents[a][klOrder] ?? -1) || a - b);
  const opened = await Promise.all(numbers.map(openDocument));
  const head = ["document", "data set", "tokens"].map((title) => (
    element("th", { scope: "col", class: title === "tokens" && "number" }, title)));
  head.push(...KL_ORDERS.map(([order, title, meaning]) => element("th", {
    scope: "col", class: "number", "aria-sort": order === klOrder ? "descending" : "none",
  }, element("button", {
    type: "button", title: meaning, "data-sort": order, onclick: async () => {
      klOrder = order;
      const view = await showDocuments();
      document.querySelector(".documents").replaceWith(view);
      view.querySelector(`[data-sort="${order}"]`).focus();
    },
  }, title, element("span", { class: "arrow", "aria-hidden": "true" }, order === klOrder ? " ▼" : "")))));
  head.push(element("th", { scope: "col" }, "around its largest KL"));
  const rows = numbers.map((number, row) => element("tr", {},
    element("td", {}, element("a", { href: `#kl=${number}` }, `document ${number}`)),
    element("td", {}, visible(documents[number].dataset)),
    element("td", { class: "number" }, WHOLE.format(documents[number].n_tokens)),
    ...KL_ORDERS.map(([order]) => element("td", { class: "number" }, formatNumber(documents[number][order], ALIGNED))),
    element("td", {}, excerpt(opened[row]))));
  return element("div", { class: "page documents" }, card("KL documents",
    element("p", { class: "note" }, `KL(${manifest.labels[1]} ‖ ${manifest.labels[0]}) of what the models predict to `
      + "follow each token, in nats."),
    element("div", { class: "sideways" }, element("table", { class: "plain" },
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)))));
}

/** The tokens around the largest KL of a document. */
function excerpt(text) {
  const largest = text.kl.reduce((best, kl, i) => (kl > (text.kl[best] || 0) ? i : best), 0);
  const from = Math.max(0, largest - 10);
  const tokens = text.tokens.slice(from, largest + 6).map((token) => token.replaceAll("\n", "⏎"));
  return element("p", { class: "text excerpt kl-colours", dir: "auto" },
    ...runningText(tokens, (i) => shareOfLargest(text.kl[from + i], text.max), () => ({})));
}

/** Rounding can leave a KL just below 0; NaN stays NaN. @param {number} kl @param {number|null} largest */
function shareOfLargest(kl, largest) {
  return largest > 0 ? Math.max(0, kl) / largest : kl * 0;
}

/**
 * One document.
 * @param {number} number
 * @param {number} latent whose attribution colours the text at first; NaN for KL
 */
async function showDocument(number, latent) {
  if (!manifest.documents[number]) {
    return element("div", { class: "page" }, card("There is no such document",
      element("p", {}, `The report has ${counted(manifest.documents.length, "document")}, counted from 0.`)));
  }
  const text = await openDocument(number);
  const rows = text.latents.map((_, row) => row)
    .sort((a, b) => Math.abs(text.attributions[b]) - Math.abs(text.attributions[a]));
  const details = element("div", { class: "card details", "aria-live": "polite" });
  const note = element("p", { class: "note" });
  const paragraph = element("div", {
    class: "text document", role: "listbox", "aria-label": "Tokens; arrows move", "aria-orientation": "horizontal", dir: "auto",
  }, ...runningText(text.tokens, () => 0, (i) => ({
    role: "option", "aria-selected": "false", tabindex: i ? "-1" : "0", "data-token": i,
  })));
  const spans = [...paragraph.querySelectorAll(".token")];
  const colour = (/** @type {number} */ row) => {
    paragraph.classList.toggle("kl-colours", row < 0);
    const largest = row < 0 ? text.max : Math.max(...spans.map((_, i) => Math.abs(text.attribution(row, i))));
    spans.forEach((span, i) => shade(
      span, row < 0 ? shareOfLargest(text.kl[i], largest) : text.attribution(row, i) / (largest || 1),
    ));
    note.replaceChildren(...(row < 0
      ? [`Colour: KL of what is predicted to follow the token, up to ${formatNumber(largest)} nats; struck through: not counted.`]
      : ["Colour: KL attribution of ", latentLink(text.latents[row]),
        `, up to ${formatNumber(largest)} nats either way, in 127 steps; blue lowers the KL.`]));
  };
  const select = element("select", { id: "colour", onchange: () => colour(Number(select.value)) },
    element("option", { value: -1 }, "KL"),
    ...rows.map((row) => element("option", { value: row, selected: text.latents[row] === latent },
      `latent ${text.latents[row]}, ${visible(classOf(text.latents[row]))}: ${formatNumber(text.attributions[row])} nats`)));
  colour(Number(select.value));
  followTokens(paragraph, spans, (i) => details.replaceChildren(...tokenDetails(text, rows, i)));
  return element("div", { class: "page document-page" },
    element("div", { class: "heading" }, element("h2", {}, `Document ${number}`), element("span", {}, visible(text.dataset)),
      element("span", { class: "steps" }, element("a", { class: "button", href: "#kl" }, "list"))),
    element("div", { class: "columns" },
      element("section", { class: "card" },
        element("div", { class: "controls" }, element("label", { for: "colour" }, "Coloured by "), select), note, paragraph),
      details));
}

/**
 * Pointer and keyboard over the tokens: the one under the pointer, or in focus, is told about.
 * @param {HTMLElement} paragraph @param {HTMLElement[]} spans @param {(i: number) => void} tell
 */
function followTokens(paragraph, spans, tell) {
  let current = 0;
  const choose = (/** @type {number} */ i) => {
    spans[current].setAttribute("aria-selected", "false");
    spans[current].tabIndex = -1;
    current = i;
    spans[i].setAttribute("aria-selected", "true");
    spans[i].tabIndex = 0;
    tell(i);
  };
  const indexOf = (/** @type {Event} */ event) => {
    const span = /** @type {HTMLElement} */ (event.target).closest("[data-token]");
    return span ? Number(span.getAttribute("data-token")) : null;
  };
  for (const kind of ["pointerover", "focusin"]) {
    paragraph.addEventListener(kind, (event) => {
      const i = indexOf(event);
      if (i !== null) choose(i);
    });
  }
  paragraph.addEventListener("click", (event) => { if (indexOf(event) !== null) spans[current].focus(); });
  paragraph.addEventListener("keydown", (event) => {
    const to = {
      ArrowRight: current + 1, ArrowLeft: current - 1, ArrowDown: current + 10, ArrowUp: current - 10, Home: 0,
      End: spans.length - 1,
    }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    spans[Math.max(0, Math.min(spans.length - 1, to))].focus();
  });
  choose(0);
}

/** What the models predict after one token, and which latents carry the KL there. */
function tokenDetails(text, rows, i) {
  const actual = text.tokens[i + 1];
  const carried = rows.map((row) => ({ latent: text.latents[row], value: text.attribution(row, i) }))
    .filter(({ value }) => value !== 0).sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 8);
  return [
    element("h3", {}, "After ", element("code", {}, visibleAlone(text.tokens[i]))),
    element("p", {}, `Token ${i}, KL ${formatNumber(text.kl[i])}${Number.isNaN(text.kl[i]) ? " (not counted)" : " nats"}`,
      actual === undefined ? "" : ". In the text follows ", actual === undefined ? null : element("code", {}, visibleAlone(actual))),
    element("div", { class: "nexts" }, ...manifest.labels.map((label, source) => element("div", { class: "next" },
      element("h4", {}, visible(label)),
      element("ol", {}, ...text.next(source, i).map(({ token, probability }) => {
        const bar = element("span", { class: "share" });
        bar.style.width = `${100 * probability}%`;
        return element("li", { class: token === actual ? "actual" : "" },
          element("code", {}, visibleAlone(token)), element("span", { class: "bars", "aria-hidden": "true" }, bar),
          element("span", { class: "number" }, formatPercent(probability)));
      }))))),
    element("h4", {}, "Carried by"),
    carried.length ? element("ul", { class: "carried" }, ...carried.map(({ latent, value }) => element("li", {},
      latentLink(latent), " ", classOf(latent) ? chip(classOf(latent)) : null,
      element("span", { class: "number" }, `≈ ${ABOUT.format(value)}`))))
      : element("p", { class: "note" }, "none of this document's latents"),
  ];
}

/* The page of one latent: where it fires, what it predicts, the documents whose KL it carries, all its numbers. */

/** @param {number} latent */
async function showLatent(latent) {
  if (!(Number.isInteger(latent) && latent >= 0 && latent < manifest.d_sae)) {
    return element("div", { class: "page" }, card("There is no such latent",
      element("p", {}, `Latents have the numbers 0 to ${manifest.d_sae - 1}.`)));
  }
  const [contexts, lens] = await Promise.all([openContexts(latent), openLens(latent)]);
  const { before, after } = neighbours(latent);
  const step = (to, label, arrow) => element("a", {
    class: "button", href: to === null ? null : `#latent=${to}`, "aria-disabled": String(to === null), "data-step": label,
  }, arrow);
  return element("div", { class: "page latent" },
    element("div", { class: "heading" },
      element("h2", {}, `Latent ${latent}`), classOf(latent) ? chip(classOf(latent)) : null,
      element("span", { class: "steps" }, step(before, "before", "← before"), step(after, "after", "after →"),
        element("a", { class: "button", href: listAddress(list.filter) }, "list"))),
    element("div", { class: "columns" },
      element("div", {}, contextCard(contexts), lensCard(lens), documentCard(latent)),
      element("div", {}, ...numberCards(latent))));
}

/** The latents before and after in the list as it is filtered and sorted. @param {number} latent */
function neighbours(latent) {
  const place = list.rows.indexOf(latent);
  if (place >= 0) list.active = place;
  return {
    before: place > 0 ? list.rows[place - 1] : null,
    after: place >= 0 && place < list.rows.length - 1 ? list.rows[place + 1] : null,
  };
}

function contextCard(contexts) {
  if (!contexts.length) {
    return card("Contexts", element("p", { class: "note" }, "The report holds no contexts of this latent."));
  }
  const byDataset = new Map();
  for (const context of contexts) {
    byDataset.set(context.dataset, [...(byDataset.get(context.dataset) ?? []), context]);
  }
  const parts = [...byDataset].map(([dataset, members]) => element("div", {},
    element("h3", {}, visible(dataset), " ", element("small", {}, counted(members.length, "context"))),
    ...members.map(contextLine)));
  return card("Contexts",
    element("p", { class: "note" }, `Colour: activation, up to ${formatNumber(contexts[0].largest)}, in 127 steps. `
      + "The framed token is the strongest of its context."), ...parts);
}

function contextLine({ tokens, values, peak, largest }) {
  const strongest = values.indexOf(Math.max(...values));
  return element("div", { class: "context" },
    element("span", { class: "number" }, EXACT.format(peak)),
    element("p", { class: "text", dir: "auto" }, ...runningText(tokens, (i) => values[i] / largest || 0, (i) => ({
      class: i === strongest ? "token peak" : "token",
      title: values[i] ? `activation about ${ABOUT.format(values[i])}` : null,
    }))));
}

function lensCard(lens) {
  if (!lens) return null;
  const half = (items, label) => element("ol", { "aria-label": label }, ...items.map(({ token, value }) => element("li", {},
    element("code", {}, visibleAlone(token)), element("span", { class: "number" }, formatNumber(value, ALIGNED)))));
  return card("Logit lens",
    element("p", { class: "note" }, "Change of a token's logit per unit of activation, straight from the decoder row."),
    element("div", { class: "lens" }, ...lens.map(({ label, top, bottom }) => element("div", {},
      element("h3", {}, visible(label)),
      top.length ? element("div", { class: "halves" },
        element("div", {}, element("h4", {}, "raised"), half(top, `${label}, raised`)),
        element("div", {}, element("h4", {}, "lowered"), half(bottom, `${label}, lowered`)))
        : element("p", { class: "note" }, "none")))));
}

/** The documents whose KL the latent carries, most first. @param {number} latent */
function documentCard(latent) {
  const found = manifest.documents.map((about, number) => ({
    number, about, carried: about.attributions[about.latents.indexOf(latent)],
  })).filter(({ carried }) => carried !== undefined).sort((a, b) => Math.abs(b.carried) - Math.abs(a.carried));
  if (!found.length) return null;
  return card("KL documents", element("table", { class: "plain" },
    element("thead", {}, element("tr", {}, ...["document", "data set", "carried (nats)", "KL in all (nats)"].map(
      (title, i) => element("th", { scope: "col", class: i > 1 ? "number" : "" }, title),
    ))),
    element("tbody", {}, ...found.map(({ number, about, carried }) => element("tr", {},
      element("td", {}, element("a", { href: `#kl=${number}&latent=${latent}` }, `document ${number}`)),
      element("td", {}, visible(about.dataset)),
      element("td", { class: "number" }, formatNumber(carried, ALIGNED)),
      element("td", { class: "number" }, formatNumber(about.total, ALIGNED)))))));
}

/** @param {number} latent */
function numberCards(latent) {
  return [...columnGroups()].map(([group, members]) => card(visible(group),
    element("dl", { class: "numbers" }, ...members.flatMap((column) => [
      element("div", {},
        element("dt", {}, visible(column.title)),
        element("dd", { class: "value" }, formatCell(column, latent)),
        element("dd", { class: "note" }, visible(column.meaning))),
    ]))));
}

/* Addresses, theme, keys: what holds the views together. */

const main = document.getElementById("main");
const help = document.getElementById("help");

/** The part of the address after "#" as names and values. */
function route() {
  return new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
}

let shownRoutes = 0;

async function show() {
  const address = route();
  const [view] = [...address.keys(), "overview"];
  const number = Number(address.get(view) || NaN);
  const turn = ++shownRoutes;
  const views = {
    overview: showOverview,
    latents: showList,
    latent: () => showLatent(number),
    kl: () => (address.get("kl") ? showDocument(number, Number(address.get("latent") || NaN)) : showDocuments()),
  };
  const content = await (views[view] ?? showOverview)();
  if (turn !== shownRoutes) return; // the reader has gone on meanwhile
  document.body.classList.toggle("fills", view === "latents");
  main.replaceChildren(content);
  main.dataset.view = view;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.dataset.view === (view === "latent" ? "latents" : view);
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "latents") {
    const filter = address.get("latents") ?? "";
    listView.scroller.scrollTop = list.scrollTop;
    if (filter !== list.filter && filter) {
      listView.filter.value = filter;
      applyFilter(filter);
    } else goTo(list.active);
    listView.table.focus({ preventScroll: true });
  } else {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || help.open) return;
  const target = /** @type {HTMLElement} */ (event.target);
  const isTyping = target.matches("input, select, textarea");
  const view = main.dataset.view;
  if (event.key === "Escape" && (view === "latent" || view === "kl")) {
    location.hash = view === "latent" ? listAddress(list.filter) : "#kl";
  } else if (isTyping) {
    return;
  } else if (event.key === "/") {
    event.preventDefault();
    if (view === "latents") listView.filter.focus();
    else {
      location.hash = listAddress(list.filter);
      window.addEventListener("shown", () => listView.filter.focus(), { once: true });
    }
  } else if (event.key === "?") {
    help.showModal();
  } else if (view === "latent" && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const step = document.querySelector(`[data-step="${event.key === "ArrowLeft" ? "before" : "after"}"][href]`);
    if (step) location.hash = step.getAttribute("href");
  }
}

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");

/** @param {"light"|"dark"} theme */
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  themeButton.title = `Change to ${theme === "dark" ? "light" : "dark"} colours`;
  document.dispatchEvent(new Event("themechange"));
}

async function start() {
  document.getElementById("title").textContent = visible(manifest.title);
  setTheme(systemTheme.matches ? "dark" : "light");
  systemTheme.addEventListener("change", () => setTheme(systemTheme.matches ? "dark" : "light"));
  themeButton.addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", onKey);
  if (!manifest.documents.length) document.querySelector('nav [data-view="kl"]').remove();
  await openTable();
  const display = async () => {
    await show();
    window.dispatchEvent(new Event("shown"));
  };
  window.addEventListener("hashchange", display);
  await display();
}

start().catch((error) => {
  main.replaceChildren(card("The page could not be drawn", element("p", {}, String(error))));
  throw error;
});

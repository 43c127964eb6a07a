/* Making elements. Data become text nodes and attributes, never markup. */

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "rect", "line", "path", "text", "title"]);

/**
 * An element. `on...` attributes are listeners, `false` and null leave an attribute out, strings become text nodes.
 * @param {string} tag
 * @param {Object<string, any>} [attributes]
 * @param {...(Node|string|number|null)} children
 */
function element(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null).map((child) => (
    child instanceof Node ? child : document.createTextNode(String(child))
  )));
  return node;
}

/** @param {string} title @param {...any} children */
function card(title, ...children) {
  return element("section", { class: "card" }, element("h2", {}, title), ...children);
}

/** Name of the style of a class: its place among the sources, so that colours stay the same from report to report. */
function toneOf(className) {
  const place = manifest.classes.indexOf(className);
  if (place < 0 || place === manifest.classes.length - 2) return "other";
  if (place === manifest.classes.length - 1) return "dead";
  return place === 1 ? "shared" : `s${Math.min(place ? place - 1 : 0, 4)}`;
}

/** @param {string} className */
function chip(className) {
  return element("span", { class: `chip tone-${toneOf(className)}` }, visible(className));
}

/** The address of the list of latents under a filter. @param {string} filter */
function listAddress(filter) {
  return `#latents=${encodeURIComponent(filter)}`;
}

/** @param {number} latent */
function latentLink(latent) {
  return element("a", { href: `#latent=${latent}` }, `latent ${latent}`);
}

/**
 * Tokens in running text, coloured by a value each; after a line break the text goes on below.
 * @param {string[]} tokens
 * @param {(i: number) => number} strength between -1 and 1; NaN for a token that does not count
 * @param {(i: number) => Object<string, any>} attributes
 */
function runningText(tokens, strength, attributes) {
  return tokens.flatMap((token, i) => {
    const span = element("span", { class: "token", ...attributes(i) }, visibleInText(token));
    shade(span, strength(i));
    return token.endsWith("\n") ? [span, element("br")] : [span];
  });
}

/** @param {HTMLElement} span @param {number} strength between -1 and 1 */
function shade(span, strength) {
  span.classList.toggle("negative", strength < 0);
  span.classList.toggle("uncounted", Number.isNaN(strength));
  span.style.setProperty("--strength", String(Math.min(Math.abs(strength), 1) || 0));
}

/** A colour of the present theme, for the canvas. @param {string} name */
function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/* What the page holds: a manifest of words, and blocks of numbers that are unpacked when first needed. */

/**
 * @typedef {Object} Column
 * @property {string} name
 * @property {string} title
 * @property {string} meaning
 * @property {string} group
 * @property {"number"|"percent"} format
 * @property {"linear"|"log"} scale
 * @property {boolean} shown
 * @property {"number"|"integer"|"flag"|"text"} kind
 * @property {string[]} [names] what the codes of a text column stand for
 * @property {Float32Array|Float64Array|Uint8Array|Uint16Array|Int32Array} values one a latent; codes for text
 */

const manifest = JSON.parse(document.getElementById("manifest").textContent);

/** @type {Column[]} Their values are there once `openTable` has ended. */
const columns = manifest.columns;

const ARRAY_TYPES = {
  f4: Float32Array, f8: Float64Array, i4: Int32Array, u2: Uint16Array, u1: Uint8Array, i1: Int8Array,
};

/** @type {Map<string, Promise<ArrayBuffer>>} */
const unpacked = new Map();

/**
 * The arrays of one block, by name. A block that the report has nothing for gives no arrays.
 * @param {string} block
 * @returns {Promise<Object<string, any>>}
 */
async function openBlock(block) {
  const places = Object.entries(manifest.arrays).filter(([, place]) => place[0] === block);
  if (!places.length) return {};
  if (!unpacked.has(block)) unpacked.set(block, inflate(document.getElementById(`block-${block}`).textContent));
  const buffer = await unpacked.get(block);
  return Object.fromEntries(places.map(([name, [, type, start, length]]) => [
    name.slice(block.length + 1), new ARRAY_TYPES[type](buffer, start, length),
  ]));
}

/** @param {string} base64 @returns {Promise<ArrayBuffer>} */
function inflate(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function openTable() {
  const arrays = await openBlock("table");
  for (const column of columns) column.values = arrays[column.name];
}

/** @type {Map<number, number[]>|undefined} */
let contextsOf;

/**
 * The contexts of a latent.
 * @param {number} latent
 * @returns {Promise<{dataset: string, tokens: string[], values: number[], peak: number, largest: number}[]>} `peak` is
 *   exact, `values` are in steps of a 127th of the latent's largest
 */
async function openContexts(latent) {
  if (!manifest.contexts) return [];
  const { datasets, width } = manifest.contexts;
  const arrays = await openBlock("contexts");
  if (!contextsOf) {
    contextsOf = new Map();
    arrays.latents.forEach((owner, row) => contextsOf.set(owner, [...(contextsOf.get(owner) ?? []), row]));
  }
  return (contextsOf.get(latent) ?? []).map((row) => {
    const places = Array.from({ length: width }, (_, i) => row * width + i).filter((i) => arrays.tokens[i] > 0);
    return {
      dataset: datasets[arrays.datasets[row]],
      tokens: places.map((i) => stringOf(arrays.tokens[i])),
      values: places.map((i) => (arrays.steps[i] / 127) * arrays.largest[row]),
      peak: arrays.peaks[row],
      largest: arrays.largest[row],
    };
  });
}

/**
 * What the sources' decoder rows of a latent raise and lower; null for a latent without a lens.
 * @param {number} latent
 */
async function openLens(latent) {
  const arrays = await openBlock("lens");
  const sides = Object.entries(manifest.lens).map(([label, { key, k }]) => {
    const row = arrays[`${key}.latents`].indexOf(latent);
    const read = (side) => Array.from({ length: row < 0 ? 0 : k }, (_, i) => ({
      token: stringOf(arrays[`${key}.${side}_tokens`][row * k + i]),
      value: arrays[`${key}.${side}_values`][row * k + i],
    }));
    return { label, top: read("top"), bottom: read("bottom") };
  });
  return sides.some((side) => side.top.length) ? sides : null;
}

/**
 * A document token by token.
 * @param {number} number
 */
async function openDocument(number) {
  const about = manifest.documents[number];
  const arrays = await openBlock("kl");
  const part = (name) => arrays[`${number}.${name}`];
  const { n_tokens: nTokens, n_next: nNext } = about;
  return {
    ...about,
    tokens: Array.from(part("tokens"), stringOf),
    kl: part("kl"),
    /** @param {number} row of `latents` @param {number} i */
    attribution: (row, i) => (part("steps")[row * nTokens + i] / 127) * part("largest")[row],
    /** @param {number} source @param {number} i */
    next: (source, i) => Array.from({ length: nNext }, (_, rank) => {
      const place = (source * nTokens + i) * nNext + rank;
      return { token: stringOf(part("next_tokens")[place]), probability: part("next_probabilities")[place] / 65535 };
    }),
  };
}

/** @param {number} index position among the strings, counted from 1 */
function stringOf(index) {
  return manifest.strings[index - 1];
}

/** @param {string} name */
function columnNamed(name) {
  return columns.find((column) => column.name === name);
}

/** @param {number} latent @returns {string} the class of a latent, "" if the table has none */
function classOf(latent) {
  const column = columnNamed("class");
  return column?.kind === "text" ? column.names[column.values[latent]] : "";
}

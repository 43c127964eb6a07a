/* Filters such as `class:only nu_error<0.3 -dead`: terms that all have to hold. */

class FilterError extends Error {}

/** @typedef {(latent: number) => boolean} Test */

const COMPARISONS = {
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  ":": (a, b) => a === b,
};

/**
 * @param {string} text
 * @returns {Test}
 * @throws {FilterError} with a message for the reader
 */
function parseFilter(text) {
  const terms = text.match(/(?:[^\s"]|"[^"]*"?)+/g) ?? [];
  const tests = terms.map((term) => {
    const negated = term.startsWith("-") && term.length > 1;
    const test = parseTerm(negated ? term.slice(1) : term);
    return negated ? (/** @type {number} */ latent) => !test(latent) : test;
  });
  return (latent) => tests.every((test) => test(latent));
}

/** @param {string} term @returns {Test} */
function parseTerm(term) {
  const parts = term.match(/^([A-Za-z][\w.-]*)(<=|>=|!=|<|>|=|:)(.*)$/s);
  const unquoted = (/** @type {string} */ word) => word.replaceAll('"', "");
  if (!parts) return freeText(unquoted(term).toLowerCase());
  const [, name, operator, word] = parts;
  const value = unquoted(word);
  if (name.toLowerCase() === "latent") return compareNumbers((latent) => latent, operator, value, name);
  const column = resolveColumn(name);
  const { values } = column;
  if (column.kind === "text") return compareText(column, operator, value.toLowerCase());
  if (column.kind === "flag" && /^(yes|no|true|false)$/i.test(value)) {
    const wanted = /^(yes|true)$/i.test(value) ? 1 : 0;
    return (latent) => COMPARISONS[operator](values[latent], wanted);
  }
  return compareNumbers((latent) => values[latent], operator, value, column.name);
}

/** @param {string} name @returns {Column} */
function resolveColumn(name) {
  const lower = name.toLowerCase();
  const exact = columns.find((column) => column.name.toLowerCase() === lower);
  const begun = columns.filter((column) => column.name.toLowerCase().startsWith(lower));
  if (exact || begun.length === 1) return exact ?? begun[0];
  if (!begun.length) throw new FilterError(`There is no column “${name}”; names stand under Columns.`);
  const names = begun.slice(0, 6).map((column) => column.name).join(", ");
  throw new FilterError(`“${name}” is the beginning of ${begun.length} columns: ${names}.`);
}

/** @returns {Test} */
function compareNumbers(read, operator, word, name) {
  if (/^(none|nan)$/i.test(word)) return (latent) => Number.isNaN(read(latent)) === (operator !== "!=");
  // Single precision where the column has it: 0.3 is another number there, and `=` would find nothing.
  const column = columnNamed(name);
  const number = column?.values instanceof Float32Array ? Math.fround(Number(word)) : Number(word);
  if (word.trim() === "" || Number.isNaN(number)) {
    throw new FilterError(`“${name}${operator}” needs a number, such as ${name}${operator}0.3.`);
  }
  return (latent) => !Number.isNaN(read(latent)) && COMPARISONS[operator](read(latent), number);
}

/** @param {Column} column @returns {Test} */
function compareText(column, operator, word) {
  if (operator.startsWith("<") || operator.startsWith(">")) {
    throw new FilterError(`“${column.name}” is text: ${column.name}:word, ${column.name}=word or ${column.name}!=word.`);
  }
  const fits = column.names.map((name) => {
    const lower = name.toLowerCase();
    return operator === ":" ? lower.includes(word) : (lower === word) === (operator === "=");
  });
  return (latent) => fits[column.values[latent]];
}

/** @param {string} word @returns {Test} */
function freeText(word) {
  if (/^\d+$/.test(word)) return (latent) => latent === Number(word);
  const tests = columns.filter((column) => column.kind === "text").map((column) => compareText(column, ":", word));
  return (latent) => tests.some((test) => test(latent));
}

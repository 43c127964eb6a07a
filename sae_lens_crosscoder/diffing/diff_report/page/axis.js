/* Axes of the figures: where a value lies between 0 and 1, and which values are written beside it. */

/**
 * @typedef {Object} Axis
 * @property {(value: number) => number} place between 0 and 1, below 0 or above 1 outside; NaN if it has no place
 * @property {{at: number, label: string}[]} ticks
 * @property {number} min
 * @property {number} max
 * @property {(place: number) => number} value the inverse of `place`
 */

/** Columns that an axis can show. */
function numericColumns() {
  return columns.filter((column) => column.kind === "number" || column.kind === "integer");
}

/** @param {Column} column @returns {Axis} */
function axisOf(column) {
  const isLog = column.scale === "log";
  const inner = isLog ? Math.log10 : (/** @type {number} */ value) => value;
  const outer = isLog ? (/** @type {number} */ value) => 10 ** value : (/** @type {number} */ value) => value;
  const placed = Float64Array.from(column.values, inner).filter(Number.isFinite).sort();
  let [low, high] = rangeOf(placed);
  const step = isLog ? Math.max(1, Math.round((high - low) / 6)) : niceStep((high - low) / 5);
  low = Math.floor(low / step + 1e-6) * step;
  high = Math.ceil(high / step - 1e-6) * step;
  const ticks = [];
  for (let i = 0; low + i * step <= high + step / 2; i++) {
    const value = outer(Number((low + i * step).toPrecision(12)));
    ticks.push({ at: (i * step) / (high - low), label: tickLabel(column, value) });
  }
  return {
    place: (value) => {
      const inside = inner(value);
      return Number.isFinite(inside) ? (inside - low) / (high - low) : NaN;
    },
    value: (place) => outer(low + place * (high - low)),
    ticks,
    min: outer(low),
    max: outer(high),
  };
}

/** The range of sorted values; if a few lie far out, that of all but one in a hundred. @param {Float64Array} sorted */
function rangeOf(sorted) {
  if (!sorted.length) return [0, 1];
  const at = (/** @type {number} */ share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = at(1) - at(0) > 3 * (at(0.995) - at(0.005)) ? [at(0.005), at(0.995)] : [at(0), at(1)];
  const width = high - low;
  return width > 0 ? [low, high] : [low - (Math.abs(low) || 1) / 2, low + (Math.abs(low) || 1) / 2];
}

/** 1, 2 or 5 times a power of ten, next to a width. @param {number} width */
function niceStep(width) {
  const power = 10 ** Math.floor(Math.log10(width));
  return [1, 2, 5, 10].find((factor) => factor * power >= width * 0.999) * power;
}

/** @param {Column} column @param {number} value */
function tickLabel(column, value) {
  if (column.format === "percent" && value >= 1e-4) return `${Number((value * 100).toPrecision(6))} %`;
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5)
    ? value.toExponential(0).replace("+", "") : String(Number(value.toPrecision(6)));
}

/** A choice of columns. @param {string} label @param {string} chosen @param {(name: string) => void} choose */
function columnSelect(label, chosen, choose) {
  const select = element("select", { "aria-label": label, onchange: () => choose(select.value) },
    ...numericColumns().map((column) => (
      element("option", { value: column.name, selected: column.name === chosen }, visible(column.title))
    )));
  return select;
}

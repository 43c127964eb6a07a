/* Histograms of the latents' numbers, the bars stacked by class. */

const N_BINS = 50;
const HISTOGRAM = { width: 520, height: 230, left: 52, right: 12, top: 12, bottom: 30 };

/** A card with a histogram whose column can be changed. @param {string} name of the column shown first */
function histogramCard(name) {
  const figure = element("div");
  const note = element("p", { class: "note" });
  let isLog = false;
  let column = columnNamed(name);
  const draw = () => {
    const { svg, text } = histogram(column, isLog);
    figure.replaceChildren(svg);
    note.textContent = `${column.meaning} ${text}`;
  };
  const select = columnSelect("Column of the histogram", name, (chosen) => {
    column = columnNamed(chosen);
    draw();
  });
  const log = element("input", {
    type: "checkbox", onchange: (event) => {
      isLog = event.target.checked;
      draw();
    },
  });
  draw();
  return element("section", { class: "card figure" },
    element("div", { class: "controls" }, select, element("label", {}, log, " logarithmic counts")), figure, note);
}

/**
 * @param {Column} column
 * @param {boolean} isLog counts on a logarithmic axis
 */
function histogram(column, isLog) {
  const axis = axisOf(column);
  const { bins, undefinedCount, outside } = countBins(column, axis);
  const { width, height, left, right, top, bottom } = HISTOGRAM;
  const highest = Math.max(1, ...bins.map((bin) => bin.total));
  const tall = isLog ? Math.log10(highest + 1) : highest;
  const y = (count) => height - bottom - ((isLog ? Math.log10(count + 1) : count) / tall) * (height - top - bottom);
  const x = (place) => left + place * (width - left - right);
  const bars = bins.flatMap((bin, i) => {
    let below = 0;
    return bin.counts.map((count, code) => {
      if (!count) return null;
      const [from, to] = [y(below), y(below + count)];
      below += count;
      const range = `${formatNumber(axis.value(i / N_BINS))} to ${formatNumber(axis.value((i + 1) / N_BINS))}`;
      return element("rect", {
        class: `bar tone-${toneOf(manifest.classes[code])}`, x: x(i / N_BINS), y: to,
        width: (width - left - right) / N_BINS - 0.6, height: from - to,
      }, element("title", {}, `${range}: ${counted(count, "latent")}, ${visible(manifest.classes[code])}`));
    });
  });
  const marks = isLog
    ? [...new Set([1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((count) => count < highest)), highest]
    : [0.5, 1].map((share) => Math.round(share * highest));
  const notes = [];
  if (outside) notes.push(`${counted(outside, "latent")} beyond the axis, in the outermost bars.`);
  if (undefinedCount) notes.push(`${counted(undefinedCount, "latent")} without a place on it.`);
  const svg = element("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Histogram of ${column.title}, bars stacked by class`,
  },
  ...[0, ...marks].map((count) => element("g", {},
    element("line", { class: "grid", x1: left, x2: width - right, y1: y(count), y2: y(count) }),
    element("text", { x: left - 6, y: y(count) + 4, "text-anchor": "end" }, WHOLE.format(count)))),
  ...bars,
  ...axis.ticks.map((tick) => element("text", {
    x: x(tick.at), y: height - 10, "text-anchor": tick.at > 0.97 ? "end" : "middle",
  }, tick.label)));
  return { svg, text: notes.join(" ") };
}

/** @param {Column} column @param {Axis} axis */
function countBins(column, axis) {
  const classes = columnNamed("class");
  // A class column with other names than those of reports has no colours of its own.
  const codes = classes?.names?.length === manifest.classes.length ? classes.values : null;
  const other = manifest.classes.length - 2;
  const bins = Array.from({ length: N_BINS }, () => ({ counts: manifest.classes.map(() => 0), total: 0 }));
  let undefinedCount = 0;
  let outside = 0;
  column.values.forEach((value, latent) => {
    const place = axis.place(value);
    if (Number.isNaN(place)) {
      undefinedCount += 1;
      return;
    }
    if (place < -1e-9 || place > 1 + 1e-9) outside += 1;
    const bin = bins[Math.max(0, Math.min(N_BINS - 1, Math.floor(place * N_BINS)))];
    bin.counts[codes ? codes[latent] : other] += 1;
    bin.total += 1;
  });
  return { bins, undefinedCount, outside };
}

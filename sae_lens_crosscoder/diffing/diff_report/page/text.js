/* Numbers and tokens as a reader sees them. */

const PLAIN = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 });
const ALIGNED = new Intl.NumberFormat("en-US", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
const EXACT = new Intl.NumberFormat("en-US", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const ABOUT = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 2 }); // for what is stored in 127 steps
const WHOLE = new Intl.NumberFormat("en-US");
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;

/** @param {number|null} value @param {Intl.NumberFormat} [style] ALIGNED where numbers stand under each other */
function formatNumber(value, style = PLAIN) {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return WHOLE.format(value);
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e6 ? value.toExponential(2) : style.format(value);
}

/** @param {number} share between 0 and 1 */
function formatPercent(share) {
  if (Number.isNaN(share)) return "–";
  const percent = share * 100;
  if (percent !== 0 && Math.abs(percent) < 0.01) return `${percent.toExponential(1)} %`;
  return `${percent.toFixed(Math.abs(percent) < 1 ? 2 : 1)} %`;
}

/** @param {Column} column @param {number} latent */
function formatCell(column, latent) {
  const value = column.values[latent];
  if (column.kind === "text") return visible(column.names[value]);
  if (column.kind === "flag") return value ? "yes" : "no";
  return column.format === "percent" ? formatPercent(value) : formatNumber(value, ALIGNED);
}

/**
 * Text with everything spelt out that cannot be seen or that would turn the reading direction.
 * @param {string} text
 */
function visible(text) {
  return text.replace(UNSEEN, (character) => {
    if (character === "\n") return "⏎";
    if (character === "\t") return "⇥";
    const code = character.codePointAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** A token inside running text: a token of nothing but spaces is drawn, or it could not be seen. */
function visibleInText(token) {
  return visible(/^ +$/.test(token) ? token.replaceAll(" ", "␣") : token);
}

/** A token on its own: every space is drawn, because " the" and "the" are two tokens. */
function visibleAlone(token) {
  return token === "" ? "(empty)" : visible(token).replaceAll(" ", "␣");
}

/** @param {number} count @param {string} noun */
function counted(count, noun) {
  return `${WHOLE.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

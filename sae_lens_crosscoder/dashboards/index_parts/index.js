"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [main, head, body, more] = ["main", "head", "body", "more"].map(id => document.getElementById(id));
const search = document.getElementById("search");
const count = document.getElementById("count");
const PAGE = 500;
const isText = data.titles.map((_, i) => data.rows.some(row => typeof row[i] === "string"));
let sorted = { column: null, descending: true };
let limit = PAGE;

function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function written(value) {
  return value === null ? "" : typeof value === "number" ? String(Number(value.toPrecision(3))) : value;
}

/* Numbers mean latents (or the beginning of one); each other word has to stand in the text of a row. */
function matches(row, words) {
  const text = row.filter((_, i) => isText[i]).join(" ").toLowerCase();
  return words.every(word => /^\d+$/.test(word) ? String(row[0]).startsWith(word) : text.includes(word));
}

function order(a, b) {
  const [x, y] = [a[sorted.column], b[sorted.column]];
  if (x === y) return a[0] - b[0];
  if (x === null || y === null) return x === null ? 1 : -1;
  return (x < y ? -1 : 1) * (sorted.descending ? -1 : 1);
}

function draw() {
  const words = search.value.toLowerCase().split(/\s+/).filter(word => word);
  const rows = data.rows.filter(row => matches(row, words));
  if (sorted.column !== null) rows.sort(order);
  body.replaceChildren(...rows.slice(0, limit).map(row => {
    const line = made("tr");
    data.titles.forEach((_, i) => {
      const cell = made("td", i ? written(row[i]) : undefined, isText[i] ? "text" : "");
      if (i === 0) {
        const link = made("a", String(row[0]));
        link.href = `${data.pages[row[row.length - 1]]}#${row[0]}`;
        cell.append(link);
      }
      line.append(cell);
    });
    return line;
  }));
  [...head.children].forEach((cell, i) => {
    const direction = sorted.descending ? "descending" : "ascending";
    cell.setAttribute("aria-sort", sorted.column === i ? direction : "none");
  });
  count.textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} latents`;
  more.hidden = rows.length <= limit;
  main.dataset.view = search.value;
}

data.titles.forEach((title, i) => {
  const cell = made("th", undefined, isText[i] ? "text" : "");
  cell.title = data.meanings[i];
  const button = made("button", title);
  button.type = "button";
  button.addEventListener("click", () => {
    sorted = { column: i, descending: sorted.column === i ? !sorted.descending : !isText[i] && i > 0 };
    draw();
  });
  cell.append(button);
  head.append(cell);
});
search.addEventListener("input", () => { limit = PAGE; draw(); });
more.addEventListener("click", () => { limit += PAGE; draw(); });
draw();

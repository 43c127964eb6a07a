/* One number of every latent against another, on a canvas; a click opens the nearest latent. */

const SCATTER = { height: 440, left: 62, right: 16, top: 14, bottom: 46, near: 12 };

/** Marks differ by form as well, for readers who tell few colours apart. */
const MARKS = {
  s0: (pen, x, y, r) => polygon(pen, [[x - r, y - r], [x + r, y - r], [x, y + r]]),
  s1: (pen, x, y, r) => polygon(pen, [[x - r, y + r], [x + r, y + r], [x, y - r]]),
  shared: (pen, x, y, r) => pen.arc(x, y, r, 0, 2 * Math.PI),
  dead: (pen, x, y, r) => polygon(pen, [[x - r, y], [x, y - r], [x + r, y], [x, y + r]]),
};

function polygon(pen, corners) {
  corners.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
}

/** @param {string} xName @param {string} yName columns drawn first */
function scatterCard(xName, yName) {
  const state = { x: columnNamed(xName), y: columnNamed(yName), hidden: new Set(["dead"]), points: [] };
  const canvas = element("canvas", { class: "scatter" });
  const tip = element("div", { class: "tip", hidden: true });
  const note = element("p", { class: "note" });
  const redraw = () => drawScatter(canvas, state, note);
  const choose = (side) => (name) => {
    state[side] = columnNamed(name);
    redraw();
  };
  const legend = element("div", { class: "legend", role: "group", "aria-label": "Classes drawn" },
    ...manifest.classes.map((name) => {
      const button = element("button", {
        type: "button", class: `chip tone-${toneOf(name)}`, "aria-pressed": String(!state.hidden.has(name)),
        onclick: () => {
          if (!state.hidden.delete(name)) state.hidden.add(name);
          button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
          redraw();
        },
      }, visible(name));
      return button;
    }));
  canvas.addEventListener("pointermove", (event) => showTip(nearest(canvas, state, event), state, tip));
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => {
    const point = nearest(canvas, state, event);
    if (point) location.hash = `#latent=${point.latent}`;
  });
  new ResizeObserver(redraw).observe(canvas);
  document.addEventListener("themechange", redraw);
  return element("section", { class: "card figure wide" },
    element("div", { class: "controls" },
      columnSelect("Vertical axis", yName, choose("y")), element("span", {}, "against"),
      columnSelect("Horizontal axis", xName, choose("x")), legend),
    element("div", { class: "stage" }, canvas, tip), note);
}

/** Draw all points; those beyond an axis lie on the frame. */
function drawScatter(canvas, state, note) {
  const { height, left, right, top, bottom } = SCATTER;
  const width = canvas.clientWidth;
  if (!width) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [xAxis, yAxis] = [axisOf(state.x), axisOf(state.y)];
  const x = (place) => left + place * (width - left - right);
  const y = (place) => height - bottom - place * (height - top - bottom);
  drawFrame(pen, { xAxis, yAxis, x, y, width }, state);
  state.points = [];
  let [undefinedCount, beyond] = [0, 0];
  const within = (place) => Math.max(0, Math.min(1, place));
  for (let latent = 0; latent < manifest.d_sae; latent++) {
    const className = classOf(latent);
    if (state.hidden.has(className)) continue;
    const [atX, atY] = [xAxis.place(state.x.values[latent]), yAxis.place(state.y.values[latent])];
    if (Number.isNaN(atX) || Number.isNaN(atY)) {
      undefinedCount += 1;
      continue;
    }
    const isBeyond = atX !== within(atX) || atY !== within(atY);
    beyond += Number(isBeyond);
    state.points.push({ latent, tone: toneOf(className), isBeyond, x: x(within(atX)), y: y(within(atY)) });
  }
  drawPoints(pen, state.points);
  const notes = [`${counted(state.points.length, "latent")} drawn.`];
  if (beyond) notes.push(`Beyond the axes, hollow on the frame: ${WHOLE.format(beyond)}.`);
  if (undefinedCount) notes.push(`${counted(undefinedCount, "latent")} without a place here.`);
  note.textContent = `${notes.join(" ")} A click opens a latent; the same numbers stand in the list of latents.`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${state.y.title} against ${state.x.title}. ${notes.join(" ")}`);
}

function drawFrame(pen, { xAxis, yAxis, x, y, width }, state) {
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = themeColour("--muted");
  pen.strokeStyle = themeColour("--line");
  pen.beginPath();
  pen.textAlign = "center";
  for (const { at, label } of xAxis.ticks) {
    pen.moveTo(x(at), y(0));
    pen.lineTo(x(at), y(1));
    pen.fillText(label, Math.min(x(at), width - 18), y(0) + 17);
  }
  pen.fillText(visible(state.x.title), x(0.5), y(0) + 37);
  pen.textAlign = "right";
  for (const { at, label } of yAxis.ticks) {
    pen.moveTo(x(0), y(at));
    pen.lineTo(x(1), y(at));
    pen.fillText(label, x(0) - 7, y(at) + 4);
  }
  pen.stroke();
  pen.save();
  pen.translate(13, y(0.5));
  pen.rotate(-Math.PI / 2);
  pen.textAlign = "center";
  pen.fillText(visible(state.y.title), 0, 0);
  pen.restore();
}

function drawPoints(pen, points) {
  const byTone = groupByTone(points);
  // The largest class first, so that it covers none of the others.
  for (const [tone, members] of [...byTone].sort((a, b) => b[1].length - a[1].length)) {
    const mark = MARKS[tone] ?? MARKS.shared;
    const radius = points.length > 5000 ? 2.2 : 3.2;
    pen.fillStyle = pen.strokeStyle = themeColour(`--tone-${tone}`);
    pen.globalAlpha = 0.65;
    for (const point of members) {
      pen.beginPath();
      mark(pen, point.x, point.y, radius);
      if (point.isBeyond) pen.stroke();
      else pen.fill();
    }
  }
  pen.globalAlpha = 1;
}

function groupByTone(points) {
  const groups = new Map();
  for (const point of points) {
    if (!groups.has(point.tone)) groups.set(point.tone, []);
    groups.get(point.tone).push(point);
  }
  return groups;
}

/** The point under the pointer, if one is near. */
function nearest(canvas, state, event) {
  const frame = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  let best = null;
  let distance = SCATTER.near ** 2;
  for (const point of state.points) {
    const here = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (here < distance) [best, distance] = [point, here];
  }
  canvas.classList.toggle("over", Boolean(best));
  return best;
}

function showTip(point, state, tip) {
  tip.hidden = !point;
  if (!point) return;
  tip.textContent = `latent ${point.latent}, ${visible(classOf(point.latent))}: `
    + `${formatCell(state.x, point.latent)} / ${formatCell(state.y, point.latent)}`;
  tip.style.left = `${point.x}px`;
  tip.style.top = `${point.y}px`;
  tip.classList.toggle("leftwards", point.x > tip.parentElement.clientWidth / 2);
}

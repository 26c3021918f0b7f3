"use strict";
// Every string comes from a sweep, which may be a stranger's: all go in as text, none as HTML.
const VIRIDIS = ["#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e",
  "#23888e", "#1f988b", "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725"];
// Okabe and Ito's, told apart by the colour-blind; dashes tell them apart in grey.
const GREYS = ["#ffffff", "#d9d9d9", "#969696", "#525252", "#252525"]; // how unsure: darker
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3"];
const WORDS = new Intl.Collator("en", { numeric: true }); // t9 before t10
const ROW = 28; // pixels of a row of the table
const COLUMNS = [ // field, heading, kind
  ["trial", "trial", "text"], ["vision_sparsity", "vision", "tower"],
  ["language_sparsity", "language", "tower"],
  ["sparsity", "sparsity", "share"], ["pruned", "before", "share"], ["repaired", "after", "share"],
  ["standard_error", "± s.e.", "share"], ["recovery", "recovery", "share"],
  ["blank_repaired", "blank", "share"], ["seconds", "seconds", "number"], ["state", "state", "text"],
  ["options", "options", "text"],
];

let data = JSON.parse(document.getElementById("data").textContent);
const state = { after: false, layer: "score", kind: "parameters", sort: "score", down: true, filter: "", chosen: [] };
let rows = [];      // the trials, as objects
let shown = [];     // those that the filter leaves, in order
let spots = [];     // where the map drew which trial
let frame = 0;

const $ = (id) => document.getElementById(id);

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const known = (value) => value !== null && value !== undefined;
const percent = (value) => {
  if (!known(value)) return "";
  return value && Math.abs(value) < 0.0005 ? String(Number((100 * value).toPrecision(2))) : (100 * value).toFixed(1);
};

function cell(row, field, kind) {
  const value = row[field];
  if (!known(value)) return "";
  if (kind === "tower") {
    const asked = row[field.split("_")[0]];
    return known(asked) && asked.includes(":") ? asked : percent(value);
  }
  if (kind === "share") return percent(value);
  if (kind === "number") return value.toFixed(1);
  return String(value);
}

function shade(ramp, value, low, high) {
  const place = Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * (ramp.length - 1);
  const at = Math.min(Math.floor(place), ramp.length - 2);
  const parts = [at, at + 1].map((n) => [1, 3, 5].map((i) => parseInt(ramp[n].slice(i, i + 2), 16)));
  const mix = parts[0].map((part, i) => Math.round(part + (place - at) * (parts[1][i] - part)));
  return `rgb(${mix.join(",")})`;
}

const colour = (value) => shade(VIRIDIS, value, ...data.range);

// ---- what was read -----------------------------------------------------------------------------

function take(found) {
  data = found;
  const names = Object.keys(data.trials);
  const count = names.length ? data.trials[names[0]].length : 0;
  rows = [];
  for (let n = 0; n < count; n++) {
    const row = { at: n };
    for (const name of names) row[name] = data.trials[name][n];
    row.words = [row.trial, row.state, row.vision, row.language, row.options, row.error, row.role]
      .filter(known).join(" ").toLowerCase();
    rows.push(row);
  }
  const repaired = rows.some((row) => known(row.repaired));
  if (repaired && $("switch").hidden) state.after = true; // the first that is repaired
  $("switch").hidden = !repaired;
  const there = new Set(rows.map((row) => row.trial));
  state.chosen = state.chosen.filter((trial) => there.has(trial));
}

const whole = () => "provenance" in data; // else a page of the map alone

function everything() {
  head();
  states();
  kinds();
  choose();
  if (!whole()) return;
  verdicts();
  along();
  failures();
  provenance();
}

// ---- the question and its answer in short -------------------------------------------------------

function head() {
  document.title = `${data.sweep}: ressa report`;
  $("name").textContent = data.sweep;
  $("question").textContent = data.question;
  $("stand").textContent = data.stand;
  const facts = data.facts.map(([value, label]) => {
    const box = make("div");
    box.append(make("b", value), make("span", label));
    return box;
  });
  $("facts").replaceChildren(...facts);
  $("headline").textContent = data.headline;
  $("headline").className = data.confirmed ? "" : "faint";
}

function verdicts() {
  $("verdicts").hidden = !data.verdicts.length;
  $("verdict-list").replaceChildren(...data.verdicts.map((text) => make("li", text)));
}

// ---- filter and order ---------------------------------------------------------------------------

function states() {
  const found = [...new Set(rows.map((row) => row.state))].sort();
  const options = ["all states", ...found].map((name, n) => make("option", name, { value: n ? name : "" }));
  const before = $("state").value;
  $("state").replaceChildren(...options);
  $("state").value = found.includes(before) ? before : "";
}

const COMPARE = {
  "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
  "=": (a, b) => a === b, "!=": (a, b) => a !== b,
};

function test(token) {
  const found = token.match(/^(\w+)(<=|>=|!=|=|<|>)(.+)$/);
  if (!found) return (row) => row.words.includes(token.toLowerCase());
  const [, field, sign, text] = found;
  if (!(field in data.trials)) throw new Error(`no column ${field}. Columns: ${Object.keys(data.trials).join(", ")}.`);
  const number = Number(text);
  return (row) => known(row[field]) && (typeof row[field] === "number"
    ? COMPARE[sign](row[field], number) : COMPARE[sign](String(row[field]), text));
}

function choose() {
  let tests = [];
  $("fault").textContent = "";
  try {
    tests = state.filter.split(/\s+/).filter(Boolean).map(test);
  } catch (error) {
    $("fault").textContent = error.message;
  }
  const only = $("state").value;
  if (only) tests.push((row) => row.state === only);
  shown = rows.filter((row) => tests.every((one) => one(row)));
  const field = state.sort, way = state.down ? -1 : 1;
  shown.sort((a, b) => {
    const one = a[field], other = b[field];
    if (!known(one) || !known(other)) return known(other) - known(one) || a.at - b.at;
    if (one === other) return a.at - b.at;
    return way * (typeof one === "number" ? one - other : WORDS.compare(one, other));
  });
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} trials`;
  heading();
  fill();
  map();
  if (whole()) figures();
}

function turn(after) {
  state.after = after;
  map();
  if (whole()) along();
}

function heading() {
  const cells = COLUMNS.map(([field, text, kind]) => {
    const sorted = state.sort === field;
    const order = sorted ? (state.down ? "descending" : "ascending") : "none";
    const button = make("button", text + (sorted ? (state.down ? " ↓" : " ↑") : ""), { type: "button" });
    button.title = data.meanings[field] || "";
    button.addEventListener("click", () => {
      state.down = sorted ? !state.down : kind !== "text";
      state.sort = field;
      choose();
      $("heads").children[COLUMNS.findIndex((one) => one[0] === field)].firstChild.focus();
    });
    const head = make("th", null, { "aria-sort": order, scope: "col", class: kind === "text" ? "" : "number" });
    head.append(button);
    return head;
  });
  $("heads").replaceChildren(...cells);
  $("scroll").scrollTop = 0;
}

function gap(height) {
  const row = make("tr", null, { class: "gap" });
  const cell = make("td", null, { colspan: COLUMNS.length });
  cell.style.height = `${height}px`;
  row.append(cell);
  return row;
}

// Only the rows that can be seen are in the page, so that ten thousand are as quick as ten.
function fill() {
  const box = $("scroll");
  const first = Math.max(Math.floor(box.scrollTop / ROW) - 10, 0);
  const last = Math.min(first + Math.ceil(box.clientHeight / ROW) + 20, shown.length);
  const made = [gap(first * ROW)];
  for (const row of shown.slice(first, last)) {
    const line = make("tr", null, { class: state.chosen.includes(row.trial) ? "chosen" : "" });
    for (const [field, , kind] of COLUMNS) {
      const one = make("td", null, { class: kind === "text" ? "" : "number" });
      if (field === "trial") {
        const pressed = state.chosen.includes(row.trial);
        const button = make("button", (row.best ? "★ " : "") + row.trial, { type: "button", "aria-pressed": pressed });
        button.addEventListener("click", () => toggle(row.trial));
        one.append(button);
      } else {
        one.textContent = cell(row, field, kind);
        if (kind === "text") one.title = one.textContent;
      }
      line.append(one);
    }
    made.push(line);
  }
  made.push(gap((shown.length - last) * ROW));
  $("body").replaceChildren(...made);
}

function toggle(trial) {
  state.chosen = state.chosen.includes(trial)
    ? state.chosen.filter((one) => one !== trial) : [...state.chosen, trial].slice(-HUES.length);
  fill();
  map();
  if (whole()) figures();
}

// ---- the map ------------------------------------------------------------------------------------

function map() {
  const canvas = $("map"), style = getComputedStyle(document.documentElement);
  const [ink, faint, line, paper] = ["--ink", "--faint", "--line", "--paper"].map((name) => style.getPropertyValue(name));
  const width = canvas.clientWidth, height = Math.round(Math.min(width * 0.86, 560));
  const sharp = window.devicePixelRatio || 1;
  canvas.width = width * sharp;
  canvas.height = height * sharp;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  const left = 48, bottom = height - 42, top = 12, right = width - 14;
  const x = (value) => left + value * (right - left), y = (value) => bottom - value * (bottom - top);
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = faint;
  pen.strokeStyle = line;
  for (let n = 0; n <= 5; n++) {
    pen.beginPath();
    pen.moveTo(x(n / 5), top); pen.lineTo(x(n / 5), bottom);
    pen.moveTo(left, y(n / 5)); pen.lineTo(right, y(n / 5));
    pen.stroke();
    pen.textAlign = "center"; pen.fillText((n / 5).toFixed(1), x(n / 5), bottom + 16);
    pen.textAlign = "right"; pen.fillText((n / 5).toFixed(1), left - 6, y(n / 5) + 4);
  }
  pen.fillStyle = ink;
  pen.textAlign = "center"; pen.fillText("vision sparsity", (left + right) / 2, height - 8);
  pen.save(); pen.translate(13, (top + bottom) / 2); pen.rotate(-Math.PI / 2);
  pen.fillText("language sparsity", 0, 0); pen.restore();
  const found = chart(), layer = found ? state.layer : "score";
  const scale = ranges(found)[layer];
  if (found && found.hull) surface(pen, found, layer, scale, x, y);
  const bests = found ? found.bests.filter((one) => one.line === state.kind) : [];
  const lines = bests.length ? bests.map((one) => one.ends.flat()) : data.lines;
  pen.strokeStyle = faint;
  pen.setLineDash([5, 4]);
  for (const [a, b, c, d] of lines) {
    pen.beginPath(); pen.moveTo(x(a), y(b)); pen.lineTo(x(c), y(d)); pen.stroke();
  }
  pen.setLineDash([]);
  const field = state.after ? "repaired" : "pruned";
  const points = shown.filter((row) => known(row[field]) && known(row.vision_sparsity) && known(row.language_sparsity));
  points.sort((a, b) => a[field] - b[field]); // the best of those on one spot is seen
  spots = points.map((row) => ({ row, x: x(row.vision_sparsity), y: y(row.language_sparsity) }));
  const size = layer !== "score" ? 2.5 : points.length > 2000 ? 3 : points.length > 300 ? 4.5 : 7;
  for (const spot of spots) {
    const { row } = spot, chosen = state.chosen.includes(row.trial);
    pen.beginPath();
    if (`${row.vision}${row.language}`.includes(":")) pen.rect(spot.x - size, spot.y - size, 2 * size, 2 * size);
    else pen.arc(spot.x, spot.y, size, 0, 7);
    pen.fillStyle = layer === "score" ? colour(row[field]) : ink;
    pen.fill();
    pen.lineWidth = chosen ? 3 : size > 3 ? 1 : 0.4;
    pen.strokeStyle = chosen || size > 3 ? ink : paper; // a yellow point on a yellow shade
    pen.stroke();
  }
  for (const one of bests) {
    const [a, b, c, d] = one.sure.flat().map((value, n) => (n % 2 ? y(value) : x(value)));
    for (const [wide, stroke] of [[6, paper], [3, ink]]) {
      pen.lineWidth = wide; pen.strokeStyle = stroke;
      pen.beginPath(); pen.moveTo(a, b); pen.lineTo(c, d); pen.stroke();
    }
    pen.lineWidth = 1.5;
    pen.beginPath();
    const [h, v] = [x(one.vision), y(one.language)];
    pen.moveTo(h - 6, v); pen.lineTo(h, v - 6); pen.lineTo(h + 6, v); pen.lineTo(h, v + 6); pen.closePath();
    pen.fillStyle = one.edge ? ink : paper; pen.fill(); pen.stroke();
  }
  pen.lineWidth = 1;
  pen.font = "20px system-ui, sans-serif";
  pen.textAlign = "center";
  const starred = new Set(data.stars[state.after ? "repaired" : "pruned"]);
  for (const best of spots.filter((spot) => starred.has(spot.row.trial))) {
    pen.lineWidth = 3; pen.strokeStyle = paper; pen.strokeText("★", best.x, best.y - size - 3);
    pen.fillStyle = ink; pen.fillText("★", best.x, best.y - size - 3);
  }
  if (!spots.length) {
    pen.font = "14px system-ui, sans-serif";
    pen.fillStyle = ink;
    pen.fillText("no trial has a score here", (left + right) / 2, (top + bottom) / 2);
  }
  $("after").setAttribute("aria-pressed", state.after);
  $("before").setAttribute("aria-pressed", !state.after);
  for (const name of Object.keys(LAYERS)) $(`layer-${name}`).setAttribute("aria-pressed", name === layer);
  $("layer-switch").hidden = $("kind").hidden = !found;
  $("ramp").style.background = `linear-gradient(90deg, ${LAYERS[layer].join(",")})`;
  const unit = layer === "deviation" ? "points" : "%";
  [$("low").textContent, $("high").textContent] = scale.map((value) => `${percent(value)} ${unit}`);
  $("shading").textContent = found ? `${found.hull ? "Shading: what the trials together say. " : ""}◇ the best of a line and, bold, where it lies with 90 % probability. ${bests.some((one) => one.edge) ? "◆ at the edge of the search: a better one may lie beyond. " : ""}` : "";
  tableOfBests(bests);
}

const LAYERS = { score: VIRIDIS, deviation: GREYS, within: CIVIDIS };

function chart() {
  return data.charts[state.after ? "repaired" : "pruned"];
}

function ranges(found) {
  return { score: data.range, deviation: [0, found ? found.widest : 0], within: [0, 1] };
}

// What the surrogate says, a pixel for each place of its grid, inside what trials surround.
function surface(pen, found, layer, scale, x, y) {
  const { vision, language } = found, values = found[layer];
  const small = make("canvas", null, { width: vision.length, height: language.length });
  const dots = small.getContext("2d");
  vision.forEach((_, i) => language.forEach((_, j) => {
    dots.fillStyle = shade(LAYERS[layer], values[i][j], ...scale);
    dots.fillRect(i, language.length - 1 - j, 1, 1);
  }));
  const wide = x(vision[1]) - x(vision[0]), tall = y(language[0]) - y(language[1]);
  pen.save();
  pen.beginPath();
  found.hull.forEach(([v, l], n) => (n ? pen.lineTo(x(v), y(l)) : pen.moveTo(x(v), y(l))));
  pen.closePath();
  pen.clip();
  pen.globalAlpha = layer === "score" ? 0.55 : 0.9;
  pen.drawImage(small, x(vision[0]) - wide / 2, y(language.at(-1)) - tall / 2, wide * vision.length, tall * language.length);
  pen.restore();
}

function kinds() {
  const there = new Set(Object.values(data.charts).flatMap((one) => one.bests.map((best) => best.line)));
  const options = Object.keys(data.kinds).filter((kind) => there.has(kind));
  $("kind").replaceChildren(...options.map((kind) => make("option", `lines of ${data.kinds[kind]}`, { value: kind })));
  if (options.length) $("kind").value = state.kind = there.has(state.kind) ? state.kind : options[0];
}

function tableOfBests(bests) {
  $("bests").hidden = !bests.length;
  const names = ["equal split", "best", "vision between", "score", "between",
    `within ${data.margin} of the best`, "equal split too"];
  const heads = make("tr");
  heads.append(...names.map((name) => make("th", name, { scope: "col" })));
  const body = bests.map((one) => {
    const row = make("tr"), whole = (value) => (100 * value).toFixed(0);
    row.append(...[percent(one.equal), `${percent(one.vision)} : ${percent(one.language)}${one.edge ? " ◆" : ""}`,
      `${percent(one.vision_low)} and ${percent(one.vision_high)}`, percent(one.score),
      `${percent(one.low)} and ${percent(one.high)}`, `${whole(one.within_margin)} %`,
      known(one.equal_within_margin) ? `${whole(one.equal_within_margin)} %` : ""].map((text) => make("td", text)));
    return row;
  });
  const table = make("table");
  table.append(heads, ...body);
  $("bests").replaceChildren(table);
}

function near(event) {
  const box = $("map").getBoundingClientRect();
  const at = { x: event.clientX - box.left, y: event.clientY - box.top };
  let found = null, least = 15 ** 2;
  for (const spot of spots) { // later ones lie on top
    const far = (spot.x - at.x) ** 2 + (spot.y - at.y) ** 2;
    if (far <= least) { least = far; found = spot; }
  }
  return found;
}

function hover(event) {
  const spot = near(event), tip = $("tip");
  tip.hidden = !spot;
  if (!spot) return;
  const row = spot.row;
  const share = (name, value) => (known(value) ? `${name} ${percent(value)} %` : null);
  const error = known(row.standard_error) ? ` ± ${percent(row.standard_error)}` : "";
  tip.textContent = [row.trial + (row.best ? " ★" : ""),
    `vision ${known(row.vision) ? row.vision : row.vision_sparsity.toFixed(3)}, language ${known(row.language) ? row.language : row.language_sparsity.toFixed(3)}`,
    share("before repair", row.pruned), known(row.repaired) ? share("after repair", row.repaired) + error : null,
    share("recovery", row.recovery), row.options || null].filter(known).join("\n");
  const width = $("map").clientWidth;
  tip.style.left = spot.x > width / 2 ? "auto" : `${spot.x + 14}px`;
  tip.style.right = spot.x > width / 2 ? `${width - spot.x + 14}px` : "auto";
  tip.style.top = `${Math.max(spot.y - 20, 0)}px`;
}

// ---- repair curves and layers --------------------------------------------------------------------

function looked() {
  return state.chosen.length ? state.chosen : data.first;
}

// The least number that is not below a value and whose quarters are short.
function round(value) {
  const unit = 10 ** Math.floor(Math.log10(value / 4));
  return 4 * unit * [1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10].find((step) => 4 * step * unit >= value * (1 - 1e-9));
}

function axes(svg, box, low, high, label, ticks, parts = 4) {
  for (let n = 0; n <= parts; n++) {
    const value = low + (n / parts) * (high - low), y = box.bottom - (n / parts) * (box.bottom - box.top);
    svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }));
    svg.append(draw("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, Number(value.toPrecision(3)).toString()));
  }
  svg.append(draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  svg.append(draw("text", { x: box.left, y: box.top - 8 }, label));
  for (const [x, text] of ticks) svg.append(draw("text", { x, y: box.bottom + 16, "text-anchor": "middle" }, text));
}

function figures() {
  const trials = looked();
  const curved = trials.filter((trial) => data.curves[trial]);
  const svg = draw("svg", { viewBox: "0 0 560 320", role: "img", "aria-label": "loss over the steps of repair" });
  if (curved.length) {
    const box = { left: 52, right: 545, top: 26, bottom: 220 };
    const lines = curved.map((trial) => data.curves[trial]);
    const end = Math.max(...lines.flatMap((line) => line.step)), losses = lines.flatMap((line) => line.loss).filter(known);
    const high = round(Math.max(...losses, 0.001)), x = (step) => box.left + (step / end) * (box.right - box.left);
    axes(svg, box, 0, high, "loss", [0, 0.25, 0.5, 0.75, 1].map((part) => [x(part * end), String(Math.round(part * end))]));
    curved.forEach((trial, n) => {
      const { step, loss } = data.curves[trial];
      const points = step.map((one, i) => (known(loss[i]) ? `${x(one).toFixed(1)},${(box.bottom - (loss[i] / high) * (box.bottom - box.top)).toFixed(1)}` : "")).join(" ");
      svg.append(draw("polyline", { points, fill: "none", stroke: HUES[n % HUES.length], "stroke-width": 2, "stroke-dasharray": DASHES[n % DASHES.length] }));
      const [left, top] = [56 + (n % 3) * 165, 256 + Math.floor(n / 3) * 20];
      svg.append(draw("line", { x1: left, x2: left + 26, y1: top, y2: top, stroke: HUES[n % HUES.length], "stroke-width": 2, "stroke-dasharray": DASHES[n % DASHES.length] }));
      svg.append(draw("text", { x: left + 32, y: top + 4 }, trial.slice(0, 14)));
    });
  }
  $("curves").replaceChildren(curved.length ? svg : make("p", "No repair curve of these trials is in this page.", { class: "faint" }));
  // The one that was chosen last; of none chosen, the best.
  const order = state.chosen.length ? [...trials].reverse() : trials;
  const trial = order.find((one) => data.layers[one]);
  $("layers").replaceChildren(...(trial ? ["vision", "language"].map((tower) => profile(trial, tower))
    : [make("p", "No layers of these trials are in this page.", { class: "faint" })]));
  $("layered").textContent = trial ? `of ${trial}` : "";
}

function profile(trial, tower) {
  const found = data.layers[trial].filter((layer) => layer.tower === tower);
  const svg = draw("svg", { viewBox: "0 0 560 170", role: "img", "aria-label": `${tower}: error and sparsity of each layer` });
  if (!found.length) return svg;
  const has = found.some((layer) => known(layer.output_error));
  const field = has ? "output_error" : "sparsity";
  const box = { left: 52, right: 545, top: 26, bottom: 140 };
  const high = round(100 * Math.max(...found.map((layer) => layer[field] || 0), 1e-6)) / 100;
  const wide = (box.right - box.left) / found.length;
  const blocks = [...new Set(found.map((layer) => layer.block))];
  const middle = (block) => {
    const at = found.map((layer, n) => [layer.block, n]).filter(([one]) => one === block).map(([, n]) => n);
    return box.left + wide * ((at[0] + at.at(-1) + 1) / 2);
  };
  const every = Math.ceil(blocks.length / 8);
  axes(svg, box, 0, 100 * high, `${tower}, layer by layer: ${has ? "share of output lost" : "sparsity"} in %`,
    blocks.filter((_, n) => n % every === 0).map((block) => [middle(block), `block ${block}`]));
  found.forEach((layer, n) => {
    const tall = ((layer[field] || 0) / high) * (box.bottom - box.top);
    const bar = draw("rect", { x: box.left + n * wide + 0.1 * wide, width: 0.8 * wide, y: box.bottom - tall, height: tall, fill: HUES[blocks.indexOf(layer.block) % 2 ? 5 : 0] });
    bar.append(draw("title", {}, `${layer.name}\nsparsity ${percent(layer.sparsity)} %${known(layer.output_error) ? `, error ${layer.output_error.toPrecision(3)}` : ""}`));
    svg.append(bar);
  });
  return svg;
}

// ---- scores along lines of equal size ------------------------------------------------------------

function along() {
  const field = state.after ? "repaired" : "pruned";
  const lines = data.along.filter((line) => line[field].some(known));
  $("lined").textContent = state.after ? "after repair" : "before repair";
  if (!lines.length) {
    $("along").replaceChildren(make("p", "No line, of one budget or one sum of sparsities, has three allocations.", { class: "faint" }));
    return;
  }
  // Long names are wrapped, in one column: cut anywhere, two of them might read alike.
  const columns = Math.max(...lines.map((line) => line.name.length)) > 28 ? 1 : 2;
  let bottom = 264;
  const legend = lines.map(({ name }, n) => {
    const parts = name.match(/\S{48}(?=\S)|.{1,48}(?:\s|$)/g), top = bottom;
    if (n % columns === columns - 1 || n === lines.length - 1) bottom += 2 + 18 * parts.length;
    return { parts, left: 56 + (n % columns) * 250, top };
  });
  const svg = draw("svg", { viewBox: `0 0 560 ${bottom}`, role: "img", "aria-label": "scores along lines of equal size, by vision sparsity" });
  const box = { left: 52, right: 545, top: 26, bottom: 220 };
  const all = lines.flatMap((line) => line[field].flatMap((value, n) => [value - (line[`${field}_error`][n] || 0), value + (line[`${field}_error`][n] || 0)]).filter(known));
  const best = Math.max(...lines.flatMap((line) => line[field].filter(known)));
  // Of scores that are shares no error bar goes beyond 100; CIDEr's may.
  const least = 100 * Math.max(Math.min(...all), 0), most = 100 * (best > 1 ? Math.max(...all) : Math.min(Math.max(...all), 1));
  const step = [1, 2, 5, 10, 20, 25, 50, 100].find((one) => most - least <= 4 * one) || 200;
  const high = step * Math.max(Math.ceil(most / step), 1), low = Math.min(step * Math.floor(least / step), high - step);
  const at = lines.flatMap((line) => line.vision), [first, last] = [Math.min(...at), Math.max(...at)];
  const x = (value) => box.left + 12 + ((value - first) / (last - first || 1)) * (box.right - box.left - 24);
  const y = (value) => box.bottom - ((100 * value - low) / (high - low)) * (box.bottom - box.top);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => first + part * (last - first));
  axes(svg, box, low, high, "score in %, by vision sparsity", ticks.map((value) => [x(value), value.toFixed(2)]), (high - low) / step);
  lines.forEach((line, n) => {
    const style = { stroke: HUES[n % HUES.length], "stroke-width": 2, "stroke-dasharray": DASHES[n % DASHES.length], fill: "none" };
    const points = line.vision.map((value, i) => [x(value), line[field][i], line[`${field}_error`][i]]).filter(([, value]) => known(value));
    svg.append(draw("polyline", { ...style, points: points.map(([h, value]) => `${h.toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
    for (const [h, value, error] of points) {
      if (known(error)) svg.append(draw("line", { ...style, "stroke-dasharray": "", "stroke-width": 1, x1: h, x2: h, y1: y(value - error), y2: y(value + error) }));
      const dot = draw("circle", { cx: h, cy: y(value), r: 4, fill: style.stroke });
      dot.append(draw("title", {}, `${line.name}: ${percent(value)} %${known(error) ? ` ± ${percent(error)}` : ""}`));
      svg.append(dot);
    }
    const { parts, left, top } = legend[n], said = draw("text", { y: top + 4 });
    parts.forEach((part, i) => said.append(draw("tspan", { x: left + 32, dy: i ? 18 : 0 }, part)));
    svg.append(draw("line", { ...style, x1: left, x2: left + 26, y1: top, y2: top }), said);
  });
  $("along").replaceChildren(svg);
}

// ---- failures and provenance --------------------------------------------------------------------

function failures() {
  $("failed").hidden = !data.failures.length;
  const all = data.failures.length > 1 ? [make("p", "All that failed or were lost, again:"), make("pre", data.redo)] : [];
  $("failures").replaceChildren(...all, ...data.failures.map((one) => {
    const box = make("div");
    box.append(make("p", `${one.trial}: ${one.state}${one.where ? ` at ${one.where}` : ""}`), make("p", one.error || "", { class: "bad" }));
    if (one.traceback) {
      const more = make("details");
      more.append(make("summary", "where it happened"), make("pre", one.traceback));
      box.append(more);
    }
    box.append(make("pre", one.command));
    return box;
  }), ...(data.more_failures ? [make("p", `and ${data.more_failures} more`)] : []));
}

function provenance() {
  $("provenance").replaceChildren(...data.provenance.map(([name, value]) => {
    const row = make("tr");
    row.append(make("th", name, { scope: "row" }), make("td", value));
    return row;
  }));
  $("spec").textContent = data.spec;
  $("again").textContent = data.again;
}

// ---- while the sweep runs -----------------------------------------------------------------------

let version = null;

async function look() {
  try {
    const answer = await fetch("data.json", { headers: version ? { "If-None-Match": version } : {} });
    if (answer.status === 200) {
      version = answer.headers.get("ETag");
      const at = $("scroll").scrollTop;
      take(await answer.json());
      everything();
      $("scroll").scrollTop = at;
    }
    const at = new Date().toLocaleTimeString();
    $("fresh").textContent = answer.status === 503 ? await answer.text() : `looked at ${at}`;
  } catch {
    $("fresh").textContent = "the server is gone: this is the last that it said";
  }
}

function listen() {
  $("before").addEventListener("click", () => turn(false));
  $("after").addEventListener("click", () => turn(true));
  for (const name of Object.keys(LAYERS)) $(`layer-${name}`).addEventListener("click", () => { state.layer = name; map(); });
  $("kind").addEventListener("change", (event) => { state.kind = event.target.value; map(); });
  $("filter").addEventListener("input", (event) => { state.filter = event.target.value; choose(); });
  $("state").addEventListener("change", choose);
  $("scroll").addEventListener("scroll", () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(fill); });
  $("map").addEventListener("pointermove", hover);
  $("map").addEventListener("pointerleave", () => { $("tip").hidden = true; });
  $("map").addEventListener("click", (event) => { const spot = near(event); if (spot) toggle(spot.row.trial); });
  window.addEventListener("resize", () => { map(); fill(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", map);
}

take(data);
listen();
everything();
if (data.watch) setInterval(look, 1000 * data.watch);

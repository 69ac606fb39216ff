/* The sample browser. Data come from the files beside this page (flows/browser/site.py), each a script that hands over
   packed JSON to tpo.take, since pages opened from disk may load nothing else. Text is only ever set as textContent. */
"use strict";

const $ = (id) => document.getElementById(id);
const served = location.protocol.startsWith("http");
const POLL_MS = 3000;
const SHOWN_CHARS = 20000; // of one text; more on demand, since a megabyte in one line takes seconds to lay out
const KEPT_CHARS = 64e6; // of texts that a search keeps in memory

/* ---- data ---- */

const pending = new Map();
const loaded = new Map();

window.tpo = {
  take(name, packed) {
    const waiting = pending.get(name);
    pending.delete(name);
    if (waiting) unpack(packed).then(waiting.resolve, waiting.reject);
  },
};

async function unpack(packed) {
  const raw = atob(packed);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function load(name, { fresh = false } = {}) {
  if (loaded.has(name)) return loaded.get(name);
  const promise = new Promise((resolve, reject) => {
    pending.set(name, { resolve, reject });
    const script = document.createElement("script");
    script.src = "data/" + name.split("/").map(encodeURIComponent).join("/") + ".js" + (fresh ? "?" + Date.now() : "");
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      pending.delete(name);
      reject(new Error("data/" + name + ".js can't be loaded"));
    };
    document.head.append(script);
  });
  if (!fresh) {
    loaded.set(name, promise);
    promise.catch(() => loaded.delete(name));
    if (loaded.size > 80) loaded.delete(loaded.keys().next().value);
  }
  return promise;
}

/* ---- elements ---- */

const BIDI = /[\u202a-\u202e\u2066-\u2069]/;

/** Text with control characters visible; everything else as it is. */
function printable(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) => (c === "\u007f" ? "␡" : String.fromCharCode(0x2400 + c.charCodeAt(0))));
}

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) made.append(typeof child === "string" ? printable(child) : child);
  }
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A long text, at first its beginning. */
function textBlock(className, text) {
  const block = el("div", { class: className, dir: "auto", tabindex: "0", role: "group", "aria-label": className.split(" ")[0] });
  if (text.length <= SHOWN_CHARS) {
    block.append(printable(text));
    return block;
  }
  block.append(printable(text.slice(0, SHOWN_CHARS)));
  const more = el("button", { type: "button", class: "more", onclick: () => { more.remove(); block.textContent = printable(text); } },
    `Show all ${number(text.length)} characters`);
  return el("div", {}, block, more);
}

const number = (value) => value.toLocaleString("en-US");
const fixed = (value) => (value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? number(Math.round(value)) : String(+value.toFixed(2)).replace("-", "−"));
const words = (code) => code.replaceAll("_", " ");
const signed = (value) => (value > 0 ? "+" : "") + fixed(value);

/* ---- state, in the address ---- */

const DEFAULTS = { round: "", beside: "", prompt: "", sample: "", q: "", category: "", difficulty: "", outcome: "", error: "", change: "",
  judge: "", correct: "", margin_min: "", margin_max: "", thought_min: "", thought_max: "", score_min: "", score_max: "" };
const FILTERS = Object.keys(DEFAULTS).slice(4);
let state = { ...DEFAULTS };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) if (given.has(name)) state[name] = given.get(name);
}

function address(changes = {}) {
  const values = { ...state, ...changes };
  return "#" + new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "")).toString();
}

function writeAddress(push = false) {
  const target = address();
  if (target !== location.hash) history[push ? "pushState" : "replaceState"](null, "", target);
}

/* ---- a round as rows ---- */

let run = null;
let current = null; // { entry, rows, byId, ... }
let other = null; // the round beside it
let table = null;
let visible = [];
let found = null; // ids of prompts that the search has found, or null without a search

function rowsOf(entry, data) {
  const p = data.prompts, s = data.samples;
  const list = (column, i, missing) => (column ? column[i] : missing);
  const pairsOf = new Map();
  for (const [prompt, chosen, rejected, kind, margin] of data.pairs || []) {
    if (!pairsOf.has(prompt)) pairsOf.set(prompt, []);
    pairsOf.get(prompt).push({ chosen, rejected, kind, margin });
  }
  const rows = [];
  let at = 0;
  for (let i = 0; i < p.id.length; i++) {
    const samples = [];
    const pairs = pairsOf.get(i) || [];
    for (let n = 0; n < s.count[i]; n++, at++) {
      const error = list(s.error, at, -1), unscored = list(s.unscored, at, -1);
      samples.push({
        index: s.index[at], thought: s.thought[at], response: s.response[at], tokens: s.tokens[at], tries: list(s.tries, at, 1),
        error: error < 0 ? null : s.errors[error], score: list(s.score, at, null), unscored: unscored < 0 ? null : s.reasons[unscored],
        correct: list(s.correct, at, null), controlled: list(s.controlled, at, null), change: list(s.change, at, null),
        chosen: pairs.some((pair) => pair.chosen === s.index[at]), rejected: pairs.some((pair) => pair.rejected === s.index[at]),
      });
    }
    const category = list(p.category, i, -1);
    const scored = samples.map((each) => each.score).filter((score) => score !== null);
    const thoughts = samples.map((each) => each.thought).sort((a, b) => a - b);
    const margins = pairs.map((pair) => pair.margin).filter((margin) => margin !== null);
    rows.push({
      i, id: p.id[i], text: p.text[i], category: category < 0 ? null : p.categories[category], difficulty: list(p.difficulty, i, null),
      turns: list(p.turns, i, 0), shard: p.shard[i], judged: list(p.judged, i, -1), contradicted: list(p.contradicted, i, 0),
      misordered: list(p.misordered, i, 0), why: list(p.why, i, null), samples, pairs,
      score: scored.length ? scored.reduce((a, b) => a + b, 0) / scored.length : null,
      thought: thoughts[thoughts.length >> 1], margin: margins.length ? Math.max(...margins) : null,
      errors: samples.filter((each) => each.error).length, outcome: pairs.length ? pairs[0].kind : list(p.why, i, null),
    });
  }
  const all = rows.flatMap((row) => row.samples);
  const scores = all.map((each) => each.score).filter((score) => score !== null);
  let low = Infinity, high = -Infinity;
  for (const score of scores) { low = Math.min(low, score); high = Math.max(high, score); }
  return { entry, rows, all, low, high, k: Math.max(1, ...rows.map((row) => row.samples.length)),
    paired: Boolean(data.pairs), byId: new Map(rows.map((row) => [row.id, row])) };
}

async function openRound(name) {
  const entry = run.rounds.find((each) => each.name === name);
  return entry ? rowsOf(entry, await load(entry.table)) : null;
}

/* ---- filters ---- */

const OUTCOMES = {
  regular: "pair", error_rejected: "pair with a format error", small_margin: "scores too close", tie: "scores tied",
  single_candidate: "only one sample parses", all_malformed: "no sample parses", unscored: "not scored", too_long: "too long to train on",
  members_disagree: "judges disagree",
  no_wrong_output: "no wrong output", no_right_output: "no right output", not_paired: "not paired",
};
const outcomeName = (code) => OUTCOMES[code] || words(code);

/** The filters that this round has data for: name, label and either options or a range. */
function offered(round) {
  const { rows, all } = round;
  const distinct = (values) => [...new Set(values)].filter((value) => value !== null).sort((a, b) => (typeof a === "number" ? a - b : a < b ? -1 : 1));
  const filters = [];
  const choice = (name, label, options) => { if (options.length) filters.push({ name, label, options }); };
  const range = (name, label, values) => { if (new Set(values).size > 1) filters.push({ name, label, range: true }); };
  const categories = distinct(rows.map((row) => row.category));
  if (categories.length > 1) choice("category", "Category", categories.map((each) => [each, each]));
  const levels = distinct(rows.map((row) => row.difficulty));
  if (levels.length > 1) choice("difficulty", "Difficulty", levels.map((each) => [String(each), String(each)]));
  if (round.paired) {
    choice("outcome", "Became", [["any", "any pair"], ["none", "no pair"], ...distinct(rows.map((row) => row.outcome)).map((each) => [each, outcomeName(each)])]);
  }
  const errors = distinct(all.map((each) => each.error));
  if (errors.length) choice("error", "Parse error", [["any", "any"], ["none", "none"], ...errors.map((each) => [each, words(each)])]);
  if (all.some((each) => each.correct !== null)) {
    choice("correct", "Right answers", [["all", "all"], ["some", "some"], ["none", "none"]]);
  }
  if (all.some((each) => each.change !== null)) {
    choice("change", "The thought changed the answer", [["1", "for the better"], ["-1", "for the worse"], ["0", "neither"]]);
  }
  const doubts = [];
  if (rows.some((row) => row.contradicted)) doubts.push(["orders", "the two orders contradict"]);
  if (rows.some((row) => row.misordered)) doubts.push(["wrong", "a wrong one isn't lower"]);
  choice("judge", "Judge disagreement", doubts);
  range("margin", "Margin", rows.map((row) => row.margin));
  range("score", "Score", all.map((each) => each.score));
  range("thought", "Thought, characters", all.map((each) => each.thought));
  return filters;
}

const within = (value, low, high) => (low === "" && high === "") || (value !== null && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high)));

function promptMatches(row) {
  if (state.category !== "" && row.category !== state.category) return false;
  if (state.difficulty !== "" && String(row.difficulty) !== state.difficulty) return false;
  if (state.outcome === "any" ? !row.pairs.length : state.outcome === "none" ? row.pairs.length : state.outcome !== "" && row.outcome !== state.outcome) return false;
  if (state.judge === "orders" && !row.contradicted) return false;
  if (state.judge === "wrong" && !row.misordered) return false;
  if (!within(row.margin, state.margin_min, state.margin_max)) return false;
  if (state.correct !== "") {
    const right = row.samples.filter((each) => each.correct === 1).length;
    if (state.correct === "all" ? right < row.samples.length : state.correct === "none" ? right : !right || right === row.samples.length) return false;
  }
  return row.samples.some(sampleMatches);
}

function sampleMatches(sample) {
  if (state.error === "any" ? !sample.error : state.error === "none" ? sample.error : state.error !== "" && sample.error !== state.error) return false;
  if (state.change !== "" && String(sample.change) !== state.change) return false;
  return within(sample.thought, state.thought_min, state.thought_max) && within(sample.score, state.score_min, state.score_max);
}

const sampleFilters = () => ["error", "change", "thought_min", "thought_max", "score_min", "score_max"].some((name) => state[name] !== "");

function buildFilters() {
  const fields = offered(current).map((filter) => {
    if (filter.options) {
      const select = el("select", { onchange: () => { state[filter.name] = select.value; applyFilters(); } }, el("option", { value: "" }, "all"),
        filter.options.map(([value, label]) => el("option", { value }, label)));
      select.value = state[filter.name];
      return el("label", { class: "field" }, filter.label, select);
    }
    const end = (side, name) => {
      const input = el("input", { type: "number", step: "any", placeholder: side, "aria-label": `${filter.label}, ${side}`,
        oninput: () => { state[name] = input.value; applyFilters(); } });
      input.value = state[name];
      return input;
    };
    return el("div", { class: "field range", role: "group", "aria-label": filter.label }, el("span", {}, filter.label),
      el("span", { class: "ends" }, end("from", filter.name + "_min"), end("to", filter.name + "_max")));
  });
  $("filters").replaceChildren(...fields);
}

function applyFilters() {
  visible = current.rows.map((row) => (found === null || found.has(row.id)) && (!other || other.byId.has(row.id)) && promptMatches(row));
  if (table) table.setFilter((row) => visible[row.i]);
  const shown = visible.reduce((sum, each) => sum + each, 0);
  $("count").textContent = (shown === current.rows.length ? `${number(shown)} prompts` : `${number(shown)} of ${number(current.rows.length)} prompts`)
    + `, ${number(current.all.length)} samples` + (searching ? ` · searching ${searching}` : "");
  const active = FILTERS.filter((name) => name !== "q" && state[name] !== "").length;
  $("filters-button").textContent = active ? `Filters (${active})` : "Filters";
  $("reset").hidden = !active && state.q === "";
  writeAddress();
}

/* ---- search over all texts ---- */

const searchable = new Map(); // name of a file of texts → [[prompt id, text], …]
let searchableChars = 0;
let searchNumber = 0;
let searching = "";

async function textsOf(name) {
  if (searchable.has(name)) return searchable.get(name);
  const detail = await load(name);
  const texts = Object.keys(detail.samples).map((id) => {
    const prompt = detail.prompts[id] || {}, earlier = (prompt.earlier || []).map((turn) => turn.content);
    const outputs = Object.values(detail.samples[id]).flatMap((each) => [each.thought, each.response, each.output || ""]);
    return [id, [id, prompt.instruction || "", ...earlier, ...outputs].join("\n").toLowerCase()];
  });
  searchableChars += texts.reduce((sum, [, text]) => sum + text.length, 0);
  if (searchableChars < KEPT_CHARS) searchable.set(name, texts);
  return texts;
}

async function search() {
  const mine = ++searchNumber, wanted = state.q.trim().toLowerCase(), entry = current.entry;
  searching = "";
  if (!wanted) { found = null; applyFilters(); markFound(); return; }
  found = new Set(current.rows.filter((row) => row.text.toLowerCase().includes(wanted)).map((row) => row.id));
  let shown = 0;
  for (let i = 0; i < entry.samples.length; i++) {
    let texts = [];
    try { texts = await textsOf(samplesFile(entry, i)); } catch { /* it is gone: the next look at the run says so */ }
    if (mine !== searchNumber) return;
    for (const [id, text] of texts) if (text.includes(wanted)) found.add(id);
    if (performance.now() - shown > 300) {
      searching = `${i + 1} of ${entry.samples.length} files`;
      applyFilters();
      shown = performance.now();
      await new Promise((resume) => setTimeout(resume));
    }
  }
  searching = "";
  applyFilters();
  markFound();
}

/** Marks what was searched for, without touching the document. */
function markFound() {
  if (!window.CSS || !CSS.highlights) return;
  CSS.highlights.delete("found");
  const wanted = state.q.trim().toLowerCase();
  if (!wanted) return;
  const ranges = [];
  const walker = document.createTreeWalker($("detail"), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node && ranges.length < 500; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue;
    for (let at = text.indexOf(wanted); at >= 0 && ranges.length < 500; at = text.indexOf(wanted, at + wanted.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + wanted.length);
      ranges.push(range);
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

const samplesFile = (entry, i) => `${entry.name}/samples-${entry.samples[i]}`;
const judgmentsFile = (entry, i) => `${entry.name}/judgments-${entry.judgments[i]}`;

/* ---- the list ---- */

/** The scores of a prompt's samples on the round's scale, with those that became chosen and rejected. */
function strip(row, round) {
  const width = 132, height = 20, left = 16, span = round.high - round.low || 1;
  const x = (score) => left + ((score - round.low) / span) * (width - left - 8);
  const scored = row.samples.filter((each) => each.score !== null && !each.error);
  const chosen = scored.filter((each) => each.chosen), rejected = scored.filter((each) => each.rejected);
  const parts = [svg("line", { x1: left, x2: width - 8, y1: 10, y2: 10, class: "axis" })];
  for (const each of scored.filter((sample) => !sample.chosen && !sample.rejected)) parts.push(svg("circle", { cx: x(each.score), cy: 10, r: 3, class: "plain" }));
  for (const each of rejected) parts.push(svg("rect", { x: x(each.score) - 4, y: 6, width: 8, height: 8, class: "rejected" }));
  for (const each of chosen) parts.push(svg("circle", { cx: x(each.score), cy: 10, r: 4.5, class: "chosen" }));
  if (row.errors) {
    const bad = row.samples.some((each) => each.error && each.rejected);
    parts.push(svg("path", { d: "M3 6 l8 8 M11 6 l-8 8", class: bad ? "cross rejected" : "cross" }));
  }
  const said = scored.length ? `scores ${fixed(Math.min(...scored.map((each) => each.score)))} to ${fixed(Math.max(...scored.map((each) => each.score)))}` : "no scores";
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": said + (row.errors ? `, ${row.errors} of ${row.samples.length} break the format` : "") }, ...parts);
}

function promptCell(cell) {
  const row = cell.getData();
  const facts = [row.category, row.difficulty === null ? null : `difficulty ${row.difficulty}`, row.turns ? `${row.turns} turns before` : null].filter(Boolean);
  return el("div", { class: "prompt" }, el("bdi", { class: "line" }, row.text || row.id), facts.length ? el("span", { class: "facts" }, el("bdi", {}, facts.join(" · "))) : null);
}

function columns() {
  const room = $("list").clientWidth;
  const plain = (format) => (cell) => document.createTextNode(format(cell.getValue()));
  const numeric = (title, field, format = fixed, width = 84) => ({ title, field, width, hozAlign: "right", headerHozAlign: "right", sorter: "number", sorterParams: { alignEmptyValues: "bottom" },
    formatter: plain(format), headerSortStartingDir: "desc" });
  const list = [{ title: "Prompt", field: "text", formatter: promptCell, widthGrow: 1, minWidth: 140, sorter: "string" }];
  if (other) {
    const theirs = (row) => other.byId.get(row.id);
    const score = (which) => (value, row) => (which === "beside" ? theirs(row)?.score ?? null : row.score !== null && theirs(row)?.score != null ? row.score - theirs(row).score : null);
    list.push(numeric("Score", "score", fixed, 72));
    list.push({ ...numeric("Beside", "beside", fixed, 76), mutator: score("beside") });
    list.push({ ...numeric("Change", "gain", (value) => (value === null ? "–" : signed(value)), 80), mutator: score("gain") });
    return list;
  }
  if (current.k > 1) list.push({ title: "Scores", field: "score", width: 150, headerTooltip: "● chosen  □ rejected  × breaks the format", formatter: (cell) => strip(cell.getData(), current), sorter: "number", headerSortStartingDir: "desc" });
  else list.push(numeric("Score", "score", fixed, 76));
  if (room >= 620 && current.paired && current.rows.some((row) => row.margin !== null)) list.push(numeric("Margin", "margin", fixed, 80));
  if (room >= 620 && current.all.some((each) => each.thought)) list.push(numeric("Thought", "thought", number, 88));
  if (room < 440) return list;
  if (current.paired) list.push({ title: "Became", field: "outcome", width: 112, formatter: (cell) => outcomeCell(cell.getData()), sorter: "string" });
  else if (current.all.some((each) => each.error)) list.push({ title: "Format", field: "errors", width: 92, sorter: "number", headerSortStartingDir: "desc",
    formatter: (cell) => document.createTextNode(cell.getValue() ? "broken" : "") });
  return list;
}

function outcomeCell(row) {
  if (row.pairs.length) return el("span", { class: "became pair" }, row.pairs[0].kind === "regular" ? (row.pairs.length > 1 ? `${row.pairs.length} pairs` : "pair") : "error pair");
  return el("span", { class: "became" }, row.outcome ? outcomeName(row.outcome) : "");
}

let built = Promise.resolve();

function buildTable() {
  if (table) table.destroy();
  table = new Tabulator("#table", {
    data: current.rows, index: "i", height: "100%", layout: "fitColumns", rowHeight: 70, headerSortTristate: true, placeholder: "No prompt fits.",
    columnDefaults: { headerHozAlign: "left", resizable: "header" }, columns: columns(),
    rowFormatter: (row) => {
      const element = row.getElement();
      element.id = "row-" + row.getData().i;
      const is = row.getData().id === state.prompt;
      element.classList.toggle("current", is);
      element.setAttribute("aria-selected", String(is));
    },
  });
  built = new Promise((resolve) => table.on("tableBuilt", resolve)).then(() => {
    const grid = $("table"), holder = grid.querySelector(".tabulator-tableholder"), body = grid.querySelector(".tabulator-table");
    grid.setAttribute("aria-label", "Prompts");
    // What scrolls takes the focus, so it is the group of rows, and what lies between has no role.
    grid.removeAttribute("aria-owns");
    const fill = (any) => {
      if (any) { holder.setAttribute("role", "rowgroup"); holder.setAttribute("tabindex", "0"); } else { holder.removeAttribute("role"); holder.removeAttribute("tabindex"); }
    };
    table.on("dataFiltered", (_, rows) => fill(rows.length));
    fill(visible.some(Boolean));
    if (body) body.setAttribute("role", "presentation");
    for (const header of grid.querySelectorAll(".tabulator-sortable")) {
      header.setAttribute("tabindex", "0");
      header.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); header.click(); } });
    }
    table.setFilter((row) => visible[row.i]);
  });
  table.on("rowClick", (_, row) => choose(row.getData().id, { open: true }));
}

function markCurrent() {
  for (const row of table.getRows("visible")) {
    const is = row.getData().id === state.prompt, element = row.getElement();
    element.classList.toggle("current", is);
    element.setAttribute("aria-selected", String(is));
  }
}

/** Gives the focus to the row of the prompt that is shown, or to the list. */
function focusList() {
  const row = current && current.byId.get(state.prompt), element = row && $("row-" + row.i);
  if (element) { element.setAttribute("tabindex", "-1"); element.focus({ preventScroll: true }); } else document.querySelector(".tabulator-tableholder")?.focus();
}

/** Shows a prompt's samples; `open` also brings them to the front on a narrow screen. */
async function choose(id, { open = false, sample = "", keep = false } = {}) {
  state.prompt = id;
  state.sample = sample;
  writeAddress(open);
  if (open) document.body.classList.add("reading");
  await built;
  markCurrent();
  const row = current.byId.get(id);
  if (row && visible[row.i]) await table.scrollToRow(row.i, "nearest", false).catch(() => {});
  markCurrent();
  await showDetail(keep);
}

function step(by) {
  const rows = table.getRows("active").map((row) => row.getData().id);
  if (!rows.length) return;
  const at = rows.indexOf(state.prompt);
  choose(rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + by))]).then(() => { if (!document.body.classList.contains("reading")) focusList(); });
}

/* ---- one prompt ---- */

let detailNumber = 0;
let unfolded = false;

async function showDetail(keep = false) {
  const mine = ++detailNumber, place = $("detail"), row = current.byId.get(state.prompt);
  if (!row) {
    place.replaceChildren(el("p", { class: "none" }, current.rows.length ? (state.prompt ? "This prompt isn't in this round." : "Choose a prompt.") : "No samples yet."));
    return;
  }
  const theirs = other ? other.byId.get(row.id) : null;
  let texts, beside;
  try {
    [texts, beside] = await Promise.all([load(samplesFile(current.entry, row.shard)), theirs ? load(samplesFile(other.entry, theirs.shard)) : null]);
  } catch (error) {
    if (mine === detailNumber) place.replaceChildren(el("p", { class: "none" }, error.message + ": the run may have moved on; reload the page."));
    return;
  }
  if (mine !== detailNumber) return;
  const scroll = place.scrollTop;
  const sides = [side(row, current, texts)];
  if (theirs) sides.push(side(theirs, other, beside));
  place.replaceChildren(promptHead(row, texts.prompts[row.id] || { instruction: row.text }), el("div", { class: theirs ? "sides" : "" }, sides));
  place.scrollTop = keep ? scroll : 0;
  markFound();
  const linked = state.sample !== "" && $("sample-" + state.sample);
  if (linked && !keep) linked.scrollIntoView({ block: "start" });
}

function promptHead(row, prompt) {
  const facts = [prompt.category, prompt.difficulty === undefined ? null : `difficulty ${prompt.difficulty}`].filter(Boolean);
  return el("div", { class: "head" },
    el("button", { type: "button", class: "back", onclick: back }, "← All prompts"),
    el("p", { class: "eyebrow" }, facts.map((each) => el("bdi", {}, each)), el("a", { href: address({ sample: "" }), class: "id" }, row.id)),
    (prompt.earlier || []).length ? el("div", { class: "earlier", tabindex: "0", role: "group", "aria-label": "Earlier turns" }, prompt.earlier.map((turn) =>
      el("div", { class: "turn" }, el("span", { class: "tag" }, turn.role), el("div", { class: "said", dir: "auto" }, turn.content)))) : null,
    el("h2", { class: "asked" }, el("bdi", {}, textBlock("asked-text", prompt.instruction))),
    prompt.reference !== undefined ? el("p", { class: "reference" }, "Reference: ", el("bdi", {}, prompt.reference)) : null,
    prompt.constraints !== undefined ? el("details", {}, el("summary", {}, "Instructions that are checked"), textBlock("code", prompt.constraints)) : null);
}

/** What became of a prompt, in a sentence. */
function outcomeText(row, round) {
  if (!round.paired) return null;
  const scored = row.samples.filter((each) => each.score !== null && !each.error).map((each) => each.score);
  const spread = scored.length ? Math.max(...scored) - Math.min(...scored) : 0;
  if (row.pairs.length) {
    const name = (index) => (index === null ? "one of another round" : index < 0 ? "the demonstration" : `sample ${index}`);
    return row.pairs.map((pair) => {
      if (run.recipe === "thinkpo") return "A pair: the long output is preferred to the short one.";
      const both = `${name(pair.chosen)} is preferred to ${name(pair.rejected)}`;
      if (run.recipe === "self_train") return `A pair: ${both}; one is right, the other is wrong, and they are little alike.`;
      if (pair.kind === "error_rejected") return `A pair with a format error, drawn by lot: ${both}, the best to the first that breaks the format.`;
      return `A pair: ${both}, the highest to the lowest length-controlled score` + (pair.margin === null ? "." : `, ${fixed(pair.margin)} standard deviations apart.`);
    }).join(" ");
  }
  const why = {
    small_margin: `No pair: the raw scores lie ${fixed(spread)} apart, and pair.min_margin is ${fixed(run.min_margin)}.`,
    tie: "No pair: the scores are tied, or the best and the worst output are the same text.",
    single_candidate: "No pair: only one sample parses and is scored.", all_malformed: "No pair: every sample breaks the format.",
    unscored: "No pair: the judge scored none of the samples.",
    too_long: `No pair: an output doesn't fit train.max_tokens (${number(run.max_tokens)}).`,
    members_disagree: "No pair: the members of the ensemble disagree on which output is better.",
    no_wrong_output: "No pair: no output is wrong.", no_right_output: "No pair: no output is right, and there is no demonstration.",
    not_paired: "No pair: the filter by length and answer dropped it.",
  };
  return why[row.why] || "No pair.";
}

function side(row, round, texts) {
  const byScore = [...row.samples].sort((a, b) => (b.chosen - a.chosen) || (a.rejected - b.rejected) || ((b.controlled ?? b.score ?? -Infinity) - (a.controlled ?? a.score ?? -Infinity)) || a.index - b.index);
  const said = outcomeText(row, round);
  const cards = byScore.map((sample) => card(sample, row, round, (texts.samples[row.id] || {})[String(sample.index)] || { thought: "", response: "" }));
  return el("div", { class: "side" }, other ? el("h3", { class: "round" }, roundName(round.entry)) : null, said ? el("p", { class: "why" }, said) : null, cards,
    row.judged >= 0 ? judgments(row, round) : null);
}

function card(sample, row, round, text) {
  const role = sample.chosen && sample.rejected ? "chosen and rejected" : sample.chosen ? "chosen" : sample.rejected ? "rejected" : "";
  const own = round === current;
  const facts = [
    sample.score !== null ? `score ${fixed(sample.score)}` : sample.unscored ? `unscored: ${words(sample.unscored)}` : null,
    sample.controlled !== null ? `length-controlled ${signed(sample.controlled)}` : null,
    sample.correct === null ? null : sample.correct ? "right" : "wrong",
    sample.change === 1 ? "better than without thinking" : sample.change === -1 ? "worse than without thinking" : null,
    `${number(sample.tokens)} tokens`, sample.tries > 1 ? `${sample.tries} tries` : null,
  ].filter(Boolean);
  const title = row.samples.length > 1 || role ? `Sample ${sample.index}` : "Response";
  const linked = own && state.sample === String(sample.index);
  return el("article", { class: ["sample", sample.chosen ? "chosen" : sample.rejected ? "rejected" : "", linked ? "linked" : "", sampleFilters() && own && !sampleMatches(sample) ? "unmatched" : ""].join(" "),
      id: own ? "sample-" + sample.index : null, tabindex: "-1" },
    el("div", { class: "card-head" }, el("h3", {}, own ? el("a", { href: address({ sample: String(sample.index) }), title: "Link to this sample" }, title) : title),
      role ? el("span", { class: "role" }, role) : null, el("span", { class: "facts" }, facts.join(" · "))),
    sample.error ? el("p", { class: "error" }, `breaks the format: ${words(sample.error)}`) : null,
    BIDI.test(text.thought + text.response) ? el("p", { class: "note" }, "contains invisible characters that change the direction of text") : null,
    text.thought ? fold(`Thought, ${number(text.thought.length)} characters`, text.thought, "thought") : null,
    text.response || !sample.error ? textBlock("response", text.response) : null,
    text.output ? fold(`Output as sampled, ${number(text.output.length)} characters`, text.output, "thought", "raw") : null);
}

/** Text under a line that shows its beginning; laid out when it is unfolded. */
function fold(title, text, className, kind = "") {
  const preview = text.trim().split("\n", 1)[0].slice(0, 160);
  const details = el("details", { class: "fold " + kind, open: unfolded && !kind }, el("summary", {}, el("span", { class: "fold-title" }, title), el("bdi", { class: "preview" }, preview)));
  const fill = () => { if (details.open && details.childElementCount === 1) { details.append(textBlock(className, text)); markFound(); } };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

function judgments(row, round) {
  const details = el("details", { class: "judge" }, el("summary", {}, "What the judge said"));
  details.addEventListener("toggle", async () => {
    if (!details.open || details.childElementCount > 1) return;
    const file = await load(judgmentsFile(round.entry, row.judged)).catch(() => null);
    const rows = (file && file[row.id]) || [];
    const name = (index) => (index < 0 ? "baseline" : `sample ${index}`);
    details.append(rows.length ? el("ul", {}, rows.map(([index, against, outcome, detail]) => el("li", {},
      el("b", {}, against === null ? name(index) : `${name(index)} first, ${name(against)} second`), ": ",
      against === null ? fixed(outcome) : outcome === null ? "no verdict" : outcome > 0 ? "the first wins" : outcome < 0 ? "the second wins" : "a tie",
      judgeDetail(detail)))) : el("p", {}, "Nothing is on file."));
  });
  return details;
}

function judgeDetail(detail) {
  if (typeof detail === "string") return textBlock("code", detail);
  const { text, ...rest } = detail || {};
  const facts = Object.entries(rest).filter(([, value]) => value !== null && value !== "" && value !== true && !(Array.isArray(value) && !value.length))
    .map(([key, value]) => `${words(key)} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return el("span", {}, facts.length ? el("bdi", { class: "facts" }, " " + facts.join(" · ").slice(0, 2000)) : null, text ? textBlock("code", String(text)) : null);
}

function back() {
  document.body.classList.remove("reading");
  focusList();
}

/* ---- the frame ---- */

const roundName = (entry) => (["Test", "Validation"].includes(entry.kind) ? `${entry.label} · ${entry.kind.toLowerCase()}` : entry.label);

function fillRounds() {
  const groups = new Map();
  for (const entry of run.rounds) {
    if (!groups.has(entry.kind)) groups.set(entry.kind, []);
    groups.get(entry.kind).push(el("option", { value: entry.name }, roundName(entry) + (entry.state === "complete" ? "" : `, ${entry.state}`)));
  }
  $("round").replaceChildren(...[...groups].map(([kind, options]) => el("optgroup", { label: kind }, options)));
  $("round").value = state.round;
  const entry = run.rounds.find((each) => each.name === state.round);
  const same = run.rounds.filter((each) => entry && each.name !== entry.name && each.prompts && each.prompts === entry.prompts);
  $("beside").replaceChildren(el("option", { value: "" }, "none"), ...same.map((each) => el("option", { value: each.name }, roundName(each))));
  $("beside-field").hidden = !same.length;
  if (!same.some((each) => each.name === state.beside)) state.beside = "";
  $("beside").value = state.beside;
}

function showState(text) {
  const entry = run && run.rounds.find((each) => each.name === state.round);
  $("state").textContent = text || (entry && entry.state !== "complete" ? `${entry.state} now` : served ? "live" : run.left_out ? `${run.left_out} older rounds are left out: make view shows them` : "");
  $("state").classList.toggle("busy", Boolean(entry && entry.state !== "complete"));
}

async function show({ keep = false } = {}) {
  if (!run.rounds.length) {
    $("count").textContent = "No samples yet.";
    showState();
    return;
  }
  if (!run.rounds.some((each) => each.name === state.round)) state.round = run.rounds[0].name;
  fillRounds();
  current = await openRound(state.round);
  other = state.beside ? await openRound(state.beside) : null;
  if (!keep) found = null;
  buildFilters();
  applyFilters();
  buildTable();
  showState();
  if (state.q) await search();
  if (state.prompt === "" && matchMedia("(min-width: 60rem)").matches) {
    const first = current.rows.find((row) => visible[row.i]);
    if (first) state.prompt = first.id;
  }
  if (state.prompt !== "") await choose(state.prompt, { sample: state.sample, keep });
  else await showDetail();
}

/** Looks whether the run has moved on; the list keeps its place. */
async function look() {
  if (document.hidden) return;
  let next;
  try { next = await load("run", { fresh: true }); } catch { showState("the server has stopped"); return; }
  const names = (of) => of.rounds.map((each) => `${each.name} ${each.table} ${each.state}`).join("\n");
  if (names(next) === names(run)) { showState(); return; }
  const shown = (of) => of.rounds.filter((each) => [state.round, state.beside].includes(each.name)).map((each) => each.table).join();
  const changed = shown(next) !== shown(run) || !run.rounds.length;
  run = next;
  if (!changed) { fillRounds(); showState(); return; }
  const holder = document.querySelector(".tabulator-tableholder"), top = holder ? holder.scrollTop : 0;
  await show({ keep: true });
  const now = document.querySelector(".tabulator-tableholder");
  if (now) now.scrollTop = top;
}

const typing = (target) => target.closest("input, select, textarea, dialog");

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key, target } = event;
  if (key === "Escape") {
    if (target === $("search")) { $("search").blur(); focusList(); } else if (!$("keys").open) back();
    return;
  }
  if (typing(target) || !table) return;
  const inList = target === document.body || (target.closest("#table") && !target.closest(".tabulator-header"));
  const actions = {
    j: () => step(1), k: () => step(-1), ArrowDown: inList && (() => step(1)), ArrowUp: inList && (() => step(-1)),
    Enter: inList && (() => { choose(state.prompt, { open: true }).then(() => $("detail").focus()); }),
    "/": () => { $("search").focus(); $("search").select(); }, f: () => toggleFilters(), "?": () => $("keys").showModal(),
    t: () => { unfolded = !unfolded; for (const each of document.querySelectorAll(".fold:not(.raw)")) each.open = unfolded; },
    n: () => nextSample(1), p: () => nextSample(-1),
  };
  if (actions[key]) { event.preventDefault(); actions[key](); }
}

function nextSample(by) {
  const cards = [...document.querySelectorAll(".sample[id]")];
  if (!cards.length) return;
  const at = cards.indexOf(document.activeElement.closest(".sample"));
  const next = cards[Math.max(0, Math.min(cards.length - 1, at < 0 ? 0 : at + by))];
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}

function toggleFilters() {
  const hidden = !$("filters").hidden;
  $("filters").hidden = hidden;
  $("filters-button").setAttribute("aria-expanded", String(!hidden));
  if (!hidden) $("filters").querySelector("select, input")?.focus();
}

async function start() {
  readAddress();
  document.addEventListener("keydown", onKey);
  $("keys-button").addEventListener("click", () => $("keys").showModal());
  $("filters-button").addEventListener("click", toggleFilters);
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("detail").focus(); });
  $("reset").addEventListener("click", () => { for (const name of FILTERS) state[name] = ""; $("search").value = ""; found = null; searchNumber++; searching = ""; buildFilters(); applyFilters(); markFound(); });
  $("round").addEventListener("change", () => { const kept = state.q; state = { ...DEFAULTS, round: $("round").value, q: kept, prompt: state.prompt }; again(); });
  $("beside").addEventListener("change", () => { state.beside = $("beside").value; again(); });
  let timer = 0;
  $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => { state.q = $("search").value; search(); }, 200); });
  window.addEventListener("hashchange", moved);
  window.addEventListener("popstate", moved);
  run = await load("run", { fresh: served });
  $("name").textContent = run.name;
  document.title = `Samples of ${run.name}`;
  $("search").value = state.q;
  await show();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  const width = () => columns().length;
  let shown = current ? width() : 0;
  window.addEventListener("resize", () => { if (current && table && $("list").clientWidth && width() !== shown) { shown = width(); buildTable(); } });
  if (served) setInterval(look, POLL_MS);
}

/** Another round: a prompt that it hasn't is forgotten. */
async function again() {
  const next = await openRound(state.round);
  if (next && !next.byId.has(state.prompt)) state.prompt = state.sample = "";
  await show();
}

let seen = "";
async function moved() {
  if (!run || location.hash === seen) return;
  seen = location.hash;
  const before = { ...state };
  readAddress();
  $("search").value = state.q;
  if (state.round !== before.round || state.beside !== before.beside || !current) { await show(); return; }
  if (state.q !== before.q) search();
  buildFilters();
  applyFilters();
  if (state.prompt) await choose(state.prompt, { sample: state.sample, open: state.prompt !== before.prompt || state.sample !== before.sample });
  else document.body.classList.remove("reading");
}

start().catch((error) => { $("count").textContent = error.message; console.error(error); });

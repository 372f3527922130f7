"use strict";
// What is served: a table with the figures of the cards, and the plot of those that were measured.

const COLUMNS = [
  ["branch", "", (card) => labelOf(card)],
  ["top-1", "%", (card) => card.accuracy?.top1?.toFixed(2)],
  ["images", "n", (card) => card.accuracy?.n?.toLocaleString("en")],
  ["latency", "p50, ms", (card) => timed(card)?.p50_ms.toFixed(2)],
  ["params", "millions", (card) => inMillions(card.params)],
  ["MACs", "millions", (card) => inMillions(card.macs)],
  ["file", "MB", (card) => inMillions(card.bytes)],
  ["precision", "", (card) => card.precision],
  ["runtime", "", (card) => card.runtime],
  ["front", "", (card) => (isOnFront(card) ? "yes" : measured(card) ? "no" : undefined)],
  ["ready", "", (card) => (card.ready ? "yes" : "no")],
];
const WORDY = ["branch", "precision", "runtime", "front", "ready"];

let cards = [];

/** Of one entry its branches are called by their targets; of several, by their names. */
function labelOf(card) {
  const isAlone = new Set(cards.map((each) => each.entry)).size < 2;
  if (!isAlone) return card.name;
  return /^\d+$/.test(card.target) ? `branch ${card.target}` : card.target;
}

const inMillions = (count) => (count == null ? undefined : (count / 1e6).toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 }));
const timed = (card) => (card.latency ?? []).find((each) => each.batch === 1);
const measured = (card) => (timed(card) && card.accuracy?.top1 != null ? pointOf(card) : undefined);
const pointOf = (card) => ({ label: labelOf(card), ms: timed(card).p50_ms, top1: card.accuracy.top1, precision: card.precision });
const points = () => cards.map(measured).filter(Boolean);
const isOnFront = (card) => measured(card) !== undefined && onFront(measured(card), points());

function showTable() {
  const head = COLUMNS.map(([name, unit]) =>
    element("th", { scope: "col", ...(!WORDY.includes(name) && { class: "number" }) }, name, ...(unit ? [element("span", { class: "unit" }, unit)] : [])));
  byId("columns").replaceChildren(element("tr", {}, ...head));
  const rows = cards.map((card) => element("tr", {}, ...COLUMNS.map(([name, , value], i) => cell(name, value(card), i === 0))));
  byId("rows").replaceChildren(...rows);
  byId("measured").textContent = howMeasured();
}

function cell(name, value, isHead) {
  const attributes = isHead ? { scope: "row" } : WORDY.includes(name) ? {} : { class: "number" };
  const content = value == null ? [element("span", { "aria-hidden": "true" }, "–"), element("span", { class: "said" }, "not measured")] : [String(value)];
  return element(isHead ? "th" : "td", attributes, ...content);
}

/** On what the times were measured; those of different machines are told apart. */
function howMeasured() {
  const found = new Map();
  for (const card of cards.filter(timed)) {
    const threads = timed(card).threads;
    const where = `${card.host ?? "a host that is not told"}${threads ? `, ${threads} ${threads === 1 ? "thread" : "threads"}` : ""}`;
    found.set(where, [...(found.get(where) ?? []), labelOf(card)]);
  }
  const places = [...found].map(([where, names]) => (found.size > 1 ? `${where} (${names.join(", ")})` : where));
  const mixed = found.size > 1 ? " Times of different machines cannot be compared." : "";
  const n = "n: images of the test split that the accuracy was measured on. ";
  return `${n}${found.size ? `Latency: median time for a single image (batch 1), measured on ${places.join("; ")}.${mixed}` : "No latency was measured."}`;
}

function showPlot() {
  const all = points();
  if (!all.length) {
    byId("plot").replaceChildren(element("p", {}, "Nothing that is served has both an accuracy and a latency that were measured."));
    byId("legend").replaceChildren();
    byId("front").textContent = "";
    return;
  }
  drawPlot(byId("plot"), all);
  const kinds = [...new Set(all.map((point) => point.precision))].sort();
  const key = (...shapes) => drawn("svg", { viewBox: "0 0 18 18", "aria-hidden": "true" }, ...shapes);
  byId("legend").replaceChildren(
    ...kinds.map((kind) => element("li", {}, key(mark(kind, 9, 9)), kind)),
    element("li", {}, key(drawn("circle", { class: "ring", cx: 9, cy: 9, r: 7 })), "on the front"),
  );
  const front = all.filter((point) => onFront(point, all)).map((point) => point.label).join(", ");
  byId("front").textContent = `On the front, joined by the dashed line: ${front}. No other branch is as fast and as accurate, and better in one of the two.`;
}

/** Ask what is served, and show it. */
async function showBranches() {
  try {
    const server = await ask("v2");
    cards = await ask("v2/kdzoo/models");
    const entries = [...new Set(cards.map((card) => `${card.entry} (${card.method} on ${card.backbone}, ${card.dataset}, ${card.classes} classes)`))];
    byId("server").textContent = `${server.name} ${server.version} answers for ${cards.length} ${cards.length === 1 ? "branch" : "branches"} of ${entries.join("; ")}.`;
    byId("problem").hidden = true;
    showTable();
    showPlot();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    byId("server").textContent = "What is served is not known.";
    byId("problem").textContent = error.message;
    byId("problem").hidden = false;
  }
}

let lastWidth = 0;
new ResizeObserver(() => {
  const width = byId("plot").clientWidth;
  if (width !== lastWidth && cards.length) requestAnimationFrame(showPlot);
  lastWidth = width;
}).observe(byId("plot"));
const shown = showBranches();

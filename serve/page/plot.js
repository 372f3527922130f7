"use strict";
// The picture of what is served: accuracy against latency, its front marked. Plain SVG.

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = { fp32: "circle", fp16: "square", bf16: "diamond", int8: "triangle" };
const MARGIN = { left: 52, right: 14, top: 12, bottom: 44 }; // pixels
const SIDES = [[1, -1], [1, 1], [-1, -1], [-1, 1], [0, -1], [0, 1], [1, 0], [-1, 0]]; // of a point, where its label may be
const DISTANCES = [9, 11, 13, 17, 24, 36, 50, 66];
const LINE = 13; // height of a label

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Whether a point is on the front: none is as fast and as accurate, and better in one of the two. */
function onFront(point, points) {
  return !points.some((p) => p.ms <= point.ms && p.top1 >= point.top1 && (p.ms < point.ms || p.top1 > point.top1));
}

/** Round numbers that cover `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toFixed(digits)));
}

/** The mark of a precision: its shape says the same as its colour. */
function mark(precision, x, y, attributes = {}) {
  const all = { class: `point ${SHAPES[precision] ? precision : "other"}`, ...attributes };
  const shape = SHAPES[precision] ?? "circle";
  if (shape === "circle") return drawn("circle", { cx: x, cy: y, r: 5, ...all });
  if (shape === "square") return drawn("rect", { x: x - 4.5, y: y - 4.5, width: 9, height: 9, ...all });
  const corners = shape === "diamond" ? [[0, -6], [6, 0], [0, 6], [-6, 0]] : [[0, -6], [5.8, 4.5], [-5.8, 4.5]];
  return drawn("polygon", { points: corners.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" "), ...all });
}

/** The plot of `points` {label, ms, top1, precision}, as wide as its place. */
function drawPlot(place, points) {
  const width = Math.max(280, place.clientWidth);
  const height = Math.round(Math.min(420, Math.max(280, 0.55 * width)));
  const across = ticks(0, Math.max(...points.map((p) => p.ms)) * 1.08, width / 90);
  const tops = points.map((p) => p.top1);
  const spare = Math.max(0.1, 0.12 * (Math.max(...tops) - Math.min(...tops)));
  const upward = ticks(Math.max(0, Math.min(...tops) - spare), Math.min(100, Math.max(...tops) + spare), height / 60);
  const inner = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
  const x = (ms) => inner.left + ((ms - across[0]) / (across.at(-1) - across[0])) * (inner.right - inner.left);
  const y = (top1) => inner.bottom - ((top1 - upward[0]) / (upward.at(-1) - upward[0])) * (inner.bottom - inner.top);

  const front = points.filter((p) => onFront(p, points)).sort((a, b) => a.ms - b.ms);
  const told = points.map((p) => `${p.label}: ${p.top1.toFixed(2)} % in ${p.ms.toFixed(2)} ms`).join("; ");
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": "plot-title plot-told" });
  svg.append(
    drawn("title", { id: "plot-title" }, `Top-1 accuracy against latency of ${points.length} branches`),
    drawn("desc", { id: "plot-told" }, `${told}. On the front: ${front.map((p) => p.label).join(", ")}.`),
  );
  for (const ms of across) {
    svg.append(drawn("line", { class: "grid", x1: x(ms), x2: x(ms), y1: inner.top, y2: inner.bottom }));
    svg.append(drawn("text", { x: x(ms), y: inner.bottom + 16, "text-anchor": "middle" }, String(ms)));
  }
  for (const top1 of upward) {
    svg.append(drawn("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y(top1), y2: y(top1) }));
    svg.append(drawn("text", { x: inner.left - 6, y: y(top1) + 4, "text-anchor": "end" }, String(top1)));
  }
  const middle = (inner.top + inner.bottom) / 2;
  svg.append(
    drawn("path", { class: "edge", fill: "none", d: `M${inner.left} ${inner.top}V${inner.bottom}H${inner.right}` }),
    drawn("text", { x: (inner.left + inner.right) / 2, y: height - 8, "text-anchor": "middle" }, "milliseconds for one image (p50)"),
    drawn("text", { x: 13, y: middle, "text-anchor": "middle", transform: `rotate(-90 13 ${middle})` }, "test top-1 (%)"),
    drawn("path", { class: "step", d: front.map((p, i) => (i ? `H${x(p.ms)}V${y(p.top1)}` : `M${x(p.ms)} ${y(p.top1)}`)).join("") }),
  );
  for (const p of points) {
    if (front.includes(p)) svg.append(drawn("circle", { class: "ring", cx: x(p.ms), cy: y(p.top1), r: 9 }));
    svg.append(mark(p.precision, x(p.ms), y(p.top1)));
  }
  place.replaceChildren(svg);
  const spots = points.map((p) => ({ left: x(p.ms) - 7, right: x(p.ms) + 7, top: y(p.top1) - 7, bottom: y(p.top1) + 7 }));
  const line = front.slice(1).flatMap((p, i) => [
    { left: x(front[i].ms), right: x(p.ms), top: y(front[i].top1), bottom: y(front[i].top1) },
    { left: x(p.ms), right: x(p.ms), top: y(p.top1), bottom: y(front[i].top1) },
  ]);
  const labels = [];
  for (const p of [...front, ...points.filter((each) => !front.includes(each))]) {
    const text = drawn("text", { class: front.includes(p) ? "label strong" : "label" }, p.label);
    svg.append(text);
    const own = spots[points.indexOf(p)];
    const found = freePlace(own, text.getComputedTextLength(), inner, spots, labels, line);
    if (!found) text.remove(); // it is in the table
    else {
      labels.push(found);
      text.setAttribute("x", found.left + 2);
      text.setAttribute("y", found.bottom - 4);
      if (found.isFar) svg.insertBefore(leader(x(p.ms), y(p.top1), found), svg.querySelector(".step").nextSibling);
    }
  }
}

const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
const gap = (a, b) => Math.hypot(Math.max(a.left - b.right, b.left - a.right, 0), Math.max(a.top - b.bottom, b.top - a.bottom, 0));

/** The best box for a label of a point: on no point and no other label, near its own point and not near another, off the line. */
function freePlace(own, width, inner, spots, labels, line) {
  let best = null;
  const x = (own.left + own.right) / 2;
  const y = (own.top + own.bottom) / 2;
  for (const distance of DISTANCES) {
    for (const [dx, dy] of SIDES) {
      const left = dx ? x + dx * distance - (dx < 0 ? width : 0) : x - width / 2;
      const top = dy ? y + dy * distance - (dy < 0 ? LINE : 0) : y - LINE / 2;
      const box = { left: left - 2, right: left + width + 2, top: top - 1, bottom: top + LINE + 1, isFar: distance > 17 };
      const isInside = box.left >= inner.left && box.right <= inner.right && box.top >= inner.top && box.bottom <= inner.bottom;
      if (!isInside || [...spots, ...labels].some((other) => overlap(box, other))) continue;
      const misleads = spots.some((other) => other !== own && gap(box, other) < gap(box, own) + 2);
      const cost = distance + (misleads ? 25 : 0) + (line.some((piece) => overlap(box, piece)) ? 12 : 0);
      if (!best || cost < best.cost) best = { ...box, cost };
    }
  }
  return best;
}

function leader(x, y, box) {
  const end = { x: Math.min(Math.max(x, box.left), box.right), y: Math.min(Math.max(y, box.top), box.bottom) };
  return drawn("line", { class: "leader", x1: x, y1: y, x2: end.x, y2: end.y });
}

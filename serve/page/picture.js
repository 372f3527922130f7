"use strict";
// A picture comes in by hand, by drop or by paste; every branch says what it sees, one after the other, so that no time is shared.

const KINDS = ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif"];
const KNOWN = "JPEG, PNG, WebP, BMP or GIF";
const TOP = 5;
const SMALL = 100; // pixels; below it every pixel is shown as a square

let current = null; // the picture that is asked about
let running = null; // stops the questions about the one before

const tell = (sentence) => (byId("told").textContent = sentence);

/** Takes the first picture of `files`, or says why there is none. */
function take(files, how) {
  if (!files.length) return tell(`There is no picture in what was ${how}. It takes ${KNOWN} files.`);
  const file = [...files].find((each) => KINDS.includes(each.type) || each.type === "") ?? null;
  if (!file) return tell(`${files[0].name || "This"} is no picture that can be read (${files[0].type}). It takes ${KNOWN} files.`);
  return askAll(file, files.length > 1 ? `Of ${files.length} files the first picture is taken. ` : "");
}

function preview(file) {
  const picture = byId("picture");
  URL.revokeObjectURL(picture.src);
  const name = file.name || "a pasted picture";
  picture.onload = () => {
    picture.hidden = false;
    picture.className = Math.max(picture.naturalWidth, picture.naturalHeight) < SMALL ? "small" : "";
    byId("caption").textContent = `${name}, ${picture.naturalWidth} × ${picture.naturalHeight} pixels, ${Math.ceil(file.size / 1000).toLocaleString("en")} kB`;
  };
  picture.onerror = () => {
    picture.hidden = true;
    byId("caption").textContent = `${name}: this browser cannot show it`;
  };
  picture.alt = `The picture that the branches are asked about: ${name}`;
  picture.src = URL.createObjectURL(file);
  byId("preview").hidden = false;
}

/** Ask every branch about a picture. */
async function askAll(file, note = "") {
  running?.abort();
  const mine = (running = new AbortController());
  current = file;
  byId("again").hidden = true;
  preview(file);
  await shown;
  if (!cards.length) await showBranches();
  if (mine.signal.aborted) return;
  if (!cards.length) return finish(mine, "The server did not say what it serves.", true);
  const places = cards.map((card) => element("article", { "aria-label": labelOf(card) }, element("h3", {}, labelOf(card)), element("p", { class: "note" }, "waiting …")));
  byId("results").setAttribute("aria-busy", "true");
  byId("results").replaceChildren(...places);
  tell(`${note}Asking ${cards.length} ${cards.length === 1 ? "branch" : "branches"} about the picture …`);
  const answers = [];
  const refusals = new Set();
  for (const [i, card] of cards.entries()) {
    try {
      const began = performance.now();
      const found = await classify(card, file, mine.signal, (seconds) => tell(`The server is busy; it is asked again in ${seconds} s.`));
      places[i].replaceChildren(...answerOf(card, found, performance.now() - began));
      answers.push(found.predictions[0].classes[0]);
    } catch (error) {
      if (mine.signal.aborted) return;
      const words = error instanceof Problem ? error.message : "The answer of the server cannot be read.";
      places[i].replaceChildren(element("h3", {}, labelOf(card)), element("p", { class: "problem" }, words));
      refusals.add(words);
    }
  }
  const isTheSameOfAll = !answers.length && refusals.size === 1;
  if (isTheSameOfAll) byId("results").replaceChildren();
  finish(mine, note + (isTheSameOfAll ? [...refusals][0] : summary(answers)), answers.length < cards.length);
}

function finish(mine, sentence, canBeTriedAgain) {
  if (mine.signal.aborted) return;
  byId("results").removeAttribute("aria-busy");
  byId("again").hidden = !canBeTriedAgain;
  tell(sentence);
}

function classify(card, file, signal, waits) {
  const options = { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" }, signal };
  return ask(`v2/models/${encodeURIComponent(card.name)}/classify?top=${TOP}`, options, waits);
}

/** The classes of one branch with their bars, and the time that it took. */
function answerOf(card, found, roundTrip) {
  const prediction = found.predictions[0];
  const lines = prediction.classes.map((each) => {
    const bar = element("span");
    bar.style.width = `${100 * each.probability}%`;
    const share = element("span", { class: "share" }, `${(100 * each.probability).toFixed(1)} %`);
    return element("li", {}, element("span", { class: "class" }, each.class), share, element("span", { class: "track", "aria-hidden": "true" }, bar));
  });
  const exit = prediction.exit == null ? "" : `, left at exit ${prediction.exit}`;
  const times = `decoding ${found.decode_ms.toFixed(1)} ms, computing ${found.infer_ms.toFixed(1)} ms, there and back ${roundTrip.toFixed(1)} ms`;
  return [element("h3", {}, labelOf(card) + exit), element("ol", {}, ...lines), element("p", { class: "note times" }, times)];
}

/** What most of the branches say. */
function summary(answers) {
  if (!answers.length) return "No branch could answer; below is why.";
  const votes = new Map();
  for (const { class: name } of answers) votes.set(name, (votes.get(name) ?? 0) + 1);
  const [name, count] = [...votes].reduce((best, each) => (each[1] > best[1] ? each : best));
  const who = answers.length === cards.length ? `All ${cards.length} branches answered` : `${answers.length} of ${cards.length} branches answered`;
  return cards.length === 1 ? `It is most likely: ${name}.` : `${who}. ${count} of them say first: ${name}.`;
}

byId("file").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  if (files.length) take(files, "chosen");
});
byId("again").addEventListener("click", () => askAll(current));
document.addEventListener("paste", (event) => {
  const isTyping = event.target instanceof HTMLInputElement && event.target.type === "password";
  if (!isTyping) take(event.clipboardData?.files ?? [], "pasted");
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("zone").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("zone").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("zone").classList.remove("over");
  take(event.dataTransfer?.files ?? [], "dropped");
});

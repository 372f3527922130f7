"use strict";
// How this page asks its server: the token, patience where it is busy, and every refusal in words.

const TRIES = 4; // of a request, where the server is busy
const LONGEST_BREAK = 10; // seconds between two of them
const WORDS = {
  400: "The server cannot read this",
  404: "This is not served any more",
  408: "The picture came too slowly",
  413: "This is too large for the server",
  415: "This is no picture that the server reads",
  429: "The server has too many requests of yours under way",
  500: "The model failed on this picture",
  503: "The server is busy",
  504: "The answer took too long",
};
const LATER = [429, 503];

let token = ""; // in memory only: it is gone with the page
let tokenIsComing = null;

/** What went wrong, in a sentence for people. */
class Problem extends Error {}

const byId = (id) => document.getElementById(id);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** An element; what is text goes in as text, whatever it holds. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The document that the server answers. `waits(seconds)` is told where it is busy and asked again. Throws a Problem. */
async function ask(path, options = {}, waits = () => {}) {
  for (let turn = 1; ; turn++) {
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer. Is it still running, and is this machine connected?");
    }
    if (answer.ok) return answer.json();
    if (answer.status === 401) {
      await newToken(token !== "");
      turn = 0;
      continue;
    }
    if (LATER.includes(answer.status) && turn < TRIES) {
      const seconds = Math.min(Number(answer.headers.get("Retry-After")) || 1, LONGEST_BREAK);
      waits(seconds);
      await wait(seconds);
      if (options.signal?.aborted) throw new DOMException("another picture was chosen", "AbortError");
      continue;
    }
    throw new Problem(await inWords(answer));
  }
}

/** A refusal: ours for its status, and what the server says of it. */
async function inWords(answer) {
  const said = await answer.json().then((document) => String(document.error ?? ""), () => "");
  const words = WORDS[answer.status] ?? `The server answers with status ${answer.status}`;
  return said ? `${words}: ${said}.` : `${words}.`;
}

/** Comes back as soon as a person has typed a token. */
function newToken(wasWrong) {
  tokenIsComing ??= new Promise((done) => {
    const form = byId("token-form");
    byId("token-note").textContent = wasWrong ? "The server does not take this token." : "This server asks for a token. It is kept until the page is closed.";
    form.hidden = false;
    byId("token").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      token = byId("token").value.trim();
      byId("token").value = "";
      form.hidden = true;
      tokenIsComing = null;
      done();
    };
  });
  return tokenIsComing;
}

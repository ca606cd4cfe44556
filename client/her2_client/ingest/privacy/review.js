"use strict";
// Decisions live in `decided` (card -> {word, part, of}; `of` is the card whose frame is used, if
// another's) and nowhere else; everything shown and the file to save are drawn from it.

const SMALLEST_DRAG = 6; // pixels of the screen; less is a click
const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
const decided = new Map();
const uses = []; // of frames for other pictures, the latest last: their decision
let saved = true;

const shown = () => cards.filter((card) => !card.hidden);
const open = () => shown().filter((card) => !decided.has(card));
const sizeOf = (card) => [Number(card.dataset.columns), Number(card.dataset.rows)];

function valid(part, card) {
  const [columns, rows] = sizeOf(card);
  const [x0, y0, x1, y1] = part;
  return part.every(Number.isInteger) && 0 <= x0 && x0 < x1 && x1 <= columns
    && 0 <= y0 && y0 < y1 && y1 <= rows;
}

function decide(some, word, part = null, of = null) {
  const decision = { word, part, of };
  for (const card of some) {
    if (word === null) decided.delete(card);
    else decided.set(card, decision);
    drawCard(card);
  }
  saved = false;
  drawBar();
  return decision;
}

// --- one frame for many ---

function touches(part, [x0, y0, x1, y1]) {
  return x0 < part[2] && part[0] < x1 && y0 < part[3] && part[1] < y1;
}

// The undecided pictures of the card's size and scanner: [those without text in its frame, others].
function alike(card, part, undecided = open()) {
  const same = undecided.filter((other) => other.dataset.group === card.dataset.group);
  const text = (other) => JSON.parse(other.dataset.found).some((found) => touches(part, found));
  return [same.filter((other) => !text(other)), same.filter(text)];
}

function bearing(decision) {
  return cards.filter((card) => decided.get(card) === decision);
}

function drawFrames() {
  const undecided = open();
  for (const card of cards) {
    const part = decided.get(card)?.part;
    const [free, left] = part ? alike(card, part, undecided) : [[], []];
    card.querySelector(".same").hidden = free.length === 0;
    const button = card.querySelector(".share");
    delete button.dataset.asked;
    const scanner = "scanner" in card.dataset ? " and scanner" : ", scanner not stated";
    button.textContent = `Use this frame for ${free.length} undecided of this size${scanner}`;
    card.querySelector(".left").textContent =
      left.length ? `${left.length} with text within it: one by one` : "";
  }
  while (uses.length > 0 && bearing(uses.at(-1)).length === 0) uses.pop();
  const undo = byId("undo-frame");
  undo.hidden = uses.length === 0;
  if (uses.length > 0) {
    const last = uses.at(-1);
    undo.textContent = `Take back row ${last.of.dataset.row}’s frame from ${bearing(last).length}`;
  }
}

function share(card) {
  const { part } = decided.get(card);
  const [free] = alike(card, part);
  const button = card.querySelector(".share");
  if (!button.dataset.asked) {
    button.dataset.asked = "yes";
    button.textContent = `All ${free.length} looked at? Use the frame`;
    return;
  }
  uses.push(decide(free, "approve", part, card));
  drawFrames();
  card.focus({ preventScroll: true });
}

// --- drawing ---

function drawCard(card) {
  const { word, part, of } = decided.get(card) ?? { word: "", part: null, of: null };
  const state = part ? "part" : word;
  const asking = "asking" in card.dataset;
  card.dataset.state = state;
  card.querySelector(".state").textContent = {
    "": "not decided", approve: "approved, all of it", refuse: "refused",
    part: part ? `approved, from ${part[0]}, ${part[1]} to ${part[2]}, ${part[3]}${of ? `, the frame of row ${of.dataset.row}` : ""}` : "",
  }[state];
  for (const name of ["approve", "part", "refuse"]) {
    const on = state === name || (name === "part" && asking);
    card.querySelector(`.${name}`).setAttribute("aria-pressed", String(on));
  }
  card.querySelector(".corners").hidden = !part && !asking;
  card.querySelector(".picture").classList.toggle("drawing", asking);
  const inputs = card.querySelectorAll(".corners input");
  if (part) inputs.forEach((input, i) => { input.value = part[i]; });
  drawKeep(card, part);
}

function drawKeep(card, part) {
  const keep = card.querySelector(".keep");
  keep.hidden = !part;
  if (!part) return;
  const [columns, rows] = sizeOf(card);
  keep.style.left = `${100 * part[0] / columns}%`;
  keep.style.top = `${100 * part[1] / rows}%`;
  keep.style.width = `${100 * (part[2] - part[0]) / columns}%`;
  keep.style.height = `${100 * (part[3] - part[1]) / rows}%`;
}

// What the text search marked is approved one by one.
function withoutText() {
  return open().filter((card) => !card.querySelector(".found"));
}

function drawBar() {
  const count = open().length;
  byId("count").textContent = `${decided.size} of ${cards.length} decided`;
  const plain = withoutText().length;
  byId("approve-all").textContent = `Approve ${plain} undecided without text`;
  delete byId("approve-all").dataset.asked;
  byId("refuse-all").textContent = `Refuse ${count} undecided`;
  byId("approve-all").disabled = plain === 0;
  byId("refuse-all").disabled = count === 0;
  const ready = decided.size > 0 && byId("by").value.trim() !== "";
  drawFrames();
  const save = byId("save");
  save.setAttribute("aria-disabled", String(!ready));
  if (ready) save.href = `data:text/csv;charset=utf-8,${encodeURIComponent(table())}`;
  else save.removeAttribute("href");
}

function filter() {
  const reason = byId("reason").value;
  const show = byId("show").value;
  for (const card of cards) {
    const done = decided.has(card);
    card.hidden = (reason !== "" && card.dataset.reason !== reason)
      || (show === "open" && done) || (show === "done" && !done);
  }
  drawBar();
}

// --- the file ---

function cell(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const by = cell(byId("by").value.trim());
  const lines = ["picture,decision,x0,y0,x1,y1,by"];
  for (const card of cards) {
    const decision = decided.get(card);
    if (!decision) continue;
    const corners = decision.part ?? ["", "", "", ""];
    lines.push([card.dataset.picture, decision.word, ...corners, by].join(","));
  }
  return `${lines.join("\n")}\n`;
}

// --- the pointer ---

function partOf(card, from, to) {
  const box = card.querySelector("img").getBoundingClientRect();
  const [columns, rows] = sizeOf(card);
  const at = (value, low, length, pixels) =>
    Math.min(Math.max((value - low) / length, 0), 1) * pixels;
  const x = [from.x, to.x].map((v) => at(v, box.left, box.width, columns)).sort((a, b) => a - b);
  const y = [from.y, to.y].map((v) => at(v, box.top, box.height, rows)).sort((a, b) => a - b);
  // Inwards: a frame drawn beside a name must not let its edge in.
  return [Math.ceil(x[0]), Math.ceil(y[0]), Math.floor(x[1]), Math.floor(y[1])];
}

for (const card of cards) {
  const picture = card.querySelector(".picture");
  let from = null;
  picture.addEventListener("pointerdown", (event) => {
    const drawing = picture.classList.contains("drawing");
    if (event.button !== 0 || (event.pointerType === "touch" && !drawing)) return;
    from = { x: event.clientX, y: event.clientY };
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    if (!from) return;
    const part = partOf(card, from, { x: event.clientX, y: event.clientY });
    if (valid(part, card)) drawKeep(card, part);
  });
  picture.addEventListener("pointerup", (event) => {
    if (!from) return;
    const to = { x: event.clientX, y: event.clientY };
    const far = Math.abs(to.x - from.x) >= SMALLEST_DRAG && Math.abs(to.y - from.y) >= SMALLEST_DRAG;
    const part = partOf(card, from, to);
    from = null;
    delete card.dataset.asking;
    if (far && valid(part, card)) decide([card], "approve", part);
    else drawCard(card);
    card.focus({ preventScroll: true });
  });
  picture.addEventListener("pointercancel", () => { from = null; drawCard(card); });

  const press = (name, action) => card.querySelector(name).addEventListener("click", action);
  const toggle = (word) => {
    delete card.dataset.asking;
    decide([card], card.dataset.state === word ? null : word);
  };
  press(".approve", () => toggle("approve"));
  press(".refuse", () => toggle("refuse"));
  press(".share", () => share(card));
  card.querySelector(".share").addEventListener("blur", drawFrames);
  press(".part", () => {
    if ("asking" in card.dataset || card.dataset.state === "part") {
      delete card.dataset.asking;
      decide([card], null);
    } else {
      card.dataset.asking = "";
      decide([card], null);
    }
  });
  card.querySelector(".corners").addEventListener("change", () => {
    const inputs = [...card.querySelectorAll(".corners input")];
    const part = inputs.map((input) => (input.value === "" ? NaN : Number(input.value)));
    if (valid(part, card)) {
      delete card.dataset.asking;
      decide([card], "approve", part);
    } else {
      card.dataset.asking = "";
      decide([card], null);
    }
  });
  card.addEventListener("focusin", () => {
    for (const other of cards) other.tabIndex = other === card ? 0 : -1;
  });
}

// --- the keyboard ---

function step(card, key) {
  const list = shown();
  const at = list.indexOf(card);
  if (key === "ArrowLeft") return list[at - 1];
  if (key === "ArrowRight") return list[at + 1];
  // Up and down: the nearest card of the next line, as laid out now.
  const here = card.getBoundingClientRect();
  const down = key === "ArrowDown";
  const candidates = list.filter((other) => {
    const { top } = other.getBoundingClientRect();
    return down ? top > here.top + 1 : top < here.top - 1;
  });
  const distance = (other) => {
    const box = other.getBoundingClientRect();
    return 1e4 * Math.abs(box.top - here.top) + Math.abs(box.left - here.left);
  };
  return candidates.sort((a, b) => distance(a) - distance(b))[0];
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select")) return;
  const card = event.target.closest(".card") ?? shown().find((one) => one.tabIndex === 0) ?? shown()[0];
  if (!card) return;
  if (event.key.startsWith("Arrow")) {
    const next = event.target.closest(".card") ? step(card, event.key) : card;
    if (next) {
      next.focus();
      next.scrollIntoView({ block: "nearest" });
      event.preventDefault();
    }
    return;
  }
  const word = { a: "approve", r: "refuse", u: null }[event.key.toLowerCase()];
  if (word === undefined) return;
  delete card.dataset.asking;
  decide([card], word);
  event.preventDefault();
});

// --- the bar ---

byId("bar").addEventListener("submit", (event) => event.preventDefault());
byId("reason").addEventListener("change", filter);
byId("show").addEventListener("change", filter);
byId("size").addEventListener("change", () => {
  byId("sheet").classList.toggle("large", byId("size").value === "large");
});
byId("by").addEventListener("input", () => { saved = false; drawBar(); });
byId("approve-all").addEventListener("click", () => {
  const button = byId("approve-all");
  if (button.dataset.asked) return decide(withoutText(), "approve");
  button.dataset.asked = "yes";
  button.textContent = `All ${withoutText().length} looked at? Approve`;
});
byId("approve-all").addEventListener("blur", drawBar);
byId("refuse-all").addEventListener("click", () => decide(open(), "refuse"));
byId("undo-frame").addEventListener("click", () => {
  const last = uses.at(-1);
  decide(bearing(last), null);
  last.of.focus({ preventScroll: true });
});
byId("save").addEventListener("click", (event) => {
  if (byId("save").hasAttribute("href")) saved = true;
  else {
    event.preventDefault();
    if (byId("by").value.trim() === "") byId("by").focus();
  }
});
window.addEventListener("beforeunload", (event) => {
  if (!saved && decided.size > 0) event.preventDefault();
});
drawBar();

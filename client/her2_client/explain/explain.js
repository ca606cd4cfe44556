"use strict";
// The cards are complete without this script; it orders and hides them and fades the colours.

const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
const score = (card) => Number(card.dataset.score);
const byCase = (a, b) =>
  a.dataset.case.localeCompare(b.dataset.case, "en", { numeric: true });
const orders = {
  case: byCase,
  high: (a, b) => score(b) - score(a) || byCase(a, b),
  low: (a, b) => score(a) - score(b) || byCase(a, b),
};

function arrange() {
  byId("cases").append(...[...cards].sort(orders[byId("order").value]));
}

function filter() {
  const call = byId("call").value;
  for (const card of cards) card.hidden = call !== "" && card.dataset.call !== call;
  const shown = cards.filter((card) => !card.hidden).length;
  byId("count").textContent = `${shown} of ${cards.length} cases`;
}

function fade() {
  document.documentElement.style.setProperty("--shown", byId("colours").value / 100);
}

byId("order").addEventListener("change", arrange);
byId("call").addEventListener("change", filter);
byId("colours").addEventListener("input", fade);
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("tools").hidden = false;
arrange();
filter();
fade();

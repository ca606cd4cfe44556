"use strict";
// The page is complete without this script; it hides modalities and takes the choice to other pages.

const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
const links = [...document.querySelectorAll(".pages a")];

function filter() {
  const modality = byId("modality").value;
  let pictures = 0;
  for (const card of cards) {
    const parts = [...card.querySelectorAll("section")];
    for (const part of parts) {
      part.hidden = modality !== "" && part.dataset.modality !== modality;
      if (!part.hidden) pictures += part.querySelectorAll("img").length;
    }
    card.hidden = parts.every((part) => part.hidden);
  }
  const shown = cards.filter((card) => !card.hidden).length;
  byId("count").textContent = `${shown} of ${cards.length} cases, ${pictures} pictures on this page`;
  for (const link of links) link.hash = modality;
}

byId("bar").addEventListener("submit", (event) => event.preventDefault());
byId("modality").addEventListener("change", filter);
const choices = [...byId("modality").options].map((option) => option.value);
const chosen = location.hash.slice(1);
if (choices.includes(chosen)) byId("modality").value = chosen;
byId("bar").hidden = false;
filter();

"use strict";

// Figures: each place holds its data as JSON. Colours of text and grid follow the page's.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, raised, accent] = ["ink", "soft", "raised", "accent"].map((name) => style.getPropertyValue(`--${name}`).trim());
  const font = { ...layout.font, color: ink };
  const hoverlabel = { ...layout.hoverlabel, bgcolor: raised, bordercolor: soft, font: { color: ink } };
  const modebar = { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: accent };
  return { ...layout, font, hoverlabel, modebar };
}

const figures = [];
for (const place of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(place.querySelector("script").textContent);
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  place.replaceChildren();
  Plotly.newPlot(place, figure.data, themed(figure.layout || {}), options);
  figures.push([place, figure]);
}
dark.addEventListener("change", () => {
  for (const [place, figure] of figures) Plotly.react(place, figure.data, themed(figure.layout || {}));
});

// Tables: a click on a header sorts by it, numbers as numbers; a second click the other way.

function sortKey(cell) {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return /^[-+]?[\d.]/.test(text) && !Number.isNaN(number) ? number : text;
}

function compare(a, b) {
  const numbers = [a, b].map((key) => typeof key === "number");
  if (numbers[0] && numbers[1]) return a - b;
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1; // words after numbers
  return a.localeCompare(b);
}

function sortBy(header) {
  const column = header.cellIndex;
  const body = header.closest("table").tBodies[0];
  const falling = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = Array.from(body.rows).sort((a, b) => compare(sortKey(a.cells[column]), sortKey(b.cells[column])));
  body.append(...(falling ? rows.reverse() : rows));
}

for (const table of document.querySelectorAll("table")) {
  for (const row of table.tBodies[0].rows)
    for (const cell of row.cells) {
      cell.title = cell.textContent;
      if (typeof sortKey(cell) === "number") cell.className = "number";
    }
  for (const header of table.tHead.rows[0].cells) {
    const column = Array.from(table.tBodies[0].rows, (row) => row.cells[header.cellIndex]);
    if (column.some((cell) => cell && cell.className === "number")) header.style.textAlign = "right";
    if (!header.textContent.trim()) continue; // a button without a name says nothing
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(header));
    header.append(button);
  }
}

// A table that goes on to the right fades there.

for (const box of document.querySelectorAll(".table")) {
  const mark = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  box.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(box);
  mark();
}

// Contents: the section being read is marked.

const links = new Map(Array.from(document.querySelectorAll("nav a"), (link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries)
    if (entry.isIntersecting) {
      for (const link of links.values()) link.classList.remove("here");
      links.get(entry.target.id).classList.add("here");
    }
}, { rootMargin: "0px 0px -75% 0px" });
for (const id of links.keys()) watcher.observe(document.getElementById(id));

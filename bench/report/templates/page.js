"use strict";
// Sorting, and the source of a cell beside it. Without this script the page still says everything.

const value = (cell) => {
  if (!("value" in cell.dataset)) return null;
  const number = Number(cell.dataset.value);
  return Number.isNaN(number) ? cell.dataset.value : number;
};

// What has no number goes last, whichever way the rest is sorted.
const compare = (a, b, sign) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "string" || typeof b === "string")
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  return sign * (a - b);
};

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) =>
    header.querySelector("button").addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      for (const other of headers) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const sign = ascending ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
      rows.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...rows.map(([, row]) => row));
      stopAt(body.querySelector("td"));
    }),
  );

  // One stop for the Tab key; the arrow keys go from cell to cell.
  let stop = null;
  const stopAt = (cell) => {
    if (stop) stop.tabIndex = -1;
    stop = cell;
    if (stop) stop.tabIndex = 0;
  };
  for (const cell of body.querySelectorAll("td")) cell.tabIndex = -1;
  stopAt(body.querySelector("td"));
  body.addEventListener("focusin", ({ target }) => target.matches("td") && stopAt(target));
  body.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !event.target.matches("td")) return;
    const row = body.rows[event.target.parentElement.sectionRowIndex + step[0]];
    const next = row && row.cells[event.target.cellIndex + step[1]];
    if (next && next.matches("td")) next.focus();
    event.preventDefault();
  });
}

const tip = document.getElementById("tip");
let over = false; // the pointer may rest on the tip to read or to copy it
let shown = null;
const hide = () => { tip.hidden = true; shown = null; };
const show = (cell) => {
  const source = document.getElementById(cell.getAttribute("aria-describedby"));
  if (!source) return hide();
  tip.textContent = source.textContent;
  tip.hidden = false;
  shown = cell;
  const spot = cell.getBoundingClientRect();
  const left = Math.min(Math.max(8, spot.right - tip.offsetWidth), innerWidth - tip.offsetWidth - 8);
  const above = spot.top - tip.offsetHeight - 2;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 0 ? above : spot.bottom + 2}px`;
};
for (const cell of document.querySelectorAll("td[aria-describedby]")) {
  cell.addEventListener("pointerenter", () => show(cell));
  cell.addEventListener("pointerleave", () => setTimeout(() => over || document.activeElement === cell || hide(), 120));
  cell.addEventListener("focus", () => show(cell));
  cell.addEventListener("blur", hide);
}
tip.addEventListener("pointerenter", () => { over = true; });
tip.addEventListener("pointerleave", () => { over = false; hide(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
document.addEventListener("scroll", () => shown && show(shown), { passive: true, capture: true });

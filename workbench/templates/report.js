"use strict";
// Sorts a table by the column whose heading is clicked, and shows the choice of a select. The page is complete without it.

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
  return text === "" || isNaN(text) ? text : Number(text);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sort(table, heading) {
  const column = heading.cellIndex;
  const rows = [...table.tBodies[0].rows];
  const first = rows.some((row) => typeof valueOf(row, column) === "number") ? "descending" : "ascending";
  const other = first === "descending" ? "ascending" : "descending";
  const direction = heading.getAttribute("aria-sort") === first ? other : first;
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((row, next) => {
    const [a, b] = [valueOf(row, column), valueOf(next, column)];
    if (a === "" || b === "") return (a === "") - (b === ""); // values that were not measured stay last
    return sign * compare(a, b);
  });
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => sort(button.closest("table"), button.closest("th")));
}

for (const select of document.querySelectorAll(".chooser select")) {
  const show = () => {
    for (const variant of document.querySelectorAll(`[data-of="${select.id}"]`)) {
      variant.hidden = variant.dataset.place !== select.value;
    }
  };
  select.addEventListener("change", show);
  show(); // a browser may restore the last choice
}

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.dataset.closed = "";
    details.open = true;
  }
});

window.addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-closed]")) {
    details.open = false;
    delete details.dataset.closed;
  }
});

"use strict";
// Sorts a table by the column whose heading is pressed, and shows what a select asks for. The page is whole without it.

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
  return text === "" || isNaN(text) ? text : Number(text);
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other));
}

function sort(table, heading) {
  const column = heading.cellIndex;
  const rows = [...table.tBodies[0].rows];
  const first = rows.some((row) => typeof valueOf(row, column) === "number") ? "descending" : "ascending";
  const other = first === "descending" ? "ascending" : "descending";
  const direction = heading.getAttribute("aria-sort") === first ? other : first;
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    const [one, two] = [valueOf(a, column), valueOf(b, column)];
    if (one === "" || two === "") return (one === "") - (two === ""); // what was not measured stays below
    return sign * compare(one, two);
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
  show(); // a browser may remember the last choice
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

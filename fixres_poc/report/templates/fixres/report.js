"use strict";
// Adds to the pages what a reader may do with them; without it every table stands as it was written.

const make = (kind, properties, ...children) => {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
};
const text = (row, column) => row.cells[column].textContent.trim();
const number = (row, column) => parseFloat(text(row, column).replace(/^[<+]|,/g, ""));
const rows = (table) => [...table.tBodies[0].rows];

function sortBy(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const down = header.ariaSort === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => (isNaN(number(row, column)) ? text(row, column) : number(row, column));
  const missing = (value) => value === "" || value === "n/a" || value === "\u2013";
  const compare = (first, second) => {
    const [a, b] = [key(first), key(second)];
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b));
    return down ? -order : order;
  };
  table.tBodies[0].append(...rows(table).sort(compare));
}

function addSorting(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = make("button", { type: "button", onclick: () => sortBy(table, column) });
    button.setAttribute("aria-label", `sort by ${header.textContent}`);
    header.append(button);
  });
}

function addFilter(table) {
  if (rows(table).length <= 10) return;
  const input = make("input", { type: "search", placeholder: "such as 96 160 head" });
  const count = make("output", {});
  input.oninput = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (cell, word) => (/^\d+$/.test(word) ? cell === word : cell.includes(word));
    for (const row of rows(table)) {
      const cells = [...row.cells].map((cell) => cell.textContent.trim().toLowerCase());
      row.hidden = !words.every((word) => cells.some((cell) => fits(cell, word)));
    }
    const shown = rows(table).filter((row) => !row.hidden).length;
    count.value = `${shown} of ${rows(table).length} rows`;
  };
  table.parentElement.before(make("p", { className: "control" }, make("label", {}, "Rows with ", input), " ", count));
  input.oninput();
}

function addLimits(table) {
  const column = (name) => [...table.tHead.rows[0].cells].findIndex((header) => header.textContent.trim() === name);
  const [speed, flops, accuracy, allowed] = ["images/s", "GFLOP/image", "val top-1 %", "allowed"].map(column);
  const recommended = rows(table).some((row) => text(row, 0) === "use");
  const verb = recommended ? "Use" : "Cheapest within its error, not recommended:";
  const cheapestFirst = rows(table); // as the report orders them, however a reader sorts
  const box = () => make("input", { type: "number", min: "0", step: "any" });
  const [fastest, cheapest, answer] = [box(), box(), make("output", { className: "answer" })];
  const choose = () => {
    const [least, most] = [fastest.valueAsNumber, cheapest.valueAsNumber];
    const fits = (row) => !(number(row, flops) > most) && (isNaN(least) || number(row, speed) >= least);
    const eligible = cheapestFirst.filter(fits);
    const top = Math.max(...eligible.map((row) => number(row, accuracy)));
    const best = eligible.find((row) => number(row, accuracy) >= top - number(row, allowed) - 1e-9);
    for (const row of rows(table)) row.classList.toggle("picked", row === best);
    const said = (name) => text(best, column(name));
    answer.value = best
      ? `${verb} ${said("arm")}: ${said("test top-1 %")} % right on test (${said("95 % interval")}), `
        + `${said("GFLOP/image")} GFLOP per image.`
      : "No pair of this sweep is as cheap as that; a smaller test resolution may be.";
  };
  fastest.oninput = cheapest.oninput = choose;
  const speeds = speed < 0 ? [] : [make("label", {}, "At least ", fastest, " images/s"), " "];
  table.parentElement.before(make("div", { className: "control" }, ...speeds,
    make("label", {}, "At most ", cheapest, " GFLOP per image"), answer));
  choose();
}

// Boxes that scroll are reached by keyboard, and only those.
function markScrolling() {
  for (const box of document.querySelectorAll(".scroll, .figure, pre")) {
    if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "more by scrolling");
    } else box.removeAttribute("tabindex");
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  addSorting(table);
  addFilter(table);
}
document.querySelectorAll("table.frontier").forEach(addLimits);
addEventListener("resize", markScrolling);
document.addEventListener("toggle", markScrolling, true);
markScrolling();

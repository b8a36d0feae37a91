"use strict";
// A board holds cells (of a table, or tokens of a text); one of them is in the order of the Tab key, the arrows move it.
for (const board of document.querySelectorAll(".board")) {
  const cells = [...board.querySelectorAll("[tabindex]")];
  const output = board.querySelector("output");
  const width = board.querySelector("tbody tr")?.querySelectorAll("td").length ?? 1;
  const line = board.querySelector("table") ? width : 0; // how far up and down lead; texts have no lines

  const say = (cell) => {
    if (cell.dataset.says !== undefined) {
      output.textContent = `“${cell.textContent}”: ${cell.dataset.says}`;
      return;
    }
    const layer = cell.parentElement.cells[0].textContent;
    const step = board.querySelector("thead tr").cells[cell.cellIndex].textContent;
    const value = cell.textContent;
    const sense = value.startsWith("−") ? board.dataset.below : value.startsWith("+") ? board.dataset.above : "";
    output.textContent = `${layer}, step ${step}: ${value}${sense && ` (${sense})`}`;
  };

  const go = (cell) => {
    board.querySelector("[tabindex='0']").tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  };

  board.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("[tabindex]");
    if (cell) say(cell);
  });
  board.addEventListener("focusin", (event) => say(event.target));
  board.addEventListener("click", (event) => {
    const cell = event.target.closest("[tabindex]");
    if (cell) go(cell);
  });
  board.addEventListener("keydown", (event) => {
    const at = cells.indexOf(event.target);
    const column = line ? at % line : at;
    const last = line ? line - 1 : cells.length - 1;
    const moves = {
      ArrowRight: column < last ? at + 1 : at,
      ArrowLeft: column > 0 ? at - 1 : at,
      ArrowDown: line ? at + line : at + 1,
      ArrowUp: line ? at - line : at - 1,
      Home: at - column,
      End: at - column + last,
    };
    if (at < 0 || !(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const next = cells[moves[event.key]];
    if (next) go(next);
  });
}

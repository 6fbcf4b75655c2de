"use strict";
// Everything here adds to a page that can be read without it: sorting, saving figures, the theme.

function key(cell, text) {
  const value = cell.textContent.trim();
  if (text) return value.toLowerCase();
  if (value.startsWith("∞")) return Infinity;
  const number = parseFloat(value.replace(/,(?=\d{3})/g, ""));
  return Number.isNaN(number) ? -Infinity : number;
}

function sortBy(table, column) {
  const heads = table.tHead.rows[0].cells, body = table.tBodies[0];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  const text = heads[column].classList.contains("text");
  const rows = Array.from(body.rows, (row) => [key(row.cells[column], text), row]);
  rows.sort(([a], [b]) => {
    const order = text ? a.localeCompare(b, undefined, { numeric: true }) : a < b ? -1 : a > b ? 1 : 0;
    return down ? -order : order;
  });
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
}

for (const tools of document.querySelectorAll(".tools")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "SVG";
  button.setAttribute("aria-label", `Save the figure ${tools.dataset.name} as SVG`);
  button.addEventListener("click", () => {
    const svg = tools.parentElement.querySelector("svg");
    const text = new XMLSerializer().serializeToString(svg);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${tools.dataset.name}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  tools.prepend(button);
}

// Only what scrolls needs to be reached by the keyboard.
for (const region of document.querySelectorAll(".wide")) {
  if (region.scrollWidth <= region.clientWidth && !region.closest("details")) {
    region.removeAttribute("tabindex");
  }
}

// What is folded is printed too, where the style sheet alone cannot show it.
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.dataset.folded = "";
    one.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("details[data-folded]")) {
    delete one.dataset.folded;
    one.open = false;
  }
});

const root = document.documentElement;
const toggle = document.createElement("button");
function dark() {
  return root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
}
function name() {
  toggle.textContent = dark() ? "Light" : "Dark";
  toggle.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
}
toggle.type = "button";
toggle.className = "toggle";
toggle.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  name();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
name();
document.querySelector("header").append(toggle);

"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const specs = JSON.parse(document.getElementById("specs").textContent);
const views = {};

async function draw(place) {
  const name = place.dataset.chart;
  const spec = { ...specs[name], datasets: { ...specs[name].datasets, rows: data[name] } };
  const options = { mode: "vega-lite", renderer: "svg", actions: false };
  views[name] = (await window.vegaEmbed(place, spec, options)).view;
}

function csv(rows) {
  const names = [...new Set(rows.flatMap(Object.keys))];
  const field = (value) => {
    const text = value === null || value === undefined ? "" : Array.isArray(value) ? value.join(" ") : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(field).join(",")).join("\n") + "\n";
}

async function save({ save: kind, of: name }) {
  const [text, type] = kind === "svg" ? [await views[name].toSVG(), "image/svg+xml"] : [csv(data[name]), "text/csv"];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = `${name}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function sort(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  // Numbers are first looked at from the best downwards, words from the beginning of the alphabet.
  const first = header.classList.contains("number") && column > 0 ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  table.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const numeric = [...table.tBodies].flatMap((body) => [...body.rows]).every((row) => !isNaN(Number(key(row))));
  const compare = (a, b) => (numeric ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b)));
  for (const body of table.tBodies) {
    body.append(...[...body.rows].sort((a, b) => (order === "ascending" ? compare(a, b) : compare(b, a))));
  }
}

document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => save(button.dataset)));
document.querySelectorAll(".sortable thead button").forEach((button) =>
  button.addEventListener("click", () => sort(button.closest("th"))),
);
document.querySelectorAll("[data-shots]").forEach((select) =>
  select.addEventListener("change", () => {
    for (const body of document.getElementById(select.dataset.shots).tBodies) {
      body.hidden = body.dataset.shot !== select.value;
    }
  }),
);
Promise.all([...document.querySelectorAll("[data-chart]")].map(draw)).then(() => {
  document.documentElement.dataset.drawn = String(Object.keys(views).length);
});

"use strict";
// Tables: a click on a head sorts, a text filters. Rows without a value stay last.
for (const box of document.querySelectorAll(".table")) {
  const body = box.querySelector("tbody"), rows = [...body.rows], heads = [...box.querySelectorAll("thead th")];
  const value = (row, column) => row.cells[column].dataset.value ?? "";
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const before = head.ariaSort;
    const falls = before === "none" ? head.dataset.first === "descending" : before === "ascending";
    const numbers = head.dataset.kind === "number", sign = falls ? -1 : 1;
    heads.forEach((other) => { if (other.ariaSort) other.ariaSort = "none"; });
    head.ariaSort = falls ? "descending" : "ascending";
    rows.sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (numbers ? a - b : a.localeCompare(b, "en", {numeric: true}));
    });
    body.append(...rows);
  }));
  const filter = () => {
    const words = (box.querySelector("input[type=search]")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const group = box.querySelector("select")?.value ?? "";
    const part = document.querySelector("input[name=case]:checked")?.value ?? "";
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!group || row.dataset.group === group);
      row.hidden = !fits || Boolean(part && row.dataset.case && row.dataset.case !== part);
      shown += !row.hidden;
    }
    const count = box.querySelector("output");
    if (count) count.value = shown === rows.length ? `${shown} row${shown === 1 ? "" : "s"}` : `${shown} of ${rows.length} rows`;
  };
  box.querySelectorAll("input, select").forEach((field) => field.addEventListener("input", filter));
  document.addEventListener("case", filter);
}
// The switch between cases: what belongs to another case is hidden, and so is a fold with nothing else in it.
const choose = () => {
  const part = document.querySelector("input[name=case]:checked")?.value ?? "";
  for (const each of document.querySelectorAll("[data-of-case]")) each.hidden = Boolean(part && each.dataset.ofCase !== part);
  for (const fold of document.querySelectorAll("details:has([data-of-case])")) fold.hidden = !fold.querySelector("[data-of-case]:not([hidden])");
  document.dispatchEvent(new Event("case"));
};
document.querySelectorAll("input[name=case]").forEach((field) => field.addEventListener("input", choose));
choose();
// A link to a folded section opens it.
const unfold = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details")?.setAttribute("open", "");
addEventListener("hashchange", unfold);
unfold();
// Charts: the library and their content are packed, and drawn when they come into sight.
const unpack = async (name) => {
  const packed = Uint8Array.from(atob(document.getElementById(name).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const drawCharts = async () => {
  const [library, content] = [await unpack("library"), JSON.parse(await unpack("charts"))];
  document.head.append(Object.assign(document.createElement("script"), {textContent: library}));
  const drawn = new Map();
  const show = (place) => {
    const {renderers} = drawn.get(place).get_by_id(content[place.dataset.chart].root_id).model;
    for (const button of place.closest("figure, .charts").querySelectorAll(".legend button")) {
      for (const one of renderers) if (one.name === button.dataset.series) one.visible = button.ariaPressed === "true";
    }
  };
  const draw = async (place) => {
    place.replaceChildren();
    drawn.set(place, await Bokeh.embed.embed_item(structuredClone(content[place.dataset.chart]), place));
    show(place);
  };
  document.querySelectorAll(".legend button").forEach((button) => button.addEventListener("click", () => {
    button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
    button.closest("figure, .charts").querySelectorAll(".chart").forEach((place) => drawn.has(place) && show(place));
  }));
  const watch = new IntersectionObserver((seen) => {
    for (const each of seen) if (each.isIntersecting) { watch.unobserve(each.target); draw(each.target); }
  }, {rootMargin: "300px"});
  document.querySelectorAll(".chart").forEach((place) => watch.observe(place));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(draw));
};
if (document.getElementById("charts")) {
  drawCharts().catch((error) => {
    document.querySelectorAll(".chart").forEach((place) => { place.textContent = "Charts need a browser of 2023 or later."; });
    console.error(error);
  });
}

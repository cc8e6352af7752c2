"use strict";
// The page is complete without this: it adds the choice of a theme and tables that can be sorted.
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; });

  const number = (text) => {
    const found = text.match(/^[<>x]?\s*([-+]?[\d,.]+)\s*(us|ms|s)?/);
    if (!found) return null;
    const scale = { us: 1e-6, ms: 1e-3 }[found[2]] ?? 1;
    return parseFloat(found[1].replaceAll(",", "")) * scale * (text.startsWith("x") ? 100 : 1);
  };
  const compare = (one, other) => {
    const [a, b] = [number(one), number(other)];
    if (a !== null && b !== null) return a - b;
    return a === null && b === null ? one.localeCompare(other) : a === null ? 1 : -1;
  };
  for (const table of document.querySelectorAll("table.overview")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const rising = heading.getAttribute("aria-sort") !== "ascending";
        const sign = rising ? 1 : -1;
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => sign * compare(a.cells[column].textContent.trim(), b.cells[column].textContent.trim()));
        table.tBodies[0].append(...rows);
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      });
    });
  }
})();

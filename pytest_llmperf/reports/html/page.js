"use strict";
// The page is complete without this: it adds the choice of a theme, folding all at once, and tables that can be sorted.
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; });

  const measurements = [...document.querySelectorAll(".measurement > details")];
  const fold = document.getElementById("fold");
  const allOpen = () => measurements.every((one) => one.open);
  const named = () => { fold.textContent = allOpen() ? "Fold all" : "Unfold all"; };
  fold.hidden = measurements.length < 2;
  fold.addEventListener("click", () => {
    const open = !allOpen();
    measurements.forEach((one) => { one.open = open; });
  });
  measurements.forEach((one) => one.addEventListener("toggle", named));
  named();

  // A link into what is folded unfolds it; on paper nothing is folded.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const within = target && target.closest(".measurement > details");
    if (within && !within.open) { within.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  unfold();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = measurements.filter((one) => !one.open);
    folded.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));

  // What scrolls sideways can be reached by the keyboard, and only that. All is measured before anything is changed,
  // and once however many are unfolded at a time: else each would have the whole page laid out anew. What is folded
  // is not asked: the answer would lay out what the browser has left out so far.
  let awaited = 0;
  const reach = () => {
    awaited = 0;
    const shown = [...document.querySelectorAll(".scroll")].filter((box) => !box.closest("details:not([open])"));
    for (const [box, scrolls] of shown.map((one) => [one, one.scrollWidth > one.clientWidth])) {
      if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
    }
  };
  const reachable = () => { awaited ||= requestAnimationFrame(reach); };
  addEventListener("resize", reachable);
  document.addEventListener("toggle", reachable, true);
  reachable();

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

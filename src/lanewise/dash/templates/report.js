"use strict";
(() => {
  // Sorting: each decision is one <tbody>, so its evidence travels with it.
  const table = document.querySelector("table.decisions");
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sortBy = (heading, index) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (body) => body.rows[0].cells[index].dataset.key;
    const missing = (body) => key(body) === "—";
    [...table.tBodies]
      .sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * compare(key(a), key(b)))
      .forEach((body) => table.append(body));
  };
  if (table) {
    [...table.tHead.rows[0].cells].forEach((heading, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent.trim();
      button.addEventListener("click", () => sortBy(heading, index));
      heading.replaceChildren(button);
    });
  }

  // Copy buttons exist only where the browser can copy.
  if (navigator.clipboard) {
    for (const source of document.querySelectorAll("[data-copy]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(source.dataset.copy);
        button.textContent = "copied";
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      });
      source.after(" ", button);
    }
  }
})();

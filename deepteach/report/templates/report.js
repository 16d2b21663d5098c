"use strict";
// Column heads become buttons that sort; numbers by value, "-" (unknown) always last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const text = (row) => (row.cells[column] ? row.cells[column].textContent.trim() : "-");
      const known = rows.filter((row) => text(row) !== "-");
      const unknown = rows.filter((row) => text(row) === "-");
      const numeric = known.every((row) => !Number.isNaN(Number.parseFloat(text(row))));
      known.sort((a, b) =>
        numeric
          ? Number.parseFloat(text(a)) - Number.parseFloat(text(b))
          : text(a).localeCompare(text(b)),
      );
      if (down) known.reverse();
      table.tBodies[0].append(...known, ...unknown);
    });
  });
}

"use strict";
(() => {
  const table = document.getElementById("layer-table");
  if (!table) return;
  const bodies = [...table.querySelectorAll("tbody.layer")];
  const first = Number(table.dataset.first);
  const find = document.getElementById("find"), state = document.getElementById("state");
  const shown = document.getElementById("shown"), more = document.querySelector(".more");
  let all = bodies.length <= first;

  const fold = (body, open) => {
    body.querySelector(".detail").hidden = !open;
    body.querySelector(".fold").setAttribute("aria-expanded", String(open));
  };
  const matches = (body) => {
    const text = find.value.trim().toLowerCase(), own = body.dataset.state, wanted = state.value;
    const fits = !wanted || own === wanted || (wanted === "changed" && own !== "kept")
      || (own === "both" && (wanted === "pruned" || wanted === "decomposed"));
    return fits && (!text || body.querySelector(".row").textContent.toLowerCase().includes(text));
  };
  const refresh = () => {
    const found = [...table.tBodies].filter(matches), visible = all ? found : found.slice(0, first);
    for (const body of bodies) { body.hidden = true; body.classList.remove("later"); }
    for (const body of found) body.classList.add("later");
    for (const body of visible) { body.hidden = false; body.classList.remove("later"); }
    shown.textContent = `${visible.length} of ${bodies.length} layers`;
    more.hidden = visible.length === found.length;
    more.firstElementChild.textContent = `Show all ${found.length}`;
  };
  const key = (body, column, numeric) => {
    const cell = body.rows[0].cells[column], value = cell.dataset.key ?? cell.textContent.trim();
    return numeric || column === 0 ? Number(value) : value;
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const sort = () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = heading.dataset.sort === "number";
      bodies.sort((a, b) => {
        const x = key(a, column, numeric), y = key(b, column, numeric);
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
      table.append(...bodies);
      refresh();
    };
    heading.tabIndex = 0;
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
  for (const body of bodies) {
    fold(body, false);
    body.querySelector(".fold").addEventListener("click", () => fold(body, body.querySelector(".detail").hidden));
  }
  find.addEventListener("input", refresh);
  state.addEventListener("change", refresh);
  find.form.addEventListener("submit", (event) => event.preventDefault());
  const eachVisible = (open) => bodies.filter((body) => !body.hidden).forEach((body) => fold(body, open));
  document.getElementById("open-all").addEventListener("click", () => eachVisible(true));
  document.getElementById("close-all").addEventListener("click", () => eachVisible(false));
  document.getElementById("all-rows").addEventListener("click", () => { all = true; refresh(); });
  document.querySelector(".controls").hidden = false;
  refresh();
})();

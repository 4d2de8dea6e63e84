"use strict";
(() => {
  const map = document.getElementById("map");
  const data = document.getElementById("data");
  const dialog = document.getElementById("details");

  function made(tag, text) {
    const node = document.createElement(tag);
    node.textContent = text;
    return node;
  }

  function show(detail) {
    dialog.querySelector("h2").textContent = detail.title;
    const law = dialog.querySelector(".law");
    law.textContent = detail.law;
    law.hidden = !detail.law;
    const sections = detail.sections.map((section) => {
      const part = document.createElement("section");
      const list = document.createElement("dl");
      for (const [name, said] of section.rows) list.append(made("dt", name), made("dd", said));
      part.append(made("h3", section.heading), list);
      return part;
    });
    dialog.querySelector(".sections").replaceChildren(...sections);
    dialog.querySelector(".advice").textContent = detail.advice;
    dialog.showModal();
  }

  if (map && data) {
    const details = JSON.parse(data.textContent);
    const says = document.getElementById("says");
    const rows = [...map.querySelectorAll("tr, .outside")]
      .map((row) => [...row.querySelectorAll("button.cell")])
      .filter((row) => row.length);
    let current = rows[0][0];
    current.tabIndex = 0;

    const said = (event) => {
      const cell = event.target.closest("button.cell");
      if (cell) says.textContent = cell.dataset.label;
    };
    map.addEventListener("mouseover", said);
    map.addEventListener("focusin", (event) => {
      said(event);
      const cell = event.target.closest("button.cell");
      if (!cell) return;
      current.tabIndex = -1;
      current = cell;
      current.tabIndex = 0;
    });
    map.addEventListener("click", (event) => {
      const cell = event.target.closest("button.cell");
      if (cell) show(details[Number(cell.dataset.detail)]);
    });
    map.addEventListener("keydown", (event) => {
      const row = rows.findIndex((cells) => cells.includes(current));
      const column = rows[row].indexOf(current);
      const last = rows[row].length - 1;
      const to = (cells, at) => cells[Math.max(0, Math.min(at, cells.length - 1))];
      const goal = {
        ArrowRight: to(rows[row], column + 1),
        ArrowLeft: to(rows[row], column - 1),
        ArrowDown: to(rows[Math.min(row + 1, rows.length - 1)], column),
        ArrowUp: to(rows[Math.max(row - 1, 0)], column),
        Home: rows[row][0],
        End: rows[row][last],
      }[event.key];
      if (!goal) return;
      event.preventDefault();
      goal.focus();
    });
  }

  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });

  for (const input of document.querySelectorAll("[data-filters]")) {
    const list = document.getElementById(input.dataset.filters);
    const items = [...(list.tBodies ? list.tBodies[0].rows : list.children)];
    const texts = items.map((item) => item.textContent.toLowerCase());
    const most = Number(input.dataset.most);
    const count = input.closest(".filter").querySelector("output");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let fitting = 0;
      items.forEach((item, at) => {
        const fits = wanted.every((word) => texts[at].includes(word));
        item.hidden = !fits || fitting >= most;
        fitting += fits;
      });
      count.textContent = `${Math.min(fitting, most)} of ${fitting} shown`;
    });
  }
})();

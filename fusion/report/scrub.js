"use strict";
for (const film of document.querySelectorAll(".film")) {
  const range = film.querySelector("input[type=range]");
  const frames = film.querySelectorAll(".frame");
  const bars = film.querySelectorAll("[data-values]");
  const cursors = film.querySelectorAll("svg.plot");
  const ring = film.querySelector("input[type=checkbox]");
  const show = () => {
    const at = Number(range.value);
    frames.forEach((frame, n) => frame.classList.toggle("on", n === at));
    for (const bar of bars) {
      const value = bar.dataset.values.split(",")[at];
      bar.querySelector("b").textContent = Number(value).toFixed(2);
      bar.querySelector(".level i").style.width = 100 * value + "%";
    }
    for (const svg of cursors) {
      const box = svg.parentElement.dataset, share = at / (frames.length - 1);
      const x = Number(box.start) + share * (box.end - box.start);
      const line = svg.querySelector(".cursor");
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  };
  range.addEventListener("input", show);
  ring.addEventListener("change", () => film.classList.toggle("rings", ring.checked));
  film.classList.add("live");
  show();
}

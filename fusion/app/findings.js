// `element` is the component's root and stays; what is in it is replaced with every study.
function sortRows(order) {
  element.querySelectorAll(".order button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.order === order)));
  const list = element.querySelector(".findings > .list");
  if (!list) return;
  list.classList.toggle("by-rank", order === "rank");
  const rows = [...list.querySelectorAll(".finding")], titles = [...list.querySelectorAll(".band-title")];
  if (order === "rank") list.append(...titles, ...rows.sort((a, b) => a.dataset.rank - b.dataset.rank));
  else titles.concat(null).forEach((title) => {
    const own = rows.filter((row) => (title ? row.dataset.band === title.dataset.band : row.dataset.band === "none"));
    if (title) title.hidden = !own.length;
    list.append(...(title ? [title] : []), ...own);
  });
}
element.addEventListener("click", (event) => {
  const order = event.target.closest(".order button"), row = event.target.closest(".finding");
  if (order) sortRows((element.dataset.order = order.dataset.order));
  if (!row) return;
  element.querySelectorAll(".finding").forEach((other) => other.setAttribute("aria-pressed", String(other === row)));
  trigger("select", { number: Number(row.dataset.number) });
  if (window.innerWidth < 740) document.querySelector("#viewer")?.scrollIntoView({ behavior: "smooth", block: "start" });
});
watch("value", () => sortRows(element.dataset.order || "rank"));

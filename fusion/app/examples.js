element.addEventListener("click", (event) => {
  const card = event.target.closest("[data-number]");
  if (card) trigger("select", { number: Number(card.dataset.number) });
});

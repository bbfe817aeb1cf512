// `element` is the component's root and stays; what is in it is replaced with every study and every chosen finding.
const mix = () => element.querySelector(".heat-mix");
element.addEventListener("input", (event) => {
  if (event.target !== mix()) return;
  element.dataset.mix = event.target.value;
  element.style.setProperty("--heat", event.target.value / 100);
});
element.addEventListener("change", (event) => {
  if (!event.target.matches(".view-type")) return;
  const chosen = element.querySelector(".viewer").dataset.chosen;
  trigger("select", { view: Number(event.target.dataset.view), type: event.target.value, chosen: chosen ? Number(chosen) : null });
});
watch("value", () => { if (mix() && element.dataset.mix) mix().value = element.dataset.mix; });

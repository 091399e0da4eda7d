// The flow of patches between numbers of clusters: pointing at a cluster highlights its bands and fades the others.

const chart = document.getElementById("flow");
const bands = [...chart.querySelectorAll(".band")];

/** Highlight the bands that start or end at a node; null highlights none. */
function highlight(node) {
  chart.classList.toggle("following", node !== null);
  for (const band of bands) band.classList.toggle("on", node !== null && (band.dataset.start === node || band.dataset.end === node));
}

for (const link of chart.querySelectorAll(".node")) {
  for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => highlight(link.dataset.node));
  for (const event of ["mouseleave", "blur"]) link.addEventListener(event, () => highlight(null));
}
for (const band of bands) {
  band.addEventListener("mouseenter", () => {
    chart.classList.add("following");
    band.classList.add("on");
  });
  band.addEventListener("mouseleave", () => highlight(null));
}

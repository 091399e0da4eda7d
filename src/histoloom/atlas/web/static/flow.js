// Follow a cluster's patches: its bands stay, the others fade.

const picture = document.getElementById("flow");
const bands = [...picture.querySelectorAll(".band")];

function follow(node) {
  picture.classList.toggle("following", node !== null);
  for (const band of bands) band.classList.toggle("on", node !== null && (band.dataset.start === node || band.dataset.end === node));
}

for (const link of picture.querySelectorAll(".node")) {
  for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => follow(link.dataset.node));
  for (const event of ["mouseleave", "blur"]) link.addEventListener(event, () => follow(null));
}
for (const band of bands) {
  band.addEventListener("mouseenter", () => {
    picture.classList.add("following");
    band.classList.add("on");
  });
  band.addEventListener("mouseleave", () => follow(null));
}

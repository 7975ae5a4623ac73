"use strict";
const button = document.querySelector(".theme"), root = document.documentElement;
button.hidden = false;
button.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
const say = (value) => value === null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
for (const plot of document.querySelectorAll(".plot")) {
  const frame = plot.querySelector(".frame"), series = JSON.parse(plot.dataset.series);
  const hair = document.createElement("div"), tip = document.createElement("div");
  hair.className = "hair"; tip.className = "tip"; hair.hidden = tip.hidden = true;
  frame.append(hair, tip);
  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect(), place = 1000 * (event.clientX - box.left) / box.width;
    const nearest = series.map((one) => one.at.reduce((best, at, index) => Math.abs(at - place) < Math.abs(one.at[best] - place) ? index : best, 0));
    const first = nearest.reduce((best, index, k) => Math.abs(series[k].at[index] - place) < Math.abs(series[best].at[nearest[best]] - place) ? k : best, 0);
    const at = series[first].at[nearest[first]] / 10, x = series[first].x[nearest[first]];
    const lines = series.map((one, k) => `${one.name}: ${say(one.y[nearest[k]])}` + (one.x[nearest[k]] === x ? "" : ` (${say(one.x[nearest[k]])})`));
    tip.replaceChildren(...[`${plot.dataset.across} ${say(x)}`, ...lines].map((text) => Object.assign(document.createElement("div"), { textContent: text })));
    hair.hidden = tip.hidden = false;
    hair.style.left = at + "%";
    tip.style.left = at < 50 ? `calc(${at}% + 10px)` : "";
    tip.style.right = at < 50 ? "" : `calc(${100 - at}% + 10px)`;
  });
  frame.addEventListener("pointerleave", () => { hair.hidden = tip.hidden = true; });
}

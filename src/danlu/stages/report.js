"use strict";
const button = document.querySelector(".theme"), root = document.documentElement;
button.hidden = false;
button.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
const say = (value) => value === null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
for (const plot of document.querySelectorAll(".plot")) {
  const frame = plot.querySelector(".frame"), series = JSON.parse(plot.dataset.series), [left, right] = JSON.parse(plot.dataset.box);
  const hair = document.createElement("div"), tip = document.createElement("div");
  hair.className = "hair"; tip.className = "tip"; hair.hidden = tip.hidden = true;
  frame.append(hair, tip);
  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect(), share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const x = left + share * (right - left), lines = [];
    let at = null;
    for (const one of series) {
      let best = 0;
      one.x.forEach((value, index) => { if (Math.abs(value - x) < Math.abs(one.x[best] - x)) best = index; });
      if (at === null || Math.abs(one.x[best] - x) < Math.abs(at - x)) at = one.x[best];
      lines.push([one, best]);
    }
    tip.replaceChildren(...[plot.dataset.across + " " + say(at), ...lines.map(([one, best]) => one.name + ": " + say(one.y[best]) + (one.x[best] === at ? "" : " (" + say(one.x[best]) + ")"))]
      .map((text) => { const line = document.createElement("div"); line.textContent = text; return line; }));
    hair.hidden = tip.hidden = false;
    const place = right > left ? (at - left) / (right - left) : 0.5;
    hair.style.left = 100 * place + "%";
    if (place < 0.5) { tip.style.left = "calc(" + 100 * place + "% + 10px)"; tip.style.right = ""; }
    else { tip.style.right = "calc(" + 100 * (1 - place) + "% + 10px)"; tip.style.left = ""; }
  });
  frame.addEventListener("pointerleave", () => { hair.hidden = tip.hidden = true; });
}

// Points at the nearest mark of a chart, and zooms into a rectangle that is dragged. Without it, titles show.
document.querySelectorAll("svg.chart").forEach(function (chart) {
  var whole = chart.getAttribute("viewBox"), marks = [], start = null;
  chart.querySelectorAll("circle").forEach(function (mark) {
    var title = mark.querySelector("title");
    if (title) { marks.push({ mark: mark, text: title.textContent }); title.remove(); }
  });
  var tip = document.createElement("div");
  tip.className = "tip"; tip.setAttribute("role", "status"); tip.hidden = true;
  chart.parentNode.appendChild(tip);
  var hint = document.createElement("span");
  hint.className = "hint"; hint.textContent = "drag to zoom, double-click for the whole";
  chart.parentNode.querySelector("figcaption").appendChild(hint);
  function place(event) {
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
  }
  function leave() { tip.hidden = true; marks.forEach(function (m) { m.mark.classList.remove("near"); }); }
  chart.addEventListener("pointermove", function (event) {
    var best = null, least = 24;
    marks.forEach(function (m) {
      var box = m.mark.getBoundingClientRect();
      var far = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (far < least) { least = far; best = m; }
    });
    leave();
    if (!best) return;
    best.mark.classList.add("near");
    tip.textContent = best.text; tip.hidden = false;
    var frame = chart.parentNode.getBoundingClientRect();
    var left = Math.min(event.clientX - frame.x + 14, frame.width - tip.offsetWidth);
    tip.style.left = Math.max(0, left) + "px";
    tip.style.top = (event.clientY - frame.y + 16) + "px";
  });
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("pointerdown", function (event) { start = place(event); });
  chart.addEventListener("pointerup", function (event) {
    if (!start) return;
    var end = place(event), wide = Math.abs(end.x - start.x), high = Math.abs(end.y - start.y);
    if (wide > 12 && high > 12)
      chart.setAttribute("viewBox", [Math.min(start.x, end.x), Math.min(start.y, end.y), wide, high].join(" "));
    start = null;
  });
  chart.addEventListener("dblclick", function () { chart.setAttribute("viewBox", whole); });
});

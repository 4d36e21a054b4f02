// Line charts of the figures' data-chart: {series: [{name, color, dashed, points: [[step, epoch, value], ...]}], unit, zero}.
// A legend's entry hides its line; the pointer reads values; the page's choice sets what the x axis counts.
(() => {
  const W = 440, H = 230, LEFT = 48, RIGHT = 12, TOP = 8, BOTTOM = 26;
  const NS = "http://www.w3.org/2000/svg";
  const charts = [];

  function node(name, attributes, parent) {
    const made = document.createElementNS(NS, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(made);
    return made;
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(each => each * power).find(each => each >= rough * .7);
    const found = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) found.push(tick);
    return found;
  }

  function text(value) {
    const size = Math.abs(value);
    if (size && (size < 1e-4 || size >= 1e7)) return value.toExponential(1).replace("e+", "e");
    if (size >= 1e4) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  }

  function draw(chart) {
    const {data, svg, hidden} = chart, at = axis() === "epoch" ? 1 : 0;
    svg.textContent = "";
    const shown = data.series.filter((_, number) => !hidden.has(number));
    const points = shown.flatMap(each => each.points).filter(each => each[at] !== null);
    if (!points.length) return;
    let [x0, x1] = [Math.min(...points.map(p => p[at])), Math.max(...points.map(p => p[at]))];
    let [y0, y1] = [Math.min(...points.map(p => p[2])), Math.max(...points.map(p => p[2]))];
    if (data.zero) y0 = Math.min(0, y0);
    if (x0 === x1) { x0 -= 1; x1 += 1; }
    if (y0 === y1) { const pad = Math.abs(y0) * .1 || 1; y0 -= data.zero && y0 === 0 ? 0 : pad; y1 += pad; }
    const pad = (y1 - y0) * .05;
    y1 += pad; if (!data.zero || y0 < 0) y0 -= pad;
    const x = value => LEFT + (value - x0) / (x1 - x0) * (W - LEFT - RIGHT);
    const y = value => H - BOTTOM - (value - y0) / (y1 - y0) * (H - TOP - BOTTOM);
    for (const tick of ticks(y0, y1, 4)) {
      node("line", {x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick), stroke: "var(--grid)"}, svg);
      node("text", {x: LEFT - 7, y: y(tick) + 4, "text-anchor": "end", fill: "var(--soft)", "font-size": 12}, svg).textContent = text(tick);
    }
    for (const tick of ticks(x0, x1, 6)) {
      node("text", {x: x(tick), y: H - 8, "text-anchor": "middle", fill: "var(--soft)", "font-size": 12}, svg).textContent = text(tick);
    }
    for (const each of shown) {
      const places = each.points.filter(p => p[at] !== null);
      const path = places.map((p, n) => `${n ? "L" : "M"}${x(p[at]).toFixed(1)} ${y(p[2]).toFixed(1)}`).join("");
      node("path", {d: path, fill: "none", stroke: `var(--${each.color})`, "stroke-width": each.dashed ? 1.6 : 2,
                    "stroke-dasharray": each.dashed ? "5 4" : "none", "stroke-linejoin": "round"}, svg);
      if (places.length <= 40 && !each.dashed)
        for (const p of places) node("circle", {cx: x(p[at]), cy: y(p[2]), r: 2.6, fill: `var(--${each.color})`}, svg);
    }
    chart.cursor = node("line", {y1: TOP, y2: H - BOTTOM, stroke: "var(--soft)", "stroke-width": 1, visibility: "hidden"}, svg);
    Object.assign(chart, {x, x0, x1, at, shown});
  }

  function read(chart, event) {
    const box = chart.svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * W;
    const value = chart.x0 + (place - LEFT) / (W - LEFT - RIGHT) * (chart.x1 - chart.x0);
    let nearest = null;
    for (const each of chart.shown) for (const p of each.points)
      if (p[chart.at] !== null && (nearest === null || Math.abs(p[chart.at] - value) < Math.abs(nearest - value))) nearest = p[chart.at];
    if (nearest === null) return;
    const words = chart.shown.map(each => {
      const known = each.points.filter(p => p[chart.at] !== null);
      if (!known.length) return "";
      const p = known.reduce((best, next) => Math.abs(next[chart.at] - nearest) < Math.abs(best[chart.at] - nearest) ? next : best);
      const far = Math.abs(p[chart.at] - nearest) > (chart.x1 - chart.x0) / 20;
      return far ? "" : `${each.name} ${text(p[2])}${chart.data.unit}`;
    }).filter(Boolean);
    chart.cursor.setAttribute("x1", chart.x(nearest));
    chart.cursor.setAttribute("x2", chart.x(nearest));
    chart.cursor.setAttribute("visibility", "visible");
    chart.reading.textContent = `${axis()} ${text(nearest)}: ${words.join(", ")}`;
  }

  function axis() {
    const chosen = document.querySelector("input[name=axis]:checked");
    return chosen ? chosen.value : "epoch";
  }

  for (const figure of document.querySelectorAll("figure.chart")) {
    const chart = {data: JSON.parse(figure.dataset.chart), hidden: new Set()};
    const legend = figure.appendChild(document.createElement("div"));
    legend.className = "legend";
    (chart.data.series.length > 1 ? chart.data.series : []).forEach((each, number) => {
      const entry = legend.appendChild(document.createElement("button"));
      entry.setAttribute("aria-pressed", "true");
      const mark = entry.appendChild(document.createElement("i"));
      mark.style.borderColor = `var(--${each.color})`;
      if (each.dashed) mark.className = "dashed";
      entry.append(each.name);
      entry.onclick = () => {
        chart.hidden.has(number) ? chart.hidden.delete(number) : chart.hidden.add(number);
        entry.setAttribute("aria-pressed", String(!chart.hidden.has(number)));
        draw(chart);
      };
    });
    chart.svg = node("svg", {viewBox: `0 0 ${W} ${H}`, role: "img",
                             "aria-label": figure.querySelector("b").textContent}, figure);
    chart.reading = figure.appendChild(document.createElement("div"));
    chart.reading.className = "reading";
    chart.svg.onpointermove = event => read(chart, event);
    chart.svg.onpointerleave = () => { if (chart.cursor) chart.cursor.setAttribute("visibility", "hidden"); chart.reading.textContent = ""; };
    draw(chart);
    charts.push(chart);
  }
  for (const choice of document.querySelectorAll("input[name=axis]")) choice.onchange = () => charts.forEach(draw);
})();

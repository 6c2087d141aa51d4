"use strict";
// Draws the charts of the overview from the numbers that stand beside the figures.

const charts = {};
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw(id, data) {
  if (charts[id]) {
    charts[id].setData(data);
    return;
  }
  const place = document.getElementById(id);
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const line = { stroke: colour("--accent"), width: 2, fill: colour("--accent-soft"), points: { show: false } };
  const failed = { stroke: colour("--bad"), width: 2, points: { show: false } };
  charts[id] = new uPlot(
    {
      width: place.clientWidth,
      height: 190,
      legend: { show: false },
      cursor: { show: false },
      scales: { y: { range: (_, __, max) => [0, Math.max(max * 1.15, 1)] } },
      axes: [{ ...axis, values: (_, times) => times.map((time) => clock.format(time * 1000)) }, { ...axis, size: 44 }],
      series: [{}, line, ...(data.length > 2 ? [failed] : [])],
    },
    data,
    place,
  );
}

function redraw() {
  const { times, requests, tokens, errors } = JSON.parse(document.querySelector("#live [data-series]").dataset.series);
  // Where nothing has failed, a line would only hide the axis.
  draw("requests", [times, requests, errors.some(Boolean) ? errors : errors.map(() => null)]);
  draw("tokens", [times, tokens]);
}

redraw();
document.addEventListener("htmx:after:swap", redraw);
// A chart has the colours of the moment when it was drawn.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const id of Object.keys(charts)) {
    charts[id].destroy();
    delete charts[id];
  }
  redraw();
});
window.addEventListener("resize", () => {
  for (const [id, chart] of Object.entries(charts)) {
    chart.setSize({ width: document.getElementById(id).clientWidth, height: 190 });
  }
});

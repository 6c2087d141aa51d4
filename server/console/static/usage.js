// Draws the table of days as a chart.

const rows = [...document.querySelectorAll("#days tbody tr")];
const place = document.getElementById("chart");

if (place && rows.length) {
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const DAY = 86400;
  const bars = uPlot.paths.bars({ size: [0.6, 40] });
  const tokens = (name) => rows.map((row) => Number(row.dataset[name]));
  const short = new Intl.NumberFormat("en", { notation: "compact" });
  const total = rows.map((row) => Number(row.dataset.in) + Number(row.dataset.out));
  const width = () => place.clientWidth - 32;
  const times = rows.map((row) => Date.parse(row.dataset.day) / 1000);
  // Half a day at both ends, so that the first and the last bar are whole.
  const span = [times[0] - DAY / 2, times.at(-1) + DAY / 2];
  const draw = () => {
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
    const options = {
      width: width(),
      height: 240,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: { x: { range: () => span }, y: { range: (_, __, to) => [0, to || 1] } },
      axes: [
        { ...axis, incrs: [1, 2, 7, 14, 30, 90, 365].map((days) => days * DAY) },
        { ...axis, size: 60, values: (_, values) => values.map((v) => short.format(v)) },
      ],
      series: [
        { label: "Day", value: "{YYYY}-{MM}-{DD}" },
        // The whole bar is drawn first, then the part of the prompts over it.
        { label: "Tokens in and out", fill: color("--accent"), paths: bars, points: { show: false } },
        { label: "Tokens in", fill: color("--muted"), paths: bars, points: { show: false } },
      ],
    };
    return new uPlot(options, [times, total, tokens("in")], place);
  };
  let chart = draw();
  addEventListener("resize", () => chart.setSize({ width: width(), height: 240 }));
  // A chart has the colours of the moment when it was drawn.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    chart.destroy();
    chart = draw();
  });
}

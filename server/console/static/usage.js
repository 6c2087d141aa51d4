// Draws the table of days as a chart.

const rows = [...document.querySelectorAll("#days tbody tr")];
const place = document.getElementById("chart");

if (place && rows.length) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--muted"), grid: { stroke: color("--line") } };
  const bars = uPlot.paths.bars({ size: [0.6, 40] });
  const tokens = (name) => rows.map((row) => Number(row.dataset[name]));
  const short = new Intl.NumberFormat("en", { notation: "compact" });
  const total = rows.map((row) => Number(row.dataset.in) + Number(row.dataset.out));
  const width = () => place.clientWidth - 32;
  const options = {
    width: width(),
    height: 240,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    // Half a day at both ends, so that the first and the last bar are whole.
    scales: { x: { range: (_, from, to) => [from - 43200, to + 43200] }, y: { range: (_, __, to) => [0, to || 1] } },
    axes: [axis, { ...axis, size: 60, values: (_, values) => values.map((v) => short.format(v)) }],
    series: [
      { label: "Day", value: "{YYYY}-{MM}-{DD}" },
      // The whole bar is drawn first, then the part of the prompts over it.
      { label: "Tokens in and out", fill: color("--accent"), paths: bars, points: { show: false } },
      { label: "Tokens in", fill: color("--muted"), paths: bars, points: { show: false } },
    ],
  };
  const times = rows.map((row) => Date.parse(row.dataset.day) / 1000);
  const chart = new uPlot(options, [times, total, tokens("in")], place);
  addEventListener("resize", () => chart.setSize({ width: width(), height: 240 }));
}

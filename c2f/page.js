"use strict";

// Tables: a click on a column's head sorts by it; numbers from the largest, a second click turns it round. A cell's
// number is the first that stands in it: of "yes, +0.0547 [+0.0501, +0.0593]" the difference.
const firstNumber = /(?<![\w.])[+-]?\d[\d,]*(\.\d+)?/;

function sortBy(table, column, head) {
  const numeric = head.classList.contains("n");
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(firstNumber.exec(text)?.[0].replaceAll(",", ""));
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
    const [p, q] = [number(x), number(y)];
    if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q); // what is no number stands last either way
    return sign * (p - q);
  });
  table.tBodies[0].append(...rows);
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column, head));
    head.append(button);
  });
}

// The plot: what is chosen stands in the page's address too, as #dataset=...&metric=...&view=...&method=...
const data = JSON.parse(document.getElementById("points").textContent);
const choices = ["dataset", "metric", "view", "method"].map((name) => document.getElementById(name));
const plot = document.getElementById("plot");
const narrow = () => plot.clientWidth < 640;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const chosen = () => Object.fromEntries(choices.map((select) => [select.id, select.value]));

function seen(hex) {
  // The colours of the figures are made for white paper: on black they are mixed with white.
  if (!dark.matches) return hex;
  const parts = [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
  return `rgb(${parts.map((part) => Math.round(part + 0.4 * (255 - part)))})`;
}

function wrapped(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1).length + word.length > width) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trim());
  }
  return lines.filter((line) => line).map(escaped).join("<br>");
}

function inWords(point, metric) {
  const [mean, sd, low, high] = point.metrics[metric];
  const spread = sd ? ` ± ${sd.toFixed(4)}` : "";
  const interval =
    low === null
      ? "one seed: no interval"
      : high - low < 1e-9
        ? "the same for every seed"
        : `95 % interval over seeds ${low.toFixed(4)} to ${high.toFixed(4)}`;
  return [
    `${point.method} at ${point.budget}` + (point.status === "ok" ? "" : ` (${point.status})`),
    `${data.metrics[metric]} ${mean.toFixed(4)}${spread}, ${interval}`,
    `seeds: ${point.seeds}`,
    `${point.words.paper} counted by the paper, ${point.words.stored} stored, ${point.words.serving} to serve`,
  ];
}

function traces({ dataset, metric, view, method }) {
  const points = data.points.filter((point) => point.dataset === dataset);
  const best = (point) => point.metrics[metric][4].includes(view);
  const drawn = Object.entries(data.methods).map(([name, look]) => {
    const own = points.filter((point) => point.method === name);
    const halves = own.map((point) => (point.metrics[metric][2] === null ? 0 : point.metrics[metric][3] - point.metrics[metric][0]));
    const other = method && method !== name;
    return {
      name,
      type: "scatter",
      mode: "markers",
      x: own.map((point) => point.sizes[view]),
      y: own.map((point) => point.metrics[metric][0]),
      error_y: { type: "data", array: halves, color: seen(look.color), thickness: 1, width: 3, visible: !other && halves.some(Boolean) },
      marker: {
        color: seen(look.color),
        symbol: own.map((point) => look.symbol + (point.stopped ? "-open" : "")),
        size: method === name ? 12 : 9,
        opacity: own.map((point) => (other ? 0.12 : method === name || best(point) ? 1 : 0.5)),
        line: { color: colour("rim"), width: 0.5 },
      },
      customdata: own,
      hovertext: own.map((point) => {
        const [first, ...rest] = inWords(point, metric).map((line) => wrapped(line, narrow() ? 40 : 90));
        return [`<b>${first}</b>`, ...rest, ...(narrow() ? [] : [wrapped(point.command, 90)])].join("<br>");
      }),
      hoverinfo: "text",
      legendgroup: name,
      showlegend: false,
    };
  });
  const legend = drawn
    .filter((trace) => trace.x.length)
    .map(({ name, marker }) => {
      const whole = { color: marker.color, symbol: data.methods[name].symbol, size: 9, line: marker.line };
      return { name, type: "scatter", mode: "markers", x: [null], y: [null], marker: whole, legendgroup: name, hoverinfo: "skip" };
    }); // of its own: that of a trace takes its look from the first point, which may be a faint one
  const steps = points.filter(best).sort((a, b) => a.sizes[view] - b.sizes[view] || a.metrics[metric][0] - b.metrics[metric][0]);
  const end = Math.max(...points.map((point) => point.sizes[view])) * 1.15;
  drawn.push(...legend, {
    name: "best within a size",
    type: "scatter",
    mode: "lines+text",
    x: [...steps.map((point) => point.sizes[view]), end],
    y: [...steps.map((point) => point.metrics[metric][0]), steps.at(-1)?.metrics[metric][0]],
    text: [...(narrow() ? [] : stepNames(steps, points, view, metric)), ""],
    textposition: [...steps, null].map((_, place) => (place === 0 ? "top right" : "top left")), // the first stands at the edge
    textfont: { size: 11, color: colour("ink") },
    line: { shape: "hv", color: colour("ink"), width: 1.3 },
    hoverinfo: "skip",
  });
  return drawn;
}

// Every method's name at its first step; where names would overlap, all at the first of these steps.
function stepNames(steps, points, view, metric) {
  const named = new Set();
  const [low, high] = heights(points[0].dataset, metric);
  const sizes = points.map((point) => point.sizes[view]).filter((size) => size > 0);
  const wide = Math.log10(Math.max(...sizes) / Math.min(...sizes)) || 1;
  const names = steps.map(() => "");
  let last = null;
  steps.forEach((point, place) => {
    if (named.has(point.method)) return;
    named.add(point.method);
    const [size, mean] = [Math.log10(point.sizes[view]) / wide, point.metrics[metric][0] / (high - low)];
    if (last && size - last.size < 0.06 && mean - last.mean < 0.035) names[last.place] += `, ${point.method}`;
    else {
      names[place] = point.method;
      last = { place, size, mean };
    }
  });
  return names;
}

// From the points alone: an interval of two seeds can be wider than all that is to be seen.
function heights(dataset, metric) {
  const means = data.points.filter((point) => point.dataset === dataset).map((point) => point.metrics[metric][0]);
  const margin = 0.08 * (Math.max(...means) - Math.min(...means)) || 0.01;
  return [Math.min(...means) - margin, Math.max(...means) + margin];
}

function layout({ dataset, metric, view }) {
  const lines = colour("line");
  const axis = { gridcolor: lines, linecolor: lines, zeroline: false, automargin: true };
  return {
    title: { text: `${data.datasets[dataset]}: ${data.metrics[metric]} by bytes ${data.views[view]}`, font: { size: narrow() ? 13 : 15 } },
    xaxis: { ...axis, type: "log", tickformat: "~s", dtick: narrow() ? 1 : "D2", title: { text: `bytes ${data.views[view]}` } },
    yaxis: { ...axis, title: { text: data.metrics[metric] }, range: heights(dataset, metric) },
    font: { family: "system-ui, sans-serif", color: colour("ink") },
    paper_bgcolor: colour("paper"),
    plot_bgcolor: colour("paper"),
    hoverlabel: { align: "left", bgcolor: colour("mark"), bordercolor: colour("soft"), font: { color: colour("ink"), size: 12 } },
    hovermode: "closest",
    dragmode: narrow() ? false : "zoom", // a finger on a small screen scrolls the page
    showlegend: !narrow(),
    legend: { font: { size: 11 } },
    margin: { l: 10, r: 10, t: 50, b: 10 },
  };
}

function draw() {
  const buttons = narrow() ? { displayModeBar: false } : { modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const alone = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "" }; // no button leads to a network
  const config = { responsive: true, ...alone, ...buttons };
  Plotly.react(plot, traces(chosen()), layout(chosen()), config);
}

function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const known = choices.filter((select) => [...select.options].some((option) => option.value === asked.get(select.id)));
  for (const select of known) select.value = asked.get(select.id);
  draw();
  if (known.length) document.getElementById("pareto").scrollIntoView();
}

if (data.points.length) {
  document.getElementById("explorer").hidden = false;
  follow();
  plot.on("plotly_click", ({ points: [{ customdata: point }] }) => {
    const command = document.createElement("code");
    command.textContent = point.command;
    document.getElementById("chosen").replaceChildren(inWords(point, chosen().metric).join("; ") + ". Trained by", command);
  });
  for (const select of choices) {
    select.addEventListener("change", () => {
      const words = Object.entries(chosen()).filter(([, value]) => value);
      history.replaceState(null, "", `#${new URLSearchParams(words)}`);
      draw();
    });
  }
  addEventListener("hashchange", follow);
  dark.addEventListener("change", draw);
  let wasNarrow = narrow();
  addEventListener("resize", () => {
    if (narrow() !== wasNarrow) draw();
    wasNarrow = narrow();
  });
}

/* The RTS tab: draws the charts, refreshes the page, shows instants in local time.

   The page is rendered on the server; a refresh fetches it again and patches what has changed.
   Without this file the page is complete except for the charts. */
"use strict";

(() => {
  const EVERY_MS = 5000;
  // While something is still being counted.
  const SOON_MS = 1000;
  // A page takes some seconds at most to answer.
  const PATIENCE_MS = 20000;
  const content = document.getElementById("rts-content");
  const pause = document.getElementById("rts-pause");
  const status = document.getElementById("rts-status");

  /* --- numbers, as on the server --- */

  function duration(seconds) {
    const sign = seconds < 0 ? "−" : "";
    const s = Math.abs(seconds);
    if (s < 0.00005) return "0\u00a0s";
    if (s < 0.9995) return `${sign}${(s * 1000).toFixed(s < 0.00995 ? 1 : 0)}\u00a0ms`;
    if (s < 99.95) return `${sign}${s.toFixed(s < 9.995 ? 2 : 1)}\u00a0s`;
    const [unit, part, length, per, digits] = s < 3599.5 ? ["min", "s", 1, 60, 2]
      : s < 86370 ? ["h", "min", 60, 60, 2] : ["d", "h", 3600, 24, 1];
    const n = Math.round(s / length);
    const rest = n % per ? `\u00a0${String(n % per).padStart(digits, "0")}\u00a0${part}` : "";
    return `${sign}${Math.floor(n / per)}\u00a0${unit}${rest}`;
  }

  // Seconds between two ticks, in whole minutes, hours and days.
  const STEPS = [
    ...[-6, -5, -4, -3, -2, -1, 0].flatMap((e) => [1, 2, 5].map((n) => Number(`${n}e${e}`))),
    10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200,
    ...[1, 10, 100, 1000, 10000].flatMap((tens) => [1, 2, 5].map((n) => n * tens * 86400)),
  ];

  const WHOLE = [...Array(9).keys()].flatMap((e) => [1, 2, 5].map((n) => n * 10 ** e));

  const UNITS = {
    ratio: (v) => `${Number((v < 1 ? Math.min(v * 100, 99.9) : v * 100).toFixed(1))}\u00a0%`,
    seconds: duration,
    count: (v) => v.toLocaleString("en").replaceAll(",", "\u202f"),
    factor: (v) => `${Number(v.toPrecision(3))}\u00a0×`,
  };

  /* --- charts --- */

  const plots = new Map(); // figure -> {text, plot, theme, width}

  function property(element, name) {
    return getComputedStyle(element).getPropertyValue(name).trim();
  }

  function seriesOf(one, stroke) {
    // A line needs two points to be seen.
    const few = one.values.filter((v) => v !== null).length < 50;
    const base = { label: one.label, stroke, width: 1.75, spanGaps: true, points: { show: few, size: 4, fill: stroke } };
    if (one.kind === "dash") return { ...base, width: 1.25, dash: [5, 4], points: { show: false } };
    if (one.kind === "bars") {
      return {
        ...base, width: 0, fill: stroke, points: { show: false },
        paths: uPlot.paths.bars({ size: [0.82, 40], gap: 0 }),
      };
    }
    if (one.kind === "points") {
      const fill = one.role === "missed" ? stroke : `${stroke}99`;
      return { ...base, width: 0, paths: () => null, points: { show: true, size: 5, fill, stroke: fill } };
    }
    return base;
  }

  function valuesOf(chart) {
    const values = chart.series.map((one) => one.values);
    if (!chart.stacked) return values;
    // uPlot does not stack: the first series is drawn over the sum of both.
    return [values[0].map((v, i) => v + values[1][i]), values[0]];
  }

  function range(chart) {
    if (chart.unit === "ratio") {
      const known = chart.series.flatMap((one) => one.values).filter((v) => v !== null);
      const least = known.length ? Math.min(...known) : 0;
      return [Math.max(0, Math.floor((least - 0.02) * 10) / 10), 1.005];
    }
    return (_, low, high) => [0, high > 0 ? high * 1.08 : 1];
  }

  function wholePowers(_, splits) {
    return splits.map((at) => (Math.abs(Math.log10(at) % 1) < 1e-9 ? at : null));
  }

  function aroundBars(x) {
    const half = x.length > 1 ? (x[1] - x[0]) / 2 : 0.5;
    return [x[0] - half, x[x.length - 1] + half];
  }

  function axisTimes(_, splits) {
    const span = splits[splits.length - 1] - splits[0];
    return splits.map((at) => {
      const date = new Date(at * 1000);
      return span > 2 * 86400
        ? date.toLocaleDateString(undefined, { month: "short", day: "numeric" })
        : date.toLocaleTimeString(undefined, {
          hour: "2-digit", minute: "2-digit", second: span < 600 ? "2-digit" : undefined, hourCycle: "h23",
        });
    });
  }

  function draw(figure) {
    const source = figure.querySelector('script[type="application/json"]');
    const place = figure.querySelector(".rts-plot");
    const old = plots.get(figure);
    const theme = document.documentElement.dataset.bsTheme;
    const width = place ? place.clientWidth : 0;
    if (!source || !width) return;
    if (old && old.text === source.textContent && old.theme === theme && old.width === width) return;
    if (old) old.plot.destroy();
    const chart = JSON.parse(source.textContent);
    const legend = [...figure.querySelectorAll(".rts-legend li")];
    const marks = legend.map((item) => item.querySelector(".rts-value"));
    const drawn = chart.series.map((one, i) => seriesOf(one, property(legend[i], "--rts-mark")));
    if (chart.stacked) drawn.reverse();
    const unit = UNITS[chart.unit];
    const axis = {
      stroke: property(figure, "--rts-muted"), font: "12px system-ui, sans-serif",
      grid: { stroke: property(figure, "--rts-grid"), width: 1 }, ticks: { show: false },
    };
    const xUnit = chart.x_unit ? UNITS[chart.x_unit] : null;
    const steps = (of) => ({ seconds: { incrs: STEPS }, count: { incrs: WHOLE } })[of];
    const options = {
      width, height: place.clientHeight || 220, legend: { show: false },
      padding: [null, 32, null, null], // room for half an instant at the right end
      cursor: { drag: { setScale: false }, points: { show: !chart.stacked } },
      scales: {
        x: { time: !xUnit, range: chart.stacked ? aroundBars(chart.x) : undefined },
        y: chart.log ? { distr: 3 } : { range: range(chart) },
      },
      series: [{}, ...drawn],
      axes: [
        { ...axis, ...steps(chart.x_unit), size: 30, space: 80, grid: { show: false }, values: xUnit ? (_, at) => at.map(xUnit) : axisTimes },
        { ...axis, ...steps(chart.unit), size: 64, grid: chart.log ? { ...axis.grid, filter: wholePowers } : axis.grid, values: (_, at) => at.map((v) => (v === null ? "" : unit(v))) },
      ],
      bands: chart.band ? [{ series: [2, 1], fill: property(figure, "--rts-met-soft") }] : [],
      hooks: {
        setCursor: [(plot) => {
          const at = plot.cursor.idx;
          chart.series.forEach((one, i) => {
            const value = at === null || at === undefined ? null : one.values[at];
            marks[i].textContent = value === null || value === undefined ? "" : unit(value);
          });
        }],
      },
    };
    const plot = new uPlot(options, [chart.x, ...valuesOf(chart)], place);
    plots.set(figure, { text: source.textContent, plot, theme, width });
  }

  function drawAll() {
    for (const figure of plots.keys()) {
      if (!figure.isConnected) {
        plots.get(figure).plot.destroy();
        plots.delete(figure);
      }
    }
    document.querySelectorAll(".rts-chart").forEach(draw);
  }

  /* --- local time --- */

  function localize(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      const today = at.toDateString() === new Date().toDateString();
      const exact = "exact" in time.dataset ? `.${String(at.getMilliseconds()).padStart(3, "0")}` : "";
      const zone = "zone" in time.dataset ? "short" : undefined;
      const clock = at.toLocaleTimeString(undefined, { hourCycle: "h23", timeZoneName: zone }) + exact;
      time.textContent = today ? clock : `${at.toLocaleDateString()} ${clock}`;
      time.title = time.dateTime;
    }
  }

  /* --- refresh --- */

  function same(a, b) {
    return a.nodeType === b.nodeType && a.nodeName === b.nodeName && a.id === b.id;
  }

  function patch(old, fresh) {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE || old.matches(".rts-plot, .rts-value")) return;
    if (old.matches("form")) return; // the user may be typing
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    const children = [...fresh.childNodes];
    children.forEach((child, i) => {
      const at = old.childNodes[i];
      if (!at) old.append(document.importNode(child, true));
      else if (same(at, child)) patch(at, child);
      else at.replaceWith(document.importNode(child, true));
    });
    while (old.childNodes.length > children.length) old.lastChild.remove();
  }

  let timer = 0;
  let lost = false;

  function say(text) {
    if (status.textContent !== text) status.textContent = text;
  }

  async function refresh() {
    let trouble = "Flower does not answer; trying again";
    const patience = new AbortController();
    const timeout = window.setTimeout(() => patience.abort(), PATIENCE_MS);
    try {
      const answer = await fetch(window.location.href, {
        cache: "no-cache", redirect: "manual", signal: patience.signal,
      });
      if (answer.type === "opaqueredirect") trouble = "You are logged out; reload the page";
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("rts-content");
      if (!fresh) throw new Error("no page");
      localize(fresh);
      patch(content, fresh);
      drawAll();
      if (lost) say("Live again");
      lost = false;
    } catch {
      lost = true;
      say(trouble);
    }
    window.clearTimeout(timeout);
    plan();
  }

  function plan() {
    window.clearTimeout(timer);
    if (pause.getAttribute("aria-pressed") !== "true" && !document.hidden) {
      timer = window.setTimeout(refresh, content.querySelector(".rts-note") ? SOON_MS : EVERY_MS);
    }
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    say(paused ? "Paused" : "Live");
    plan();
  });
  document.addEventListener("visibilitychange", plan);

  localize(content);
  drawAll();
  plan();
  new ResizeObserver(drawAll).observe(content);
  new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
})();

// The learning curves as a chart to explore; without this script the drawn figure stands in its place.
(() => {
  const data = JSON.parse(document.getElementById("curve-data")?.textContent || "null");
  const home = document.getElementById("explorer");
  if (!data || !home) return;
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (parent, name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const WIDE = 860, HIGH = 330, LEFT = 62, RIGHT = 12, TOP = 18, BOTTOM = 34, WINDOW = 7;
  const form = document.createElement("form");
  form.className = "filters";
  form.setAttribute("aria-label", "What the chart shows");
  const choice = (label, values) => {
    const list = document.createElement("select");
    list.append(...values.map(([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text })));
    const field = document.createElement("label");
    field.append(label, list);
    if (values.length > 1) form.append(field);
    return list;
  };
  const seeds = [...new Set(data.curves.map((curve) => curve.seed))];
  const metric = choice("Metric", data.metrics.map((entry) => [entry.key, entry.label]));
  const seed = choice("Seed", [["", "all"], ...seeds.map((value) => [String(value), String(value)])].slice(seeds.length > 1 ? 0 : 1));
  const whole = Object.assign(document.createElement("button"), { type: "button", textContent: "Whole training" });
  const said = document.createElement("output");
  form.append(whole, said);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
  svg.setAttribute("class", "chart");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "img");
  home.append(form, svg);

  const last = data.stages.at(-1).from + data.stages.at(-1).steps;
  let range = [1, last], cursor = null, pressed = null, lines = [];
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const nice = (span) => { const unit = 10 ** Math.floor(Math.log10(span)); return [1, 2, 5, 10].map((f) => f * unit).find((step) => step >= span); };
  const shown = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 || Math.abs(value) < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3)));
  const x = (update) => LEFT + (WIDE - LEFT - RIGHT) * (update - range[0]) / Math.max(1, range[1] - range[0]);
  const update = (event) => {
    const at = (event.clientX - svg.getBoundingClientRect().left) * WIDE / svg.getBoundingClientRect().width;
    return Math.round(range[0] + (range[1] - range[0]) * Math.min(1, Math.max(0, (at - LEFT) / (WIDE - LEFT - RIGHT))));
  };

  // Per arm: each training as [update, value, error], and the line through them with its band.
  const series = () => data.arms.map((arm) => {
    const trainings = new Map();
    data.curves.filter((curve) => curve.arm === arm.name && (!seed.value || String(curve.seed) === seed.value) && curve.values[metric.value]).forEach((curve) => {
      const from = data.stages.find((stage) => stage.name === curve.stage).from;
      const errors = curve.values[`${metric.value} error`] || [];
      const points = curve.steps.map((step, i) => [from + step, curve.values[metric.value][i], errors[i]]).filter((point) => point[1] !== null);
      trainings.set(curve.seed, [...(trainings.get(curve.seed) || []), ...points].sort((a, b) => a[0] - b[0]));
    });
    const raw = [...trainings.values()].filter((points) => points.length);
    let line = [];
    if (raw.length > 1) {
      const steps = new Map();
      raw.flat().forEach(([at, value]) => steps.set(at, [...(steps.get(at) || []), value]));
      line = [...steps].sort((a, b) => a[0] - b[0]).map(([at, values]) => [at, mean(values), Math.min(...values), Math.max(...values)]);
    } else if (raw.length) {
      const wide = raw[0].length >= 2 * WINDOW + 2 ? (WINDOW - 1) / 2 : 0;
      line = raw[0].map(([at], i) => {
        const near = raw[0].slice(Math.max(0, i - wide), i + wide + 1);
        const centre = mean(near.map((point) => point[1]));
        const errors = near.map((point) => point[2]);
        const half = errors.every((error) => typeof error === "number") ? 1.96 * Math.sqrt(errors.reduce((sum, error) => sum + error * error, 0)) / near.length : 0;
        return [at, centre, centre - half, centre + half];
      });
    }
    return { arm, raw, line };
  });

  const paint = () => {
    const entry = data.metrics.find((found) => found.key === metric.value);
    svg.replaceChildren();
    lines = series();
    const inside = (at) => at >= range[0] && at <= range[1];
    const values = lines.flatMap(({ raw, line }) => [...raw.flat().filter((p) => inside(p[0])).map((p) => p[1]), ...line.filter((p) => inside(p[0])).flatMap((p) => p.slice(2))]);
    let low = Math.min(0, ...values), high = entry.top ?? Math.max(...values, low + 1e-9);
    if (entry.top) low = Math.max(low, 0);
    const step = nice((high - low) / 5);
    low = Math.floor(low / step) * step;
    high = Math.max(low + step, Math.ceil(high / step - 1e-9) * step);
    const y = (value) => HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (Math.min(high, Math.max(low, value)) - low) / (high - low);
    for (let at = low; at <= high + step / 2; at += step) {
      draw(svg, "line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(at), y2: y(at), class: "s-grid" });
      draw(svg, "text", { x: LEFT - 8, y: y(at) + 4, "text-anchor": "end", class: "f-muted" }, shown(+at.toPrecision(9)));
    }
    const every = Math.max(1, nice((range[1] - range[0]) / 8));
    for (let at = Math.ceil(range[0] / every) * every; at <= range[1]; at += every) draw(svg, "text", { x: x(at), y: HIGH - 18, "text-anchor": "middle", class: "f-muted" }, at);
    data.stages.filter((stage) => inside(stage.from + 1)).forEach((stage) => {
      draw(svg, "line", { x1: x(stage.from + 1), x2: x(stage.from + 1), y1: TOP, y2: HIGH - BOTTOM, class: "s-muted dashed" });
      draw(svg, "text", { x: x(stage.from + 1) + 4, y: TOP - 5, class: "f-muted" }, stage.name);
    });
    draw(svg, "text", { x: WIDE - RIGHT, y: HIGH - 4, "text-anchor": "end", class: "f-muted" }, "update");
    const path = (points) => points.filter((p) => inside(p[0])).map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
    lines.forEach(({ arm, raw, line }) => {
      const here = line.filter((p) => inside(p[0]));
      if (!here.length) return;
      const edge = [...here.map((p) => [p[0], p[3]]), ...here.toReversed().map((p) => [p[0], p[2]])];
      draw(svg, "path", { d: `${path(edge)}Z`, class: `f-${arm.colour} band-of` });
      raw.forEach((points) => draw(svg, "path", { d: path(points), class: `s-${arm.colour} thin` }));
      draw(svg, "path", { d: path(line), class: `s-${arm.colour} thick` });
      if (here.length === 1) draw(svg, "circle", { cx: x(here[0][0]), cy: y(here[0][1]), r: 3, class: `f-${arm.colour}` });
    });
    if (cursor !== null && inside(cursor)) {
      draw(svg, "line", { x1: x(cursor), x2: x(cursor), y1: TOP, y2: HIGH - BOTTOM, class: "s-ink" });
      const found = lines.map(({ arm, line }) => [arm, line.find((p) => p[0] === cursor)]).filter(([, p]) => p);
      found.forEach(([arm, p]) => draw(svg, "circle", { cx: x(p[0]), cy: y(p[1]), r: 4, class: `f-${arm.colour}` }));
      said.textContent = `update ${cursor}: ${found.map(([arm, p]) => `${arm.name} ${shown(p[1])}${p[3] > p[2] ? ` (${shown(p[2])} to ${shown(p[3])})` : ""}`).join(", ") || "no value"}`;
    } else said.textContent = "point at the chart for values, drag to zoom";
    if (pressed !== null && cursor !== null) draw(svg, "rect", { x: Math.min(x(pressed), x(cursor)), y: TOP, width: Math.abs(x(pressed) - x(cursor)), height: HIGH - TOP - BOTTOM, class: "zoom" });
    whole.disabled = range[0] === 1 && range[1] === last;
    svg.setAttribute("aria-label", `${entry.label} by update. Arrow keys move along it. ${said.textContent}`);
  };
  svg.addEventListener("pointermove", (event) => { cursor = update(event); paint(); });
  svg.addEventListener("pointerleave", () => { if (pressed === null) { cursor = null; paint(); } });
  svg.addEventListener("pointerdown", (event) => { pressed = update(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointerup", (event) => {
    const ends = [pressed, update(event)].sort((a, b) => a - b);
    pressed = null;
    if (ends[1] - ends[0] >= 2) range = ends;
    paint();
  });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    cursor = Math.min(range[1], Math.max(range[0], (cursor ?? range[0] - by) + by));
    event.preventDefault();
    event.stopPropagation();
    paint();
  });
  whole.addEventListener("click", () => { range = [1, last]; paint(); });
  form.addEventListener("input", paint);
  form.addEventListener("submit", (event) => event.preventDefault());
  paint();
})();

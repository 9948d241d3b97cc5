"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const NAMESPACE = document.getElementById("namespace").namespaceURI;
  const tip = document.getElementById("tip");
  const hidden = new Set();       // numbers of the variants that are switched off, everywhere
  const redraws = [];

  // ------------------------------------------------------------------------------------------- elements

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "text") element.textContent = value;
      else element.setAttribute(name, value);
    }
    element.append(...(children || []));
    return element;
  }
  const html = (tag, attributes, children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, children) => fill(document.createElementNS(NAMESPACE, tag), attributes, children);

  // A curve is told apart by colour, by marker and, from the eighth on, by dashes: as in fedpisa's other pictures.
  const DASHES = ["", "6 3", "2 2.5", "9 3 2 3", "12 4"];
  // References, which only give scale, are dashed lines of the text's colour, without markers.
  const isReference = (v) => DATA.references.includes(v);
  const colour = (v) => isReference(v) ? "var(--ink)" : `var(--c${v % 7})`;
  const dash = (v) => isReference(v) ? ["7 4", "2 3"][DATA.references.indexOf(v) % 2] : DASHES[Math.floor(v / 7) % DASHES.length];
  function marker(v, x, y, r) {
    const shapes = [
      () => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
      () => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
      () => `M${x},${y - 1.2 * r}L${x + 1.2 * r},${y + r}H${x - 1.2 * r}z`,
      () => `M${x},${y - 1.4 * r}L${x + 1.4 * r},${y}L${x},${y + 1.4 * r}L${x - 1.4 * r},${y}z`,
      () => `M${x},${y + 1.2 * r}L${x + 1.2 * r},${y - r}H${x - 1.2 * r}z`,
      () => `M${x - r / 2},${y - 1.3 * r}h${r}v${0.8 * r}h${0.8 * r}v${r}h${-0.8 * r}v${0.8 * r}h${-r}v${-0.8 * r}h${-0.8 * r}v${-r}h${0.8 * r}z`,
      () => `M${x - r},${y - r}L${x},${y - r / 3}L${x + r},${y - r}L${x + r / 3},${y}L${x + r},${y + r}L${x},${y + r / 3}L${x - r},${y + r}L${x - r / 3},${y}z`,
    ];
    return shapes[v % shapes.length]();
  }
  const sample = (v) => svg("svg", { width: 30, height: 12, viewBox: "0 0 30 12", "aria-hidden": "true" }, [
    svg("path", { d: "M1,6H29", stroke: colour(v), "stroke-width": 2, "stroke-dasharray": dash(v) }),
    ...(isReference(v) ? [] : [svg("path", { d: marker(v, 15, 6, 3.4), fill: colour(v) })]),
  ]);

  // -------------------------------------------------------------------------------------- numbers and axes

  const significant = (value, digits) => {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e6 || size < 1e-3) return value.toExponential(digits - 1).replace(/\.?0*e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(digits)));
  };
  const shown = (value, percent) => percent ? (100 * value).toFixed(2) + "%" : significant(value, 4);
  const tickText = (value, percent) => percent ? `${significant(100 * value, 4)}%` : abbreviated(value);
  function abbreviated(value) {
    for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      if (Math.abs(value) >= size) return significant(value / (letter === "k" ? 1e3 : size), 3) + letter;
    }
    return significant(value, 3);
  }

  function niceTicks(low, high, number) {
    const raw = (high - low) / number, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * size).find((s) => s >= raw * 0.999);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) ticks.push(k * step);
    return ticks;
  }
  function logTicks(low, high) {
    const decades = Math.log10(high / low), marks = decades < 1.5 ? [1, 2, 3, 5] : decades < 3 ? [1, 3] : [1];
    const every = Math.max(1, Math.ceil(decades / 6)), ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      if (power % every) continue;
      for (const mark of marks) {
        const tick = mark * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
      }
    }
    return ticks.length > 1 ? ticks : niceTicks(low, high, 4);
  }
  function scale(low, high, from, to, log) {
    const f = log ? Math.log10 : (value) => value, a = f(low), b = f(high);
    const map = (value) => from + (to - from) * (f(value) - a) / (b - a);
    return Object.assign(map, { low, high, ticks: (n) => log ? logTicks(low, high) : niceTicks(low, high, n) });
  }
  const fixed = (value) => Math.round(value * 10) / 10;

  // --------------------------------------------------------------------------------------------- the tip

  function showTip(x, y, children) {
    tip.replaceChildren(...children);
    tip.hidden = false;
    const wide = document.documentElement.clientWidth, box = tip.getBoundingClientRect();
    const left = x + 16 + box.width < wide - 4 ? x + 16 : Math.max(4, x - 16 - box.width);
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${Math.max(4, y - box.height / 2) + window.scrollY}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  // ------------------------------------------------------------------------------------------ the legends

  for (const place of document.querySelectorAll("[data-legend]")) {
    const source = DATA[place.dataset.legend];
    const present = new Set((source.series || source).map((one) => one.variant));
    if (present.size < 2 && place.dataset.legend !== "curves") continue;
    for (const v of [...present].sort((a, b) => a - b)) {
      const button = html("button", { type: "button", "aria-pressed": "true", "data-variant": v }, [sample(v), DATA.variants[v]]);
      button.addEventListener("click", () => toggle(v));
      place.append(button);
    }
    const all = html("button", { type: "button", text: "all / none", "data-all": "" });
    all.addEventListener("click", () => {
      if (hidden.size) hidden.clear(); else DATA.variants.forEach((_, v) => hidden.add(v));
      refresh();
    });
    if (present.size > 2) place.append(all);
  }
  function toggle(v) {
    if (!hidden.delete(v)) hidden.add(v);
    refresh();
  }
  function refresh() {
    for (const button of document.querySelectorAll("[data-variant]")) {
      button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.variant))));
    }
    redraws.forEach((redraw) => redraw());
  }

  function panel(place, title, note, draw) {
    const picture = svg("svg", { tabindex: 0, role: "img" });
    const box = html("figure", { class: "panel", style: "margin:0" }, [
      html("h3", { text: title }), picture, ...(note ? [html("small", { text: note })] : []),
    ]);
    place.append(box);
    const redraw = () => draw(picture, Math.max(240, box.clientWidth));
    redraws.push(redraw);
    redraw();
    let width = box.clientWidth;
    // Later, as a picture of another height would change what is being observed.
    new ResizeObserver(() => requestAnimationFrame(() => {
      if (box.clientWidth !== width) { width = box.clientWidth; redraw(); }
    })).observe(box);
    picture.addEventListener("pointerleave", hideTip);
    picture.addEventListener("blur", hideTip);
    return picture;
  }
  function frame(picture, width, height, label) {
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("height", height);
    picture.setAttribute("aria-label", label);
    picture.replaceChildren();
  }

  function choice(bar, state, title, key, options) {
    const buttons = options.map((option) => html("button", { type: "button", text: option.label.split(",")[0], "data-choice": option.id, "aria-pressed": String(option.id === state[key]) }));
    buttons.forEach((button, k) => button.addEventListener("click", () => {
      state[key] = options[k].id;
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      refresh();
    }));
    bar.append(html("fieldset", {}, [html("legend", { text: title }), ...buttons]));
  }

  // ------------------------------------------------------------------------------------------- the curves

  function chart(name) {
    const source = DATA[name];
    const place = document.querySelector(`[data-panels="${name}"]`);
    if (!place || !source.metrics.length) {
      if (place) place.append(html("p", { class: "note", text: "No run has measured anything that could be drawn." }));
      return;
    }
    const state = { axis: source.axes[0].id, metric: source.metrics[0].id, band: true, end: false };
    const bar = document.querySelector(`[data-controls="${name}"]`);
    const flag = (title, key) => {
      const box = html("input", { type: "checkbox" });
      box.checked = state[key];
      box.addEventListener("change", () => { state[key] = box.checked; refresh(); });
      bar.append(html("label", {}, [box, ` ${title}`]));
    };
    choice(bar, state, "show", "metric", source.metrics);
    choice(bar, state, "against", "axis", source.axes);
    if (source.series.some((one) => one.n > 1)) flag("deviation", "band");
    flag("last half only", "end");
    DATA.splits.forEach((title, split) => {
      const mine = source.series.filter((one) => one.split === split);
      if (mine.length) curves(place, title, mine, source, state, name === "curves" ? DATA.targets[split] : null);
    });
  }

  function curves(place, title, all, source, state, target) {
    let now = null;           // what is drawn: its lines and scales, for the pointer
    let at = null;            // the position across that is read, among now.stops
    const notes = all.filter((one) => one.note).map((one) => `${DATA.variants[one.variant]}: ${one.note}`);
    const picture = panel(place, title, notes.join("; "), draw);

    function draw(element, width) {
      const metric = source.metrics.find((one) => one.id === state.metric);
      const axis = source.axes.find((one) => one.id === state.axis);
      const height = Math.round(Math.min(300, Math.max(220, 0.62 * width))), left = 54, right = width - 18, top = 8, bottom = height - 36;
      frame(element, width, height, `${title}: ${metric.label} against ${axis.label}; arrow keys read values`);
      now = null;
      const shownSeries = all.filter((one) => !hidden.has(one.variant) && one.y[metric.id]);
      const farthest = Math.max(...shownSeries.flatMap((one) => one.x[axis.id].filter((_, i) => one.y[metric.id][i] !== null)));
      const lines = shownSeries.map((one) => {
        const points = [];
        one.y[metric.id].forEach((y, i) => {
          const x = one.x[axis.id][i];
          if (y !== null && !(state.end && x < farthest / 2)) points.push({ x, y, sd: one.sd[metric.id] ? one.sd[metric.id][i] : null, round: one.x.round[i] });
        });
        return { ...one, points };
      }).filter((one) => one.points.length);
      if (!lines.length) {
        element.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle", text: all.some((one) => one.y[metric.id]) ? "all curves are switched off" : "not measured here" }));
        return;
      }
      const points = lines.flatMap((one) => one.points);
      const log = metric.log && points.every((point) => point.y > 0);
      const band = (point) => state.band && point.sd !== null;
      let low = Math.min(...points.map((p) => !log && band(p) ? p.y - p.sd : p.y));
      let high = Math.max(...points.map((p) => band(p) ? p.y + p.sd : p.y));
      if (metric.percent) { low = Math.max(0, low); high = Math.min(1, high); }
      if (!(high > low)) [low, high] = log ? [low / 1.5, high * 1.5] : [low - 0.05 * (Math.abs(low) || 1), high + 0.05 * (Math.abs(high) || 1)];
      else if (log) { const margin = (high / low) ** 0.04; low /= margin; high *= margin; }
      else { const margin = 0.03 * (high - low); low -= margin; high += margin; }
      let first = Math.min(...points.map((p) => p.x)), last = Math.max(...points.map((p) => p.x));
      if (!(last > first)) { first -= 0.5; last += 0.5; }
      const sx = scale(first, last, left, right, false), sy = scale(low, high, bottom, top, log);
      for (const tick of sy.ticks(5)) {
        element.append(svg("path", { class: "grid", d: `M${left},${fixed(sy(tick))}H${right}` }));
        element.append(svg("text", { x: left - 6, y: fixed(sy(tick)) + 4, "text-anchor": "end", text: tickText(tick, metric.percent) }));
      }
      for (const tick of sx.ticks(Math.max(3, Math.min(6, width / 75)))) {
        if (state.axis === "round" && tick % 1) continue;
        element.append(svg("path", { class: "axis", d: `M${fixed(sx(tick))},${bottom}v4` }));
        element.append(svg("text", { x: fixed(sx(tick)), y: bottom + 16, "text-anchor": "middle", text: abbreviated(tick) }));
      }
      element.append(svg("path", { class: "axis", d: `M${left},${top}V${bottom}H${right}` }));
      element.append(svg("text", { class: "label", x: (left + right) / 2, y: height - 4, "text-anchor": "middle", text: axis.label }));
      const clip = `clip-${name(element)}`;
      element.append(svg("clipPath", { id: clip }, [svg("rect", { x: left, y: top - 4, width: right - left + 6, height: bottom - top + 8 })]));
      const layer = svg("g", { "clip-path": `url(#${clip})` });
      element.append(layer);
      let goal = null; // drawn last, so that no curve runs through it
      if (target && metric.id === target.id && target.value > low && target.value < high) {
        layer.append(svg("path", { class: "target", d: `M${left},${fixed(sy(target.value))}H${right}` }));
        goal = svg("text", { class: "goal", x: right - 4, y: fixed(sy(target.value)) + 12, "text-anchor": "end", text: `target ${target.text}` });
      }
      for (const one of lines) {
        const spread = one.points.filter(band);
        if (spread.length > 1) {
          const up = spread.map((p) => `${fixed(sx(p.x))},${fixed(sy(p.y + p.sd))}`);
          const down = spread.map((p) => `${fixed(sx(p.x))},${fixed(sy(Math.max(p.y - p.sd, log ? low / 1e3 : -Infinity)))}`).reverse();
          layer.append(svg("path", { class: "band", d: `M${up.join("L")}L${down.join("L")}z`, fill: colour(one.variant), "fill-opacity": 0.14 }));
        }
      }
      lines.forEach((one, k) => {
        const path = one.points.map((p) => `${fixed(sx(p.x))},${fixed(sy(p.y))}`);
        layer.append(svg("path", { class: "curve", "data-series": one.variant, d: `M${path.join("L")}`, fill: "none", stroke: colour(one.variant), "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-dasharray": dash(one.variant) }));
        const step = Math.max(1, Math.ceil(one.points.length / 8)), offset = Math.floor(k * step / 3) % step;
        const marks = one.points.filter((_, i) => !isReference(one.variant) && i % step === offset).map((p) => marker(one.variant, fixed(sx(p.x)), fixed(sy(p.y)), 2.8));
        layer.append(svg("path", { d: marks.join(""), fill: colour(one.variant) }));
      });
      if (goal) layer.append(goal);
      const stops = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
      const cross = svg("path", { class: "cross", visibility: "hidden", d: `M0,${top}V${bottom}` });
      element.append(cross);
      now = { lines, sx, sy, stops, cross, metric, axis, width };
    }

    function read(x) {
      if (!now) return;
      at = nearest(now.stops, x);
      const place = now.stops[at];
      const rows = now.lines.map((one) => ({ one, point: one.points[nearest(one.points.map((p) => p.x), place)] }));
      rows.sort((a, b) => b.point.y - a.point.y);
      const box = picture.getBoundingClientRect(), ratio = box.width / now.width;
      now.cross.setAttribute("transform", `translate(${fixed(now.sx(place))},0)`);
      now.cross.setAttribute("visibility", "visible");
      const cells = rows.map(({ one, point }) => {
        const spread = point.sd === null ? (one.n === 1 ? " (one seed)" : "") : ` ± ${now.metric.percent ? (100 * point.sd).toFixed(2) : significant(point.sd, 2)}`;
        // Away from rounds the curves' points do not lie above each other: say which round each value is of.
        const where = state.axis === "round" ? (point.x === place ? "" : ` in round ${point.round}`) : `, round ${point.round}`;
        return html("tr", {}, [html("td", {}, [sample(one.variant)]), html("td", { text: DATA.variants[one.variant] }), html("td", { text: shown(point.y, now.metric.percent) + spread + where })]);
      });
      showTip(box.left + now.sx(place) * ratio, box.top + box.height / 2, [
        html("strong", { text: `${now.axis.label.split(",")[0]}: ${significant(place, 4)}` }), html("table", {}, [html("tbody", {}, cells)]),
      ]);
    }
    const clear = () => { if (now) now.cross.setAttribute("visibility", "hidden"); };
    picture.addEventListener("pointermove", (event) => {
      if (!now) return;
      const box = picture.getBoundingClientRect();
      const across = (event.clientX - box.left) * now.width / box.width;
      const { sx } = now, part = (across - sx(sx.low)) / (sx(sx.high) - sx(sx.low));
      read(sx.low + part * (sx.high - sx.low));
    });
    picture.addEventListener("pointerleave", clear);
    picture.addEventListener("blur", clear);
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined || !now) return;
      event.preventDefault();
      const next = at === null ? (move > 0 ? 0 : now.stops.length - 1) : at + move;
      read(now.stops[Math.max(0, Math.min(now.stops.length - 1, next))]);
    });
  }
  let names = 0;
  const name = (element) => element.dataset.name || (element.dataset.name = String(names++));
  function nearest(sorted, value) {
    let best = 0;
    for (let i = 1; i < sorted.length; i++) if (Math.abs(sorted[i] - value) < Math.abs(sorted[best] - value)) best = i;
    return best;
  }

  // --------------------------------------------------------------------------------- who holds what, of labels

  function splitPanel(place, one) {
    let grid = null;
    const clients = one.sizes.length, labels = one.counts ? one.counts[0].length : 0;
    const picture = panel(place, `${DATA.splits[one.split]} (seed ${one.seed})`, one.note, draw);

    function draw(element, width) {
      const left = 40, right = width - 8, cell = (right - left) / clients, size = Math.max(7, Math.min(18, 260 / Math.max(labels, 1)));
      const top = 6, bars = 46, below = top + bars + 8, bottom = below + labels * size, height = bottom + 34;
      frame(element, width, height, `${DATA.splits[one.split]}: samples of each label that ${clients} clients hold; arrow keys read values`);
      const most = Math.max(...one.sizes);
      const columns = one.sizes.map((n, i) => `M${fixed(left + (i + 0.08) * cell)},${top + bars}v${fixed(-bars * n / most)}h${fixed(0.84 * cell)}V${top + bars}z`);
      element.append(svg("path", { class: "bar", d: columns.join("") }));
      element.append(svg("text", { x: left - 5, y: top + 9, "text-anchor": "end", text: abbreviated(most) }));
      if (labels) {
        const largest = Math.max(...one.counts.flat()), round = clients <= 40 && cell >= 6;
        const levels = Array.from({ length: 8 }, () => []);
        one.counts.forEach((row, i) => row.forEach((count, k) => {
          if (!count) return;
          const x = left + (i + 0.5) * cell, y = bottom - (k + 0.5) * size, share = count / largest;
          const r = Math.max(0.7, Math.sqrt(share) * (Math.min(cell, size) / 2 - 0.3));
          levels[Math.min(7, Math.floor(8 * (round ? 0.99 : Math.sqrt(share))))].push(round ? marker(0, fixed(x), fixed(y), fixed(r)) : `M${fixed(x - cell / 2)},${fixed(y - size / 2)}h${fixed(cell)}v${fixed(size)}h${fixed(-cell)}z`);
        }));
        element.append(svg("path", { class: "grid", d: `M${left},${below}H${right}V${bottom}H${left}z` }));
        levels.forEach((paths, level) => { if (paths.length) element.append(svg("path", { class: "held", d: paths.join(""), fill: colour(0), "fill-opacity": round ? 0.9 : 0.12 + 0.88 * level / 7 })); });
        const every = Math.ceil(labels / Math.max(1, Math.floor((bottom - below) / 13)));
        for (let k = 0; k < labels; k += every) element.append(svg("text", { x: left - 6, y: bottom - (k + 0.5) * size + 4, "text-anchor": "end", text: String(k) }));
      }
      const step = niceTicks(0, clients, Math.min(clients, Math.max(4, width / 40))).find((tick) => tick >= 1 && tick % 1 === 0) || 1;
      for (let i = 0; i < clients; i += step) element.append(svg("text", { x: fixed(left + (i + 0.5) * cell), y: bottom + 13, "text-anchor": "middle", text: String(i) }));
      element.append(svg("text", { class: "label", x: (left + right) / 2, y: height - 6, "text-anchor": "middle", text: labels ? `client (down: ${one.deciles ? "decile of the target" : "label"}; area or shade: samples)` : "client" }));
      const mark = svg("rect", { class: "axis", visibility: "hidden", width: fixed(cell), height: labels ? size : bars });
      element.append(mark);
      grid = { left, cell, size, bottom, width, mark, top, below };
    }
    let client = 0, label = -1;
    function read() {
      const held = label >= 0 && labels;
      const part = held ? `${one.deciles ? "decile" : "label"} ${label}: ${one.counts[client][label]} samples, ${(100 * one.counts[client][label] / one.sizes[client]).toFixed(1)}% of its ${one.sizes[client]}` : `${one.sizes[client]} samples`;
      const box = picture.getBoundingClientRect(), ratio = box.width / grid.width;
      const x = grid.left + client * grid.cell, y = held ? grid.bottom - (label + 1) * grid.size : grid.top;
      fill(grid.mark, { x: fixed(x), y: fixed(y), height: held ? grid.size : 46, visibility: "visible" });
      showTip(box.left + (x + grid.cell) * ratio, box.top + (y + grid.size / 2) * ratio, [html("strong", { text: `client ${client}` }), html("div", { text: part })]);
    }
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect(), ratio = grid.width / box.width;
      const x = (event.clientX - box.left) * ratio, y = (event.clientY - box.top) * ratio;
      if (x < grid.left || y > grid.bottom) { hideTip(); return; }
      client = Math.min(clients - 1, Math.floor((x - grid.left) / grid.cell));
      label = y < grid.below ? -1 : Math.min(labels - 1, Math.floor((grid.bottom - y) / grid.size));
      read();
    });
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!move) return;
      event.preventDefault();
      client = Math.max(0, Math.min(clients - 1, client + move[0]));
      label = Math.max(-1, Math.min(labels - 1, label + move[1]));
      read();
    });
    const clear = () => grid.mark.setAttribute("visibility", "hidden");
    picture.addEventListener("pointerleave", clear);
    picture.addEventListener("blur", clear);
  }

  // ------------------------------------------------------------------------------------------ tuning's trials

  function tuning(place, source) {
    if (!source.panels.length) return;
    const state = { metric: source.metrics[0].id };
    const bar = html("div", { class: "controls" }), panels = html("div", { class: "panels" });
    if (DATA.tunings.length > 1) place.append(html("h3", { text: source.title }));
    place.append(bar, panels);
    choice(bar, state, "show", "metric", source.metrics);
    if (source.points.length > 1) source.points.forEach((point, k) => bar.append(html("span", {}, [
      svg("svg", { width: 14, height: 12, viewBox: "0 0 14 12", "aria-hidden": "true" }, [svg("path", { d: marker(k, 7, 6, 3.4), fill: `var(--c${k % 7})` })]), ` ${point}`,
    ])));
    const everything = source.panels.flatMap((one) => one.trials);
    for (const one of source.panels) trials(panels, one, source, state, everything);
  }

  function trials(place, one, source, state, everything) {
    let now = null, at = -1;
    const picture = panel(place, `${one.variant}: ${one.key}`, "", draw);
    function draw(element, width) {
      const metric = source.metrics.find((other) => other.id === state.metric);
      const height = 230, left = 54, right = width - 18, top = 10, bottom = height - 36;
      frame(element, width, height, `${one.variant}: ${metric.label} of each trial against ${one.key}; arrow keys read values`);
      // One scale for all panels. A loss is off the scale from ten thousand times the smallest on.
      const values = everything.map((trial) => trial[metric.id]).filter((value) => value !== null);
      const least = Math.min(...values), most = metric.percent || least <= 0 ? Infinity : 1e4 * least;
      let low = least, high = Math.max(...values.filter((value) => value <= most));
      const log = !metric.percent && low > 0 && high > 5 * low;
      if (!(high > low)) [low, high] = [low - 0.05 * (Math.abs(low) || 1), high + 0.05 * (Math.abs(high) || 1)];
      else if (log) { const margin = (high / low) ** 0.06; low /= margin; high *= margin; }
      else { const margin = 0.06 * (high - low); low -= margin; high += margin; }
      const across = one.trials.map((trial) => trial.x), wide = Math.max(...across), narrow = Math.min(...across);
      const logx = narrow > 0 && wide >= 10 * narrow, margin = logx ? (wide / narrow) ** 0.04 : 0.04 * (wide - narrow);
      const sx = logx ? scale(narrow / margin, wide * margin, left, right, true) : scale(narrow - margin, wide + margin, left, right, false);
      const sy = scale(low, high, bottom, top, log);
      for (const tick of sy.ticks(5)) {
        if (metric.percent && (tick < 0 || tick > 1)) continue;
        element.append(svg("path", { class: "grid", d: `M${left},${fixed(sy(tick))}H${right}` }));
        element.append(svg("text", { x: left - 6, y: fixed(sy(tick)) + 4, "text-anchor": "end", text: tickText(tick, metric.percent) }));
      }
      for (const tick of sx.ticks(5)) {
        element.append(svg("path", { class: "axis", d: `M${fixed(sx(tick))},${bottom}v4` }));
        element.append(svg("text", { x: fixed(sx(tick)), y: bottom + 16, "text-anchor": "middle", text: abbreviated(tick) }));
      }
      element.append(svg("path", { class: "axis", d: `M${left},${top}V${bottom}H${right}` }));
      element.append(svg("text", { class: "label", x: (left + right) / 2, y: height - 4, "text-anchor": "middle", text: one.key }));
      const marks = one.trials.map((trial) => {
        const value = trial[metric.id], drawn = value !== null && value <= most;
        return { trial, drawn, x: sx(trial.x), y: drawn ? sy(value) : metric.percent ? bottom - 5 : top + 2 };
      }).filter((mark) => mark.drawn || metric.id === "metric" || mark.trial.state !== "pruned").sort((a, b) => a.x - b.x);
      for (const { trial, drawn, x, y } of marks) {
        const fill = `var(--c${trial.point % 7})`, full = drawn && trial.state !== "pruned", px = fixed(x), py = fixed(y);
        const d = drawn ? marker(trial.point, px, py, 3.2) : `M${px - 3},${py - 3}l6,6m0,-6l-6,6`;
        element.append(svg("path", { class: "trial", d, fill: full ? fill : "none", "fill-opacity": 0.8, stroke: fill, "stroke-width": full ? 0.5 : 1.4 }));
        if (trial.best) element.append(svg("path", { d: marker(0, px, py, 7), fill: "none", stroke: fill, "stroke-width": 1.6 }));
      }
      const ring = svg("path", { class: "cross", visibility: "hidden", d: marker(0, 0, 0, 9), fill: "none" });
      element.append(ring);
      now = { marks, metric, width, ring };
    }
    function read() {
      const { trial, x, y } = now.marks[at], box = picture.getBoundingClientRect(), ratio = box.width / now.width;
      now.ring.setAttribute("transform", `translate(${fixed(x)},${fixed(y)})`);
      now.ring.setAttribute("visibility", "visible");
      const value = trial[now.metric.id];
      showTip(box.left + x * ratio, box.top + y * ratio, [
        html("strong", { text: `trial ${trial.trial}${trial.best ? ", the best" : ""}: ${trial.state}` }),
        ...(source.points.length > 1 ? [html("div", { text: source.points[trial.point] })] : []),
        html("div", { text: trial.values }),
        html("div", { text: value === null ? `no ${now.metric.label}` : `${now.metric.label} ${shown(value, now.metric.percent)}` }),
        html("div", { text: trial.cost }),
      ]);
    }
    picture.addEventListener("pointermove", (event) => {
      if (!now || !now.marks.length) return;
      const box = picture.getBoundingClientRect(), ratio = now.width / box.width;
      const away = now.marks.map((mark) => Math.hypot(mark.x - (event.clientX - box.left) * ratio, mark.y - (event.clientY - box.top) * ratio));
      at = away.indexOf(Math.min(...away));
      read();
    });
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined || !now || !now.marks.length) return;
      event.preventDefault();
      at = Math.max(0, Math.min(now.marks.length - 1, at + move));
      read();
    });
    const clear = () => now && now.ring.setAttribute("visibility", "hidden");
    picture.addEventListener("pointerleave", clear);
    picture.addEventListener("blur", clear);
  }

  // ------------------------------------------------------------------------------- the measure over the clients

  function clientPanel(place, split, all) {
    let now = null, at = -1;
    const picture = panel(place, DATA.splits[split], "", draw);
    function draw(element, width) {
      const rows = all.filter((one) => !hidden.has(one.variant));
      const left = 16, right = width - 18, top = 4, each = 38, bottom = top + each * Math.max(1, rows.length), height = bottom + 36;
      frame(element, width, height, `${DATA.splits[split]}: ${all[0].name} of the final model over the clients; arrow keys read values`);
      now = null;
      if (!rows.length) {
        element.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle", text: "all algorithms are switched off" }));
        return;
      }
      const lowest = Math.min(...rows.map((one) => one.values[0])), highest = Math.max(...rows.map((one) => one.values[one.values.length - 1]));
      const margin = Math.max(0.03 * (highest - lowest), all[0].percent ? 0.005 : 1e-6 * Math.abs(highest));
      const sx = scale(lowest - margin, highest + margin, left, right, false);
      for (const tick of sx.ticks(5)) {
        element.append(svg("path", { class: "grid", d: `M${fixed(sx(tick))},${top}V${bottom}` }));
        element.append(svg("text", { x: fixed(sx(tick)), y: bottom + 14, "text-anchor": "middle", text: tickText(tick, all[0].percent) }));
      }
      rows.forEach((one, k) => {
        const y = top + k * each;
        element.append(svg("text", { class: "label", x: left, y: y + 11, text: DATA.variants[one.variant].length * 6 > width - 40 ? DATA.variants[one.variant].slice(0, Math.floor((width - 40) / 6)) + "…" : DATA.variants[one.variant] }));
        element.append(svg("path", { class: "strip", d: one.values.map((value) => `M${fixed(sx(value))},${y + 16}v14`).join(""), stroke: colour(one.variant), "stroke-width": 1.6, "stroke-opacity": 0.6 }));
        element.append(svg("path", { d: marker(3, fixed(sx(one.mean)), y + 23, 5), fill: "var(--ink)" }));
        element.append(svg("path", { d: marker(2, fixed(sx(one.worst)), y + 33, 3.6), fill: "var(--ink)" }));
      });
      element.append(svg("path", { class: "axis", d: `M${left},${bottom}H${right}` }));
      element.append(svg("text", { class: "label", x: (left + right) / 2, y: height - 5, "text-anchor": "middle", text: `${all[0].name} of a client (diamond: mean; triangle: worst 10%)` }));
      now = { rows, each, top, width };
    }
    function read(x) {
      const one = now.rows[at], box = picture.getBoundingClientRect();
      showTip(x, box.top + (now.top + (at + 0.6) * now.each) * box.width / now.width, [
        html("strong", { text: DATA.variants[one.variant] }),
        html("div", { text: `mean ${shown(one.mean, one.percent)}, worst 10% ${shown(one.worst, one.percent)}, median ${shown(one.median, one.percent)}` }),
        html("div", { text: `${one.clients} clients, ${one.seeds} ${one.seeds === 1 ? "seed" : "seeds"}; lowest ${shown(one.values[0], one.percent)}` }),
      ]);
    }
    picture.addEventListener("pointermove", (event) => {
      if (!now) return;
      const box = picture.getBoundingClientRect();
      at = Math.floor(((event.clientY - box.top) * now.width / box.width - now.top) / now.each);
      if (at < 0 || at >= now.rows.length) { hideTip(); return; }
      read(event.clientX);
    });
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!move || !now) return;
      event.preventDefault();
      at = Math.max(0, Math.min(now.rows.length - 1, at + move));
      const box = picture.getBoundingClientRect();
      read(box.left + box.width / 2);
    });
  }

  chart("curves");
  chart("residuals");
  for (const one of DATA.tunings) tuning(document.querySelector("[data-tunings]"), one);
  for (const one of DATA.pictures) splitPanel(document.querySelector("[data-splits]"), one);
  DATA.splits.forEach((_, split) => {
    const mine = DATA.clients.filter((one) => one.split === split);
    if (mine.length) clientPanel(document.querySelector("[data-clients]"), split, mine);
  });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { if (!one.querySelector("pre")) one.open = true; }));
})();

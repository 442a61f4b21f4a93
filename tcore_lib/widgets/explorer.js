// The correspondence explorer: one patch is picked, every frame shows where its like is.
//
// Everything is computed here, from the widget's state alone, so it works without a kernel. Letters: N frames, h w grid,
// P = h w patches, d kept dimensions. A patch's index is row * w + column, over all frames frame * P + that. The decoder's
// attention may have a coarser grid of its own; `data` and `data.looks` are both grids {h, w, P}.

const DOTS = 12; // most matches that are marked in one frame

// ---- the payload ----------------------------------------------------------------------------------------------------

function readPayload(model) {
  const meta = model.get("_meta");
  const [h, w] = meta.grid;
  const data = { ...meta, h, w, P: h * w, N: meta.frames.lengths.length };
  const lengths = meta.encoders.map(({ dims }) => data.N * data.P * dims);
  const codes = splitBytes(asBytes(model.get("_features")), lengths);
  data.encoders = meta.encoders.map((encoder, e) => {
    const squares = encoder.scales.map((scale) => scale * scale);
    return { ...encoder, squares, codes: new Int8Array(codes[e].buffer) };
  });
  if (meta.attention) {
    const raw = asBytes(model.get("_attention"));
    const [rows, columns] = meta.attention.grid;
    data.looks = { h: rows, w: columns, P: rows * columns };
    const size = meta.attention.pairs.length * (meta.attention.heads + 1) * data.looks.P ** 2;
    data.weights = raw.subarray(0, size);
    data.peaks = new Float32Array(raw.slice(size).buffer);
  }
  // Of every patch the label with the largest share, and that share of 255.
  if (meta.labels) [data.channel, data.share] = splitBytes(asBytes(model.get("_labels")), [data.N * data.P, data.N * data.P]);
  const table = meta.colours.match(/../g).map((pair) => parseInt(pair, 16));
  data.colour = (code) => table.slice(3 * code, 3 * code + 3); // of 0..255
  return data;
}

// Cosine of a patch (its index over all frames) with every patch: one Float32Array (P) per frame.
function cosines({ codes, squares, dims }, query, { N, P }) {
  const weighted = Float32Array.from(squares, (square, i) => square * codes[query * dims + i]);
  const all = new Float32Array(N * P);
  for (let patch = 0, at = 0; patch < N * P; patch++) {
    let sum = 0;
    for (let i = 0; i < dims; i++) sum += weighted[i] * codes[at++];
    all[patch] = sum;
  }
  return Array.from({ length: N }, (_, frame) => all.subarray(frame * P, (frame + 1) * P));
}

// The patch of a grid that holds the middle of a patch (row, column) of another grid.
function patchOn(grid, other, row, column) {
  return Math.floor(((row + 0.5) * grid.h) / other.h) * grid.w + Math.floor(((column + 0.5) * grid.w) / other.w);
}

const cell = (patch, { w }) => [Math.floor(patch / w), patch % w]; // its row and column

// Attention of the picked patch in one frame: a value per patch of `data.looks`, or null where the decoder has not looked.
function attention(data, pick, frame, head) {
  const pair = data.attention.pairs.findIndex(([query, key]) => query === pick.frame && key === frame);
  if (pair < 0) return null;
  const { P } = data.looks;
  const row = (pair * (data.attention.heads + 1) + head) * P + patchOn(data.looks, data, pick.row, pick.column);
  const scale = data.peaks[row] / 255;
  return Float32Array.from(data.weights.subarray(row * P, (row + 1) * P), (code) => code * scale);
}

// Indices of the `count` largest values, largest first; of equal ones the first.
function largest(values, count) {
  const top = [];
  for (let i = 0; i < values.length; i++) {
    if (top.length === count && values[i] <= values[top[count - 1]]) continue;
    let at = top.length;
    while (at && values[top[at - 1]] < values[i]) at--;
    top.splice(at, 0, i);
    if (top.length > count) top.pop();
  }
  return top;
}

// ---- drawing --------------------------------------------------------------------------------------------------------

// Red, green, blue and opacity 0..255 as one number in the order that ImageData has in memory.
const packed = ([r, g, b], a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

// Take the colours out of a canvas, and some of the light: maps show better on grey.
function fade(canvas) {
  const pen = canvas.getContext("2d");
  for (const [operation, colour] of [["saturation", "#808080"], ["source-over", "rgba(0,0,0,.15)"]]) {
    Object.assign(pen, { globalCompositeOperation: operation, fillStyle: colour });
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
}

// Paint one flat cell per patch over a whole canvas; `colours`: Uint32Array (P) of packed colours.
function paintCells(canvas, grid, colours) {
  const small = (grid.small ??= element("canvas", { width: grid.w, height: grid.h }));
  small.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colours.buffer), grid.w, grid.h), 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = true;
}

// The box of a patch on a canvas: x, y, width, height.
function cellBox(canvas, grid, patch) {
  const [width, height] = [canvas.width / grid.w, canvas.height / grid.h];
  const [row, column] = cell(patch, grid);
  return [column * width, row * height, width, height];
}

// White lines with a dark rim are seen on any picture.
function strokeWithRim(pen, path, line) {
  for (const [lineWidth, strokeStyle] of [[line * 2, "rgba(15,18,24,.9)"], [line, "#fff"]]) {
    Object.assign(pen, { lineWidth, strokeStyle });
    pen.stroke(path);
  }
}

function outlineCell(canvas, grid, patch, line) {
  const path = new Path2D();
  path.rect(...cellBox(canvas, grid, patch));
  strokeWithRim(canvas.getContext("2d"), path, line);
}

function markMatch(canvas, grid, patch, radius, fillStyle) {
  const [x, y, width, height] = cellBox(canvas, grid, patch);
  const [pen, path] = [canvas.getContext("2d"), new Path2D()];
  path.arc(x + width / 2, y + height / 2, radius, 0, 2 * Math.PI);
  strokeWithRim(pen, path, radius * 0.4);
  pen.fillStyle = fillStyle;
  pen.fill(path);
}

// ---- the widget -----------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const data = readPayload(model);
  const state = { head: 0, common: false, opacity: 0.85, images: null, maps: [] };
  const [pick, mode, target] = ["pick", "mode", "frame"].map((name) => () => model.get(name));
  let saving = 0;
  const set = (name, value) => {
    model.set(name, value);
    clearTimeout(saving); // a drag makes many changes; the kernel needs the last one
    saving = setTimeout(() => model.save_changes(), 80);
  };

  // -- computing: what every frame shows for the pick

  function compute() {
    const { frame, row, column, matches: known } = pick();
    const key = [frame, row, column].join(",");
    if (key === state.key) return;
    Object.assign(state, { key, started: performance.now() });
    state.maps = data.encoders.map((encoder) => cosines(encoder, frame * data.P + row * data.w + column, data));
    state.best = state.maps.map((maps) => maps.map((values) => largest(values, 1)[0]));
    if (!known) set("pick", { frame, row, column, matches: matches() });
  }

  const cosine = (e, frame) => state.maps[e][frame][state.best[e][frame]]; // of the best match
  const others = () => data.names.map((_, frame) => frame).filter((frame) => data.N === 1 || frame !== pick().frame);

  function matches() {
    const match = (e, frame) => {
      const [row, column] = cell(state.best[e][frame], data);
      return { frame, row, column, cosine: Math.round(1e4 * cosine(e, frame)) / 1e4 };
    };
    return Object.fromEntries(data.encoders.map(({ name }, e) => [name, others().map((frame) => match(e, frame))]));
  }

  function choose(frame, row, column) {
    const old = pick();
    const next = { frame, row: clamp(row, 0, data.h - 1), column: clamp(column, 0, data.w - 1) };
    if (old.frame === next.frame && old.row === next.row && old.column === next.column) return;
    if (frame === target() && frame !== old.frame) set("frame", old.frame); // query and target change places
    set("pick", next);
  }

  // What one frame shows: {grid, codes: (P) 0..255, top: patches, text}; no codes where there is nothing to show.
  function view(frame, e, count) {
    const looks = mode() === "attention";
    const values = looks ? attention(data, pick(), frame, state.head) : state.maps[e][frame];
    if (!values) return { text: frame === pick().frame ? "query" : "not looked at" };
    const top = largest(values, count);
    const best = values[top[0]];
    const ceiling = state.common ? Math.max(...others().map((other) => cosine(e, other))) : best;
    const tau = model.get("temperature");
    const codes = new Uint8Array(values.length); // a plain loop: this runs for every patch of every frame
    for (let i = 0; i < values.length; i++)
      codes[i] = 255 * (looks ? values[i] / (best || 1) : Math.min(1, Math.exp((values[i] - ceiling) / tau))) + 0.5;
    const text = looks ? `most ${(100 * best).toFixed(1)} %` : `cosine ${best.toFixed(2)}`;
    return { grid: looks ? data.looks : data, codes, top, text };
  }

  function drawLabels(canvas, frame) {
    const cells = new Uint32Array(data.P);
    for (let patch = 0; patch < data.P; patch++) {
      const [channel, share] = [data.channel, data.share].map((values) => values[frame * data.P + patch]);
      if (channel) cells[patch] = packed(data.labels.palette[channel], state.opacity * 0.85 * share);
    }
    paintCells(canvas, data, cells);
  }

  // Draw one frame as seen by encoder e; e < 0 draws the query's picture.
  function draw(canvas, frame, e, large) {
    const ratio = fit(canvas, data.frames.size);
    const isQuery = e < 0 || (frame === pick().frame && !large);
    const looked = mode() === "labels" || isQuery ? {} : view(frame, e, large ? model.get("top_k") : 1);
    canvas.getContext("2d").drawImage(state.images[frame], 0, 0, canvas.width, canvas.height);
    if (mode() === "labels") drawLabels(canvas, frame);
    if (looked.codes) {
      fade(canvas);
      paintCells(canvas, looked.grid, Uint32Array.from(looked.codes, (code) => state.table[code]));
      const radius = (large ? 4.5 : 2.6) * ratio;
      for (const patch of large ? looked.top.slice(1) : []) markMatch(canvas, looked.grid, patch, radius * 0.55, "#fff");
      markMatch(canvas, looked.grid, looked.top[0], radius, "#E69F00");
    }
    const grid = mode() === "attention" ? data.looks : data;
    if (frame === pick().frame) outlineCell(canvas, grid, patchOn(grid, data, pick().row, pick().column), (large ? 2 : 1.4) * ratio);
    return looked.text || "";
  }

  // -- the page

  const parts = ["head", "panes", "time", "strip", "foot", "note"];
  const [controls, panes, time, strip, foot, note] = parts.map((name) => element("div", { className: `tcx-${name}` }));
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite" });
  const scale = element("div", { className: "tcx-scale" });
  foot.append(scale, status);
  note.textContent = data.note;
  const root = frameOfWidget(el, "Correspondence explorer");
  root.append(controls, panes, time, strip, foot, note);
  const { schedule, stop } = drawer(root, redraw);

  // A canvas on which pressing and dragging picks patches of `frameOf()` as it was when the press began.
  function pickable(properties, frameOf) {
    const canvas = element("canvas", properties);
    canvas.style.aspectRatio = `${data.frames.size[1]} / ${data.frames.size[0]}`;
    let held = -1;
    const down = () => (held = frameOf());
    const move = ([x, y]) => held >= 0 && choose(held, Math.floor(y * data.h), Math.floor(x * data.w));
    onDrag(canvas, down, move, () => (held = -1));
    return canvas;
  }

  function pane(title, aria, frameOf, keys) {
    const canvas = pickable({ className: "tcx-canvas", tabIndex: 0, role: "application", "aria-label": aria }, frameOf);
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in MOVES) && event.key !== "Enter") return;
      event.preventDefault();
      keys(...(MOVES[event.key] || [0, 0]).map((step) => step * (event.shiftKey ? 4 : 1)), event.key === "Enter");
    });
    const heading = element("div", { className: "tcx-title" }, element("b", { textContent: title }), element("span"));
    panes.append(element("div", { className: "tcx-pane" }, heading, canvas));
    return { canvas, heading };
  }

  const queryPane = pane("query", "Query frame. Arrow keys move the patch, with shift by four.", () => pick().frame, (down, right) =>
    choose(pick().frame, pick().row + down, pick().column + right),
  );
  const targetPanes = data.encoders.map(({ name }, e) => {
    const aria = `Matches of ${name}. Left and right arrow go through time, enter takes the best match as the query.`;
    return pane(name, aria, target, (down, right, enter) => {
      if (!enter) return set("frame", clamp(target() + Math.sign(down + right), 0, data.N - 1));
      const { grid, top } = view(target(), e, 1);
      if (!top) return;
      choose(target(), ...cell(patchOn(data, grid, ...cell(top[0], grid)), data));
    });
  });

  const thumbs = data.encoders.map((encoder) => {
    const row = element("div", { className: "tcx-row", role: "list", "aria-label": `Frames, matches of ${encoder.name}` });
    const cells = data.names.map((name, frame) => {
      const canvas = pickable({ className: "tcx-thumb" }, () => frame);
      const caption = button(name, () => set("frame", frame), { className: "tcx-caption", title: `compare with ${name}` });
      row.append(element("div", { className: "tcx-cell", role: "listitem" }, canvas, caption));
      return { canvas, caption };
    });
    strip.append(row);
    return { row, cells };
  });

  // -- controls

  const panel = controlPanel();
  const rows = [0, 1].map(() => element("div", { className: "tcx-controls" }));
  controls.append(...rows);
  const add = (row, modes, node) => {
    node.dataset.modes = modes;
    rows[row].append(node);
  };
  const names = { similarity: "Similarity", attention: "Cross-attention", labels: "Propagated label" };
  const modes = Object.entries(names).filter(([name]) => name === "similarity" || data[name]);
  const everywhere = Object.keys(names).join(" ");
  if (modes.length > 1) add(0, everywhere, panel.choice("What is shown", modes, mode, (value) => set("mode", value)));
  if (data.encoders.length > 1) {
    const options = [...data.encoders.map(({ name }) => [name, name]), ["compare", "Compare"]];
    add(0, "similarity", panel.choice("Encoder", options, () => model.get("encoder"), (value) => set("encoder", value)));
  }
  if (data.attention?.heads) {
    const heads = ["mean", ...Array.from({ length: data.attention.heads }, (_, i) => `head ${i + 1}`)];
    const change = () => ((state.head = select.selectedIndex), schedule());
    const select = element("select", { "aria-label": "attention head", onchange: change });
    select.append(...heads.map((name) => element("option", { textContent: name })));
    add(0, "attention", element("label", { className: "tcx-check" }, "head ", select));
  }
  const temperature = () => [Math.log10(model.get("temperature")), model.get("temperature").toFixed(2)];
  const logarithmic = { min: -2, max: 0, step: 0.02 };
  const setTemperature = (value) => set("temperature", Number((10 ** value).toPrecision(3)));
  add(1, "similarity", panel.slider("temperature", "temperature", logarithmic, temperature, setTemperature));
  const topK = () => [model.get("top_k"), model.get("top_k")];
  add(1, "similarity attention", panel.slider("top k", "top k", { min: 1, max: DOTS, step: 1 }, topK, (k) => set("top_k", k)));
  const opacity = () => [state.opacity, `${Math.round(100 * state.opacity)} %`];
  const setOpacity = (value) => ((state.opacity = value), schedule());
  add(1, everywhere, panel.slider("overlay", "overlay", { min: 0, max: 1, step: 0.05 }, opacity, setOpacity));
  const common = element("input", { type: "checkbox", onchange: () => ((state.common = common.checked), schedule()) });
  add(1, "similarity", element("label", { className: "tcx-check" }, common, " one scale for all frames"));
  const clock = timeline(time, data.names, "time: frame compared with the query", target, (frame) => set("frame", frame));

  function describe(shown) {
    const { frame, row, column } = pick();
    const where = `${data.names[frame]}, row ${row}, column ${column}`;
    const place = (patch, grid) => ((at) => `row ${at[0]}, column ${at[1]}`)(cell(patch, grid));
    if (mode() === "labels") {
      const at = frame * data.P + row * data.w + column;
      return `${where}: ${data.labels.names[data.channel[at]]}, ${((100 * data.share[at]) / 255).toFixed(0)} %.`;
    }
    if (mode() === "attention") {
      const from = `${data.names[frame]}, ${place(patchOn(data.looks, data, row, column), data.looks)}`;
      const values = attention(data, pick(), target(), state.head);
      if (!values) return `${from}. The decoder did not look from here at ${data.names[target()]}.`;
      const [top] = largest(values, 1);
      return `${from}. Looks most at ${place(top, data.looks)} of ${data.names[target()]} (${(100 * values[top]).toFixed(1)} %).`;
    }
    const found = shown.map((e) => {
      const name = data.encoders.length > 1 ? `${data.encoders[e].name}: ` : "";
      return `${name}${place(state.best[e][target()], data)}, cosine ${cosine(e, target()).toFixed(2)}`;
    });
    return `${where}. Best match in ${data.names[target()]}: ${found.join("; ")}.`;
  }

  function drawScale() {
    if (mode() === "labels") {
      const entry = (name, channel) => element("span", {}, swatch(data.labels.palette[channel]), name);
      return scale.replaceChildren(...data.labels.names.map(entry).slice(1)); // without the background
    }
    const bar = element("i", { className: "tcx-bar" });
    const stops = Array.from({ length: 9 }, (_, i) => `rgb(${data.colour(Math.round((255 * i) / 8)).join(" ")} / ${Math.sqrt(i / 8)})`);
    bar.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
    const ends = [`cosine ${(3 * model.get("temperature")).toFixed(2)} below`, "the best match"];
    const [low, high] = mode() === "attention" ? ["no attention", "most"] : ends;
    scale.replaceChildren(low, bar, high);
  }

  function redraw() {
    if (!state.images) return;
    const started = state.started || performance.now();
    state.started = 0;
    // The more alike, the less is seen through it; the root keeps the middle of the scale visible.
    const cover = (code) => packed(data.colour(code), state.opacity * Math.sqrt(255 * code));
    state.table = Uint32Array.from({ length: 256 }, (_, code) => cover(code));
    const all = data.encoders.map((_, e) => e);
    const one = Math.max(0, data.encoders.findIndex(({ name }) => name === model.get("encoder")));
    const shown = mode() !== "similarity" ? [0] : model.get("encoder") === "compare" ? all : [one];
    panes.style.setProperty("--panes", 1 + shown.length);
    for (const e of all) targetPanes[e].canvas.parentNode.hidden = thumbs[e].row.hidden = !shown.includes(e);
    queryPane.heading.lastChild.textContent = data.names[pick().frame];
    draw(queryPane.canvas, pick().frame, -1, true);
    for (const e of shown) {
      const { canvas, heading } = targetPanes[e];
      const text = draw(canvas, target(), e, true);
      heading.firstChild.textContent = { attention: "decoder", labels: "labels" }[mode()] || data.encoders[e].name;
      heading.lastChild.textContent = [data.names[target()], text].filter(Boolean).join(" · ");
      thumbs[e].cells.forEach(({ canvas, caption }, frame) => {
        draw(canvas, frame, e, false);
        canvas.parentNode.dataset.role = frame === pick().frame ? "query" : frame === target() ? "target" : "";
        caption.setAttribute("aria-pressed", String(frame === target()));
      });
    }
    panel.update();
    clock.update();
    for (const node of controls.querySelectorAll("[data-modes]")) node.hidden = !node.dataset.modes.split(" ").includes(mode());
    drawScale();
    const text = describe(shown);
    if (status.textContent !== text) status.textContent = text;
    root.dataset.pick = [pick().frame, pick().row, pick().column].join(",");
    root.dataset.milliseconds = (performance.now() - started).toFixed(1);
    root.dataset.ready = "true";
  }

  const changed = () => (compute(), schedule()); // computes only where the pick is another
  const watched = ["pick", "frame", "mode", "encoder", "temperature", "top_k"].map((name) => `change:${name}`);
  watched.forEach((event) => model.on(event, changed));
  compute();
  const files = splitBytes(asBytes(model.get("_frames")), data.frames.lengths);
  Promise.all(files.map((file) => toBitmap(file, "image/jpeg"))).then((images) => {
    state.images = images;
    schedule();
  });
  return () => {
    clock.stop();
    stop();
    clearTimeout(saving);
    watched.forEach((event) => model.off(event, changed));
  };
}

export default { render };

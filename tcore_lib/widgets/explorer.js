// The correspondence explorer: one patch is picked, every frame shows where its like is.
//
// Everything is computed here, from the widget's state alone, so it works without a kernel. Letters: N frames, h w grid,
// P = h w patches, d kept dimensions. A patch's index is row * w + column, over all frames frame * P + that. The decoder's
// attention may have a coarser grid of its own; `data` and `data.looks` are both grids {h, w, P}.

const DOTS = 12; // most matches that are marked in one frame
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }; // rows, columns
const MODES = { similarity: "Similarity", attention: "Cross-attention", labels: "Propagated label" };

// ---- the payload ----------------------------------------------------------------------------------------------------

function readPayload(model) {
  const meta = model.get("_meta");
  const [h, w] = meta.grid;
  const data = { ...meta, h, w, P: h * w, N: meta.names.length };
  const lengths = meta.encoders.map(({ dims }) => data.N * data.P * dims);
  const codes = splitBytes(asBytes(model.get("_features")), lengths);
  data.encoders = meta.encoders.map(({ name, dims, scales }, e) => {
    return { name, dims, squares: scales.map((scale) => scale * scale), codes: new Int8Array(codes[e].buffer) };
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
  // The more alike, the less is seen through the map; the root keeps the middle of the scale visible.
  data.colours = Uint32Array.from(meta.colours, (rgb, code) => packed(rgb, Math.sqrt(255 * code)));
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

const cell = (patch, { w }) => [Math.floor(patch / w), patch % w]; // its row and column
const place = (patch, grid) => `row ${cell(patch, grid)[0]}, column ${cell(patch, grid)[1]}`;

// The patch of a grid that holds the middle of a patch (row, column) of another grid.
function patchOn(grid, other, row, column) {
  return Math.floor(((row + 0.5) * grid.h) / other.h) * grid.w + Math.floor(((column + 0.5) * grid.w) / other.w);
}

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

// Take the colours out of a canvas, and some of the light: maps show better on grey.
function fade(canvas) {
  const pen = canvas.getContext("2d");
  for (const [operation, colour] of [["saturation", "#808080"], ["source-over", "rgba(0,0,0,.15)"]]) {
    Object.assign(pen, { globalCompositeOperation: operation, fillStyle: colour });
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
}

// A dot of a colour in the middle of a patch, or without a radius the patch's outline.
function mark(canvas, grid, patch, line, radius, fillStyle) {
  const [width, height] = [canvas.width / grid.w, canvas.height / grid.h];
  const [row, column] = cell(patch, grid);
  const [pen, path] = [canvas.getContext("2d"), new Path2D()];
  if (radius) path.arc((column + 0.5) * width, (row + 0.5) * height, radius, 0, 2 * Math.PI);
  else path.rect(column * width, row * height, width, height);
  strokeWithRim(pen, path, line);
  pen.fillStyle = fillStyle;
  if (radius) pen.fill(path);
}

// ---- the widget -----------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const data = readPayload(model);
  const page = openWidget(model, el, "Correspondence explorer", redraw);
  const state = { head: 0, opacity: 0.85, key: "", maps: [] };
  const change = (name) => (value) => ((state[name] = value), page.schedule());
  const grid = () => (mode() === "attention" ? data.looks : data); // the one that is shown
  const [pick, mode, target] = ["pick", "mode", "frame"].map((name) => () => model.get(name));
  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  // -- computing: what every frame shows for the pick

  const keyOf = ({ frame, row, column }) => [frame, row, column].join(",");

  function compute() {
    const { frame, row, column, matches } = pick();
    if (keyOf(pick()) !== state.key) {
      state.key = keyOf(pick());
      state.maps = data.encoders.map((encoder) => cosines(encoder, frame * data.P + row * data.w + column, data));
    }
    if (!matches) set("pick", { frame, row, column, matches: bestMatches(frame) });
  }

  function bestMatches(query) {
    const others = data.names.map((_, frame) => frame).filter((frame) => data.N === 1 || frame !== query);
    const match = (e, frame) => {
      const values = state.maps[e][frame];
      const [best] = largest(values, 1);
      const [row, column] = cell(best, data);
      return { frame, row, column, cosine: Math.round(1e4 * values[best]) / 1e4 };
    };
    return Object.fromEntries(data.encoders.map(({ name }, e) => [name, others.map((frame) => match(e, frame))]));
  }

  function choose(frame, row, column) {
    const old = pick();
    const next = { frame, row: clamp(row, 0, data.h - 1), column: clamp(column, 0, data.w - 1) };
    if (keyOf(old) === keyOf(next)) return;
    if (frame === target() && frame !== old.frame) set("frame", old.frame); // query and target change places
    model.set("pick", next); // the kernel gets it with its matches, once before the next picture
  }

  // What one frame shows: {colours: (P) packed, top: patches, text}; no colours where there is nothing to show.
  function view(frame, e, count) {
    if (mode() === "labels") {
      const labels = Array.from({ length: data.P }, (_, patch) => [data.channel, data.share].map((all) => all[frame * data.P + patch]));
      const colours = labels.map(([channel, share]) => channel && packed(data.labels.palette[channel], 0.85 * share));
      return { colours: Uint32Array.from(colours), top: [], text: "" };
    }
    const looks = mode() === "attention";
    const values = looks ? attention(data, pick(), frame, state.head) : state.maps[e][frame];
    if (!values) return { top: [], text: frame === pick().frame ? "query" : "not looked at" };
    const top = largest(values, count);
    const [best, tau] = [values[top[0]], model.get("temperature")];
    const share = looks ? (value) => value / (best || 1) : (value) => Math.exp((value - best) / tau);
    const colours = new Uint32Array(values.length); // a plain loop: this runs for every patch of every frame
    for (let i = 0; i < values.length; i++) colours[i] = data.colours[Math.round(255 * share(values[i]))];
    const text = looks ? `attention ${(100 * best).toFixed(1)} %` : `cosine ${best.toFixed(2)}`;
    return { colours, top, text };
  }

  // Draw one frame as seen by encoder e; e < 0 draws the query's picture.
  function draw(canvas, frame, e, large) {
    const ratio = page.drawFrame(canvas, frame);
    const plain = mode() !== "labels" && (e < 0 || (frame === pick().frame && !large));
    const { colours, top, text } = plain ? { top: [] } : view(frame, e, large ? model.get("top_k") : 1);
    if (colours && mode() !== "labels") fade(canvas);
    if (colours) {
      const pen = Object.assign(canvas.getContext("2d"), { imageSmoothingEnabled: false, globalAlpha: state.opacity });
      pen.drawImage(pixelCanvas(colours, grid().w, grid().h), 0, 0, canvas.width, canvas.height); // one flat cell per patch
      pen.globalAlpha = 1;
    }
    const radius = (large ? 4.5 : 2.6) * ratio;
    for (const patch of top.slice(1)) mark(canvas, grid(), patch, radius * 0.22, radius * 0.55, "#fff");
    for (const patch of top.slice(0, 1)) mark(canvas, grid(), patch, radius * 0.4, radius, "#E69F00");
    if (frame === pick().frame) mark(canvas, grid(), patchOn(grid(), data, pick().row, pick().column), (large ? 2 : 1.4) * ratio);
    return text;
  }

  // -- the page

  const [controls, panes, strip, scale] = ["controls", "panes", "strip", "scale"].map((name) => box(`tcx-${name}`));
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite" });
  const panel = controlPanel(page.closing);
  const time = panel.timeline(data.names, "time: frame compared with the query", target, (frame) => set("frame", frame));
  page.root.append(controls, panes, time, strip, scale, status, element("div", { className: "tcx-note", textContent: data.note }));

  // A canvas on which pressing and dragging picks patches of `frameOf()` as it was when the press began.
  function pickable(properties, frameOf) {
    const canvas = element("canvas", properties);
    let held = -1;
    const down = () => (held = frameOf());
    const move = ([x, y]) => held >= 0 && choose(held, Math.floor(y * data.h), Math.floor(x * data.w));
    onDrag(canvas, down, move, () => (held = -1));
    return canvas;
  }

  function pane(title, frameOf) {
    const label = `${title}. Arrow keys move the patch, with shift by four.`;
    const canvas = pickable({ className: "tcx-canvas", tabIndex: 0, role: "application", "aria-label": label }, frameOf);
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in MOVES)) return;
      const [down, right] = MOVES[event.key].map((step) => step * (event.shiftKey ? 4 : 1));
      choose(frameOf(), pick().row + down, pick().column + right);
      event.preventDefault();
    });
    const heading = element("div", { className: "tcx-title" }, element("b", { textContent: title }), element("span"));
    panes.append(box("tcx-pane", heading, canvas));
    return { canvas, heading };
  }
  const queryPane = pane("query", () => pick().frame);
  const targetPanes = data.encoders.map(({ name }) => pane(name, target));

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

  function control(modes, node) {
    node.dataset.modes = modes;
    controls.append(node);
  }
  const everywhere = Object.keys(MODES).join(" ");
  const modes = Object.entries(MODES).filter(([name]) => name === "similarity" || data[name]);
  if (modes.length > 1) control(everywhere, panel.choice("What is shown", modes, mode, (value) => set("mode", value)));
  if (data.encoders.length > 1) {
    const options = [...data.encoders.map(({ name }) => [name, name]), ["compare", "Compare"]];
    control("similarity", panel.choice("Encoder", options, () => model.get("encoder"), (value) => set("encoder", value)));
  }
  if (data.attention?.heads) {
    const heads = Array.from({ length: data.attention.heads + 1 }, (_, head) => [head, head ? `head ${head}` : "mean"]);
    control("attention", panel.choice("attention head", heads, () => state.head, change("head")));
  }
  const temperature = () => [Math.log10(model.get("temperature")), model.get("temperature").toFixed(2)];
  const setTemperature = (value) => set("temperature", Number((10 ** value).toPrecision(3)));
  control("similarity", panel.slider("temperature", "temperature", { min: -2, max: 0, step: 0.02 }, temperature, setTemperature));
  const topK = () => [model.get("top_k"), model.get("top_k")];
  const setTopK = (value) => set("top_k", value);
  control("similarity attention", panel.slider("top k", "top k", { min: 1, max: DOTS, step: 1 }, topK, setTopK));
  const opacity = () => [state.opacity, `${Math.round(100 * state.opacity)} %`];
  control(everywhere, panel.slider("overlay", "overlay", { min: 0, max: 1, step: 0.05 }, opacity, change("opacity")));

  function describe(shown) {
    const { frame, row, column } = pick();
    const where = `${data.names[frame]}, ${place(patchOn(grid(), data, row, column), grid())}`;
    if (mode() === "labels") {
      const [channel, share] = [data.channel, data.share].map((all) => all[frame * data.P + row * data.w + column]);
      return `${where}: ${data.labels.names[channel]}, ${((100 * share) / 255).toFixed(0)} %.`;
    }
    const found = shown.map((e) => {
      const { top, text } = view(target(), e, 1);
      const match = top.length ? `${place(top[0], grid())}, ${text}` : text;
      return shown.length > 1 ? `${data.encoders[e].name}: ${match}` : match;
    });
    return `${where}. Best match in ${data.names[target()]}: ${found.join("; ")}.`;
  }

  function drawScale() {
    if (mode() === "labels") {
      const entry = (name, channel) => element("span", {}, swatch(data.labels.palette[channel]), name);
      return scale.replaceChildren(...data.labels.names.map(entry).slice(1)); // without the background
    }
    const bar = pixelCanvas(data.colours, data.colours.length, 1);
    bar.className = "tcx-bar";
    const ends = [`cosine ${(3 * model.get("temperature")).toFixed(2)} below`, "the best match"];
    const [low, high] = mode() === "attention" ? ["no attention", "most"] : ends;
    scale.replaceChildren(low, bar, high);
  }

  function redraw() {
    const started = performance.now();
    compute();
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
    for (const node of controls.children) node.hidden = !node.dataset.modes.split(" ").includes(mode());
    drawScale();
    const text = describe(shown);
    if (status.textContent !== text) status.textContent = text; // read aloud only when it is another
    page.root.dataset.pick = state.key;
    page.root.dataset.milliseconds = (performance.now() - started).toFixed(1);
  }

  page.listen("change:pick", () => keyOf(pick()) !== state.key && page.schedule());
  for (const name of ["frame", "mode", "encoder", "temperature", "top_k"]) page.listen(`change:${name}`, page.schedule);
  return page.close;
}

export default { render };

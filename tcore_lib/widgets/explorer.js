// The correspondence explorer: one patch is picked, every frame shows where its like is.
//
// Everything is computed here, from the widget's state alone, so it works without a kernel. Letters: N frames, h w grid,
// P = h w patches, d kept dimensions. A patch's index is frame * P + row * w + column. The decoder's attention may have a
// coarser grid of its own; `data` and `data.looks` are both grids {h, w, P}.

const DOTS = 12; // most matches that are marked in one frame

// ---- the payload ----------------------------------------------------------------------------------------------------

function readPayload(model) {
  const meta = model.get("_meta");
  const [h, w] = meta.grid;
  const data = { ...meta, h, w, P: h * w, N: meta.frames.lengths.length };
  data.files = splitBytes(asBytes(model.get("_frames")), meta.frames.lengths);
  const codes = asBytes(model.get("_features"));
  let start = 0;
  data.encoders = meta.encoders.map((encoder) => {
    const length = data.N * data.P * encoder.dims;
    const own = new Int8Array(codes.slice(start, (start += length)).buffer);
    return { ...encoder, codes: own, squares: encoder.scales.map((scale) => scale * scale) };
  });
  if (meta.attention) {
    const raw = asBytes(model.get("_attention"));
    const [rows, columns] = meta.attention.grid;
    data.looks = { h: rows, w: columns, P: rows * columns };
    const size = meta.attention.pairs.length * (meta.attention.heads + 1) * data.looks.P ** 2;
    data.weights = raw.subarray(0, size);
    data.peaks = new Float32Array(raw.slice(size).buffer);
  }
  if (meta.labels) readLabels(data, asBytes(model.get("_labels")), meta.labels.names.length);
  const table = meta.colours.match(/../g).map((pair) => parseInt(pair, 16));
  data.colour = (code) => table.slice(3 * code, 3 * code + 3); // of 0..255
  return data;
}

// From (N, C, P) shares: the channel with the largest share at every patch, and that share of 255.
function readLabels(data, shares, channels) {
  data.channel = new Uint8Array(data.N * data.P);
  data.share = new Uint8Array(data.N * data.P);
  for (let frame = 0, at = 0; frame < data.N; frame++)
    for (let channel = 0; channel < channels; channel++)
      for (let patch = frame * data.P; patch < (frame + 1) * data.P; patch++, at++)
        if (shares[at] > data.share[patch]) [data.channel[patch], data.share[patch]] = [channel, shares[at]];
}

// Cosine of the picked patch with every patch of every frame: Float32Array (N * P).
function cosines({ codes, squares, dims }, query, count) {
  const weighted = Float32Array.from(squares, (square, i) => square * codes[query * dims + i]);
  const result = new Float32Array(count);
  for (let patch = 0, at = 0; patch < count; patch++) {
    let sum = 0;
    for (let i = 0; i < dims; i++) sum += weighted[i] * codes[at++];
    result[patch] = sum;
  }
  return result;
}

// The patch of another grid that holds the middle of the picked patch.
function patchOn(grid, data, { row, column }) {
  return Math.floor(((row + 0.5) * grid.h) / data.h) * grid.w + Math.floor(((column + 0.5) * grid.w) / data.w);
}

// Attention of the picked patch in one frame: a value per patch of `data.looks`, or null where the decoder has not looked.
function attention(data, pick, frame, head) {
  const pair = data.attention.pairs.findIndex(([query, key]) => query === pick.frame && key === frame);
  if (pair < 0) return null;
  const { P } = data.looks;
  const row = (pair * (data.attention.heads + 1) + head) * P + patchOn(data.looks, data, pick);
  const scale = data.peaks[row] / 255;
  return Float32Array.from(data.weights.subarray(row * P, (row + 1) * P), (code) => code * scale);
}

// The same function of every value, as bytes 0..255 of 0..1. Plain loops: this runs for every patch of every frame.
function toCodes(values, shade) {
  const codes = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) codes[i] = 255 * shade(values[i]) + 0.5;
  return codes;
}

function indexOfLargest(values) {
  let top = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[top]) top = i;
  return top;
}

// Indices of the `count` largest values, largest first.
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

async function decodeFrames(files) {
  return Promise.all(
    files.map(async (file) => {
      const colour = await createImageBitmap(new Blob([file], { type: "image/jpeg" }));
      const grey = element("canvas", { width: colour.width, height: colour.height });
      const pen = grey.getContext("2d");
      pen.drawImage(colour, 0, 0);
      const pixels = pen.getImageData(0, 0, grey.width, grey.height);
      for (let i = 0; i < pixels.data.length; i += 4) {
        const [r, g, b] = pixels.data.subarray(i, i + 3);
        pixels.data.fill(0.85 * (0.299 * r + 0.587 * g + 0.114 * b), i, i + 3);
      }
      pen.putImageData(pixels, 0, 0);
      return { colour, grey };
    }),
  );
}

// Red, green, blue and opacity 0..255 as one number in the order that ImageData has in memory.
const packed = ([r, g, b], a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

// Paint one flat cell per patch over a whole canvas; `colours`: Uint32Array (P) of packed colours.
function paintCells(canvas, grid, colours) {
  const small = (grid.small ??= element("canvas", { width: grid.w, height: grid.h }));
  const pixels = new Uint8ClampedArray(colours.buffer);
  small.getContext("2d").putImageData(new ImageData(pixels, grid.w, grid.h), 0, 0);
  const target = canvas.getContext("2d");
  target.imageSmoothingEnabled = false;
  target.drawImage(small, 0, 0, canvas.width, canvas.height);
  target.imageSmoothingEnabled = true;
}

function outlineCell(canvas, grid, patch, line, colour, dash = []) {
  const pen = canvas.getContext("2d");
  const [cw, ch] = [canvas.width / grid.w, canvas.height / grid.h];
  const box = [(patch % grid.w) * cw, Math.floor(patch / grid.w) * ch, cw, ch];
  for (const [width, stroke, pattern] of [[line * 2.2, "rgba(15,18,24,.85)", []], [line, colour, dash]]) {
    Object.assign(pen, { lineWidth: width, strokeStyle: stroke });
    pen.setLineDash(pattern);
    pen.strokeRect(...box);
  }
  pen.setLineDash([]);
}

function markMatch(canvas, grid, patch, radius, filled) {
  const pen = canvas.getContext("2d");
  const x = ((patch % grid.w) + 0.5) * (canvas.width / grid.w);
  const y = (Math.floor(patch / grid.w) + 0.5) * (canvas.height / grid.h);
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  Object.assign(pen, { lineWidth: radius * 0.75, strokeStyle: "rgba(15,18,24,.9)" });
  pen.stroke();
  Object.assign(pen, { lineWidth: radius * 0.4, strokeStyle: "#fff", fillStyle: filled ? "#E69F00" : "rgba(255,255,255,.9)" });
  pen.fill();
  pen.stroke();
}

// ---- the widget -----------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const data = readPayload(model);
  const state = { head: 0, common: false, opacity: 0.85, images: null, maps: [], scaled: new Map() };
  const pick = () => model.get("pick");
  const cleanups = [];
  const watch = (name, run) => {
    model.on(`change:${name}`, run);
    cleanups.push(() => model.off(`change:${name}`, run));
  };
  let saving = 0;
  const set = (name, value) => {
    model.set(name, value);
    clearTimeout(saving); // a drag makes many changes; the kernel needs the last one
    saving = setTimeout(() => model.save_changes(), 80);
  };

  // -- computing: what every frame shows for the pick
  function shown() {
    return model.get("encoder") === "compare" ? data.encoders.map((_, i) => i) : [Math.max(0, data.encoders.findIndex((e) => e.name === model.get("encoder")))];
  }

  function compute() {
    const { frame, row, column, matches: known } = pick();
    const key = [frame, row, column].join(",");
    if (key === state.key) return;
    Object.assign(state, { key, started: performance.now() });
    const query = frame * data.P + row * data.w + column;
    state.maps = data.encoders.map((encoder) => {
      const all = cosines(encoder, query, data.N * data.P);
      return Array.from({ length: data.N }, (_, i) => all.subarray(i * data.P, (i + 1) * data.P));
    });
    state.best = state.maps.map((maps) => maps.map(indexOfLargest));
    state.ceiling = state.maps.map((maps, e) => Math.max(...maps.map((values, i) => (i === frame && data.N > 1 ? -1 : values[state.best[e][i]]))));
    if (!known) set("pick", { frame, row, column, matches: matches() });
  }

  function matches() {
    return Object.fromEntries(
      data.encoders.map(({ name }, e) => [
        name,
        state.best[e]
          .map((patch, frame) => ({ frame, row: Math.floor(patch / data.w), column: patch % data.w, cosine: Math.round(1e4 * state.maps[e][frame][patch]) / 1e4 }))
          .filter(({ frame }) => frame !== pick().frame),
      ]),
    );
  }

  function choose(frame, row, column) {
    const old = pick();
    const next = { frame: clamp(frame, 0, data.N - 1), row: clamp(row, 0, data.h - 1), column: clamp(column, 0, data.w - 1) };
    if (old.frame === next.frame && old.row === next.row && old.column === next.column) return;
    if (next.frame === model.get("frame") && next.frame !== old.frame) set("frame", old.frame); // query and target change places
    set("pick", next);
  }

  const gridInUse = () => (model.get("mode") === "attention" ? data.looks : data);

  // What one frame shows: {grid, codes: (P) 0..255, top: patches, text}; no codes where there is nothing to show.
  function view(frame, e, count) {
    if (model.get("mode") === "attention") {
      const values = attention(data, pick(), frame, state.head);
      if (!values) return { text: frame === pick().frame ? "query" : "not looked at" };
      const top = largest(values, count);
      const peak = values[top[0]] || 1;
      return { grid: data.looks, codes: toCodes(values, (v) => v / peak), top, text: `most ${(100 * peak).toFixed(1)} %` };
    }
    const values = state.maps[e][frame];
    const tau = model.get("temperature");
    const best = values[state.best[e][frame]];
    const ceiling = state.common ? state.ceiling[e] : best;
    const codes = toCodes(values, (v) => Math.min(1, Math.exp((v - ceiling) / tau)));
    return { grid: data, codes, top: largest(values, count), text: `cosine ${best.toFixed(2)}` };
  }

  // Channel with the largest share at a patch, and that share.
  function label(frame, patch) {
    const at = frame * data.P + patch;
    return { channel: data.channel[at], share: data.share[at] / 255 };
  }

  function drawLabels(canvas, frame) {
    const cells = new Uint32Array(data.P);
    for (let patch = 0; patch < data.P; patch++) {
      const { channel, share } = label(frame, patch);
      if (channel) cells[patch] = packed(data.labels.palette[channel], 255 * state.opacity * 0.85 * share);
    }
    paintCells(canvas, data, cells);
  }

  // The frame's picture in the size of a canvas, kept until sizes change.
  function base(frame, kind, width, height) {
    const key = [frame, kind, width].join();
    if (!state.scaled.has(key)) {
      const copy = element("canvas", { width, height });
      const pen = copy.getContext("2d");
      pen.imageSmoothingQuality = "high";
      pen.drawImage(state.images[frame][kind], 0, 0, width, height);
      state.scaled.set(key, copy);
    }
    return state.scaled.get(key);
  }

  // Draw one frame as seen by encoder e; e < 0 draws the query's picture.
  function draw(canvas, frame, e, large) {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.max(40, Math.round(canvas.clientWidth * ratio));
    const height = Math.round((width * data.frames.size[0]) / data.frames.size[1]);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    const queryFrame = pick().frame;
    const isQuery = e < 0 || (frame === queryFrame && !large);
    const mode = model.get("mode");
    const looked = mode === "labels" || isQuery ? {} : view(frame, e, large ? model.get("top_k") : 1);
    pen.drawImage(base(frame, looked.codes ? "grey" : "colour", width, height), 0, 0);
    if (mode === "labels") drawLabels(canvas, frame);
    if (looked.codes) {
      const cells = Uint32Array.from(looked.codes, (code) => state.table[code]);
      paintCells(canvas, looked.grid, cells);
      const radius = (large ? 4.5 : 2.6) * ratio;
      if (large) for (const patch of looked.top.slice(1).reverse()) markMatch(canvas, looked.grid, patch, radius * 0.55, false);
      markMatch(canvas, looked.grid, looked.top[0], radius, true);
    }
    if (frame === queryFrame && (isQuery || large)) outlineCell(canvas, gridInUse(), patchOn(gridInUse(), data, pick()), (large ? 2 : 1.4) * ratio, "#fff");
    if (!isQuery && !looked.codes && mode === "attention") {
      pen.fillStyle = "rgba(15,18,24,.55)";
      pen.fillRect(0, 0, width, height);
    }
    return looked.text || "";
  }

  // -- the page
  const controls = element("div", { className: "tcx-head" });
  const panes = element("div", { className: "tcx-panes" });
  const strip = element("div", { className: "tcx-strip" });
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite" });
  const scale = element("div", { className: "tcx-scale" });
  const note = element("div", { className: "tcx-note", textContent: data.note });
  const root = frameOfWidget(el, "Correspondence explorer");
  root.append(controls, panes, element("div", { className: "tcx-time" }), strip, element("div", { className: "tcx-foot" }, scale, status), note);

  function cellAt(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const at = (value, size, cells) => clamp(Math.floor((value / size) * cells), 0, cells - 1);
    return [at(event.clientY - box.top, box.height, data.h), at(event.clientX - box.left, box.width, data.w)];
  }

  // A canvas on which pressing and dragging picks patches of `frameOf()` as it was when the press began.
  function pickable(canvas, frameOf) {
    let held = -1;
    canvas.addEventListener("pointerdown", (event) => {
      held = frameOf();
      canvas.setPointerCapture(event.pointerId);
      choose(held, ...cellAt(canvas, event));
    });
    canvas.addEventListener("pointermove", (event) => held >= 0 && choose(held, ...cellAt(canvas, event)));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (held = -1));
    return canvas;
  }

  function pane(title, aria, frameOf, keys) {
    const canvas = element("canvas", { className: "tcx-canvas", tabIndex: 0, role: "application", "aria-label": aria });
    canvas.style.aspectRatio = `${data.frames.size[1]} / ${data.frames.size[0]}`;
    canvas.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 4 : 1;
      const move = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key];
      if (!move && event.key !== "Enter") return;
      event.preventDefault();
      keys(move || [0, 0], event.key);
    });
    const heading = element("div", { className: "tcx-title" }, element("b", { textContent: title }), element("span"));
    return { node: element("div", { className: "tcx-pane" }, heading, pickable(canvas, frameOf)), canvas, heading };
  }

  const queryPane = pane("query", "Query frame. Arrow keys move the patch, with shift by four.", () => pick().frame, ([dr, dc]) => {
    const { frame, row, column } = pick();
    choose(frame, row + dr, column + dc);
  });
  const targetPanes = data.encoders.map(({ name }, e) =>
    pane(name, `Matches of ${name}. Left and right arrow go through time, enter takes the best match as the query.`, () => model.get("frame"), ([dr, dc], key) => {
      if (key !== "Enter") return set("frame", clamp(model.get("frame") + Math.sign(dr + dc), 0, data.N - 1));
      const { grid, top } = view(model.get("frame"), e, 1);
      if (!top) return;
      const [row, column] = [Math.floor(top[0] / grid.w), top[0] % grid.w];
      choose(model.get("frame"), Math.floor(((row + 0.5) * data.h) / grid.h), Math.floor(((column + 0.5) * data.w) / grid.w));
    }),
  );
  panes.append(queryPane.node, ...targetPanes.map(({ node }) => node));

  const thumbs = data.encoders.map((encoder, e) => {
    const row = element("div", { className: "tcx-row", role: "list", "aria-label": `Frames, matches of ${encoder.name}` });
    const canvases = data.names.map((name, frame) => {
      const canvas = pickable(element("canvas", { className: "tcx-thumb" }), () => frame);
      canvas.style.aspectRatio = `${data.frames.size[1]} / ${data.frames.size[0]}`;
      const caption = element("button", { type: "button", className: "tcx-caption", textContent: name, title: `compare with ${name}`, onclick: () => set("frame", frame) });
      row.append(element("div", { className: "tcx-cell", role: "listitem" }, canvas, caption));
      return { canvas, caption };
    });
    strip.append(row);
    return { row, canvases };
  });

  // -- controls
  function segmented(name, options, only, current, change) {
    const buttons = options.map(([value, text]) => element("button", { type: "button", textContent: text, "data-value": value, onclick: () => change(value) }));
    const update = () => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.value === current())));
    const node = element("div", { className: "tcx-segments", role: "group", "aria-label": name }, ...buttons);
    node.dataset.modes = only;
    switches.append(node);
    update();
    return update;
  }

  function slider(text, attributes, only, read, change) {
    const output = element("output");
    const input = element("input", { type: "range", ...attributes, "aria-label": text, oninput: () => change(Number(input.value)) });
    const update = () => ([input.value, output.textContent] = read());
    const node = element("label", { className: "tcx-slider" }, element("span", { textContent: text }), input, output);
    node.dataset.modes = only;
    sliders.append(node);
    update();
    return update;
  }

  const [switches, sliders] = [element("div", { className: "tcx-controls" }), element("div", { className: "tcx-controls" })];
  controls.append(switches, sliders);
  const updates = [];
  const modes = [["similarity", "Similarity"], ...(data.attention ? [["attention", "Cross-attention"]] : []), ...(data.labels ? [["labels", "Propagated label"]] : [])];
  if (modes.length > 1) updates.push(segmented("What is shown", modes, "similarity attention labels", () => model.get("mode"), (value) => set("mode", value)));
  if (data.encoders.length > 1) {
    const options = [...data.encoders.map(({ name }) => [name, name]), ["compare", "Compare"]];
    updates.push(segmented("Encoder", options, "similarity", () => model.get("encoder"), (value) => set("encoder", value)));
  }
  const log = { min: -2, max: 0, step: 0.02 };
  updates.push(slider("temperature", log, "similarity", () => [Math.log10(model.get("temperature")), model.get("temperature").toFixed(2)], (v) => set("temperature", Number((10 ** v).toPrecision(3)))));
  updates.push(slider("top k", { min: 1, max: DOTS, step: 1 }, "similarity attention", () => [model.get("top_k"), model.get("top_k")], (v) => set("top_k", v)));
  updates.push(slider("overlay", { min: 0, max: 1, step: 0.05 }, "similarity attention labels", () => [state.opacity, `${Math.round(100 * state.opacity)} %`], (v) => ((state.opacity = v), schedule())));
  const common = element("input", { type: "checkbox", onchange: () => ((state.common = common.checked), schedule()) });
  const oneScale = element("label", { className: "tcx-check", title: "compare maps between frames instead of stretching each" }, common, " one scale for all frames");
  oneScale.dataset.modes = "similarity";
  sliders.append(oneScale);
  if (data.attention?.heads) {
    const names = ["mean", ...Array.from({ length: data.attention.heads }, (_, i) => `head ${i + 1}`)];
    const head = element("select", { "aria-label": "attention head", onchange: () => ((state.head = head.selectedIndex), schedule()) });
    head.append(...names.map((name) => element("option", { textContent: name })));
    const node = element("label", { className: "tcx-check" }, "head ", head);
    node.dataset.modes = "attention";
    switches.append(node);
  }

  const clock = timeline(root.querySelector(".tcx-time"), data.names, "time: frame compared with the query", () => model.get("frame"), (frame) => set("frame", frame));

  function describe() {
    const { frame, row, column } = pick();
    const target = model.get("frame");
    let where = `${data.names[frame]}, row ${row}, column ${column}`;
    if (model.get("mode") === "labels") {
      const { channel, share } = label(frame, row * data.w + column);
      return `${where}: ${data.labels.names[channel]}, ${(100 * share).toFixed(0)} %.`;
    }
    if (model.get("mode") === "attention") {
      const values = attention(data, pick(), target, state.head);
      const { w } = data.looks;
      const cell = patchOn(data.looks, data, pick());
      where = `${data.names[frame]}, row ${Math.floor(cell / w)}, column ${cell % w}`;
      if (!values) return `${where}. The decoder did not look from here at ${data.names[target]}.`;
      const [top] = largest(values, 1);
      return `${where}. Looks most at row ${Math.floor(top / w)}, column ${top % w} of ${data.names[target]} (${(100 * values[top]).toFixed(1)} %).`;
    }
    const found = shown().map((e) => {
      const patch = state.best[e][target];
      const name = data.encoders.length > 1 ? `${data.encoders[e].name}: ` : "";
      return `${name}row ${Math.floor(patch / data.w)}, column ${patch % data.w}, cosine ${state.maps[e][target][patch].toFixed(2)}`;
    });
    return `${where}. Best match in ${data.names[target]}: ${found.join("; ")}.`;
  }

  function drawScale() {
    const mode = model.get("mode");
    scale.replaceChildren();
    if (mode === "labels") {
      data.labels.names.forEach((name, channel) => {
        if (!channel) return;
        const swatch = element("i", { className: "tcx-swatch" });
        swatch.style.background = `rgb(${data.labels.palette[channel].join(",")})`;
        scale.append(element("span", {}, swatch, name));
      });
      return;
    }
    const bar = element("i", { className: "tcx-bar" });
    bar.style.background = `linear-gradient(90deg, ${Array.from({ length: 9 }, (_, i) => `rgb(${data.colour(Math.round((255 * i) / 8))})`).join(",")})`;
    const low = mode === "attention" ? "no attention" : `cosine ${(3 * model.get("temperature")).toFixed(2)} below`;
    scale.append(element("span", { textContent: low }), bar, element("span", { textContent: mode === "attention" ? "most" : "the best match" }));
  }

  function redraw() {
    state.pending = 0;
    if (!state.images) return;
    const started = state.started || performance.now();
    state.started = 0;
    const target = clamp(model.get("frame"), 0, data.N - 1);
    const mode = model.get("mode");
    // Opaque where it is alike, nearly clear where it is not: the picture stays visible below.
    state.table = Uint32Array.from({ length: 256 }, (_, code) => packed(data.colour(code), 255 * state.opacity * (0.2 + 0.8 * (code / 255))));
    const visible = mode === "similarity" ? shown() : [0];
    queryPane.heading.lastChild.textContent = data.names[pick().frame];
    targetPanes.forEach(({ node }, e) => (node.hidden = !visible.includes(e)));
    thumbs.forEach(({ row }, e) => (row.hidden = !visible.includes(e)));
    panes.style.setProperty("--panes", 1 + visible.length);
    draw(queryPane.canvas, pick().frame, -1, true);
    for (const e of visible) {
      const text = draw(targetPanes[e].canvas, target, e, true);
      const title = mode === "similarity" ? data.encoders[e].name : mode === "attention" ? "decoder" : "labels";
      targetPanes[e].heading.firstChild.textContent = title;
      targetPanes[e].heading.lastChild.textContent = [data.names[target], text].filter(Boolean).join(" · ");
      thumbs[e].canvases.forEach(({ canvas, caption }, frame) => {
        draw(canvas, frame, e, false);
        canvas.parentNode.dataset.role = frame === pick().frame ? "query" : frame === target ? "target" : "";
        caption.setAttribute("aria-pressed", String(frame === target));
      });
    }
    updates.forEach((update) => update());
    clock.update();
    for (const node of controls.querySelectorAll("[data-modes]")) node.hidden = !node.dataset.modes.split(" ").includes(mode);
    drawScale();
    const text = describe();
    if (status.textContent !== text) status.textContent = text;
    root.dataset.pick = [pick().frame, pick().row, pick().column].join(",");
    root.dataset.milliseconds = (performance.now() - started).toFixed(1);
    root.dataset.ready = "true";
  }

  function schedule() {
    if (!state.pending) state.pending = requestAnimationFrame(redraw);
  }

  watch("pick", () => {
    compute();
    schedule();
  });
  for (const name of ["frame", "mode", "encoder", "temperature", "top_k"]) watch(name, schedule);
  const resized = new ResizeObserver(() => {
    state.scaled.clear();
    schedule();
  });
  resized.observe(root);
  compute();
  decodeFrames(data.files).then((images) => {
    state.images = images;
    schedule();
  });
  return () => {
    clock.stop();
    clearTimeout(saving);
    cancelAnimationFrame(state.pending);
    resized.disconnect();
    cleanups.forEach((run) => run());
  };
}

export default { render };

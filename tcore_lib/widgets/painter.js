// The mask painter: objects are painted on the first frame, the kernel carries them through the clip, the result plays.
//
// The mask has one byte per pixel of the frame (0 = background, 1 ... = objects), row by row. H, W: the frame's size.

const UNDO = 20; // strokes that can be taken back

function render({ model, el }) {
  const meta = model.get("_meta");
  const [H, W] = meta.frames.size;
  const colours = meta.palette.map(([r, g, b]) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0);
  const state = { images: [], results: [], frame: 0, tool: "brush", object: 1, radius: Math.round(H / 24), undo: [], last: null, cursor: null };
  let mask = new Uint8Array(asBytes(model.get("_mask")));
  if (mask.length !== H * W) mask = new Uint8Array(H * W);
  const stamp = element("canvas", { width: W, height: H }).getContext("2d", { willReadFrequently: true });
  const layer = element("canvas", { width: W, height: H });
  const layerPixels = new ImageData(W, H);
  const layerColours = new Uint32Array(layerPixels.data.buffer);

  // -- the page
  const root = frameOfWidget(el, "Mask painter");
  const controls = element("div", { className: "tcx-controls" });
  const canvas = element("canvas", { className: "tcx-canvas", tabIndex: 0, role: "application", "aria-label": "First frame. Drag to paint. Arrow keys move the brush, space paints, U takes back." });
  Object.assign(canvas.style, { aspectRatio: `${W} / ${H}`, maxWidth: `calc(75vh * ${W / H})` }); // all of it on the screen
  const time = element("div", { className: "tcx-time" });
  const strip = element("div", { className: "tcx-row" });
  const progress = element("progress", { className: "tcx-progress", max: meta.names.length, value: 0, "aria-label": "frames labelled" });
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite" });
  const file = element("input", { type: "file", accept: "image/png", hidden: true });
  root.append(controls, canvas, time, strip, progress, status, file);

  // -- the mask
  function repaint(x0 = 0, y0 = 0, x1 = W, y1 = H) {
    for (let y = y0; y < y1; y++) for (let i = y * W + x0; i < y * W + x1; i++) layerColours[i] = mask[i] ? colours[mask[i] % colours.length] : 0;
    layer.getContext("2d").putImageData(layerPixels, 0, 0, x0, y0, x1 - x0, y1 - y0);
  }

  // Give the pixels that `draw` covers on an empty canvas the current object, within the box it says it stays in.
  function apply(draw, x0, y0, x1, y1) {
    [x0, y0, x1, y1] = [clamp(Math.floor(x0), 0, W), clamp(Math.floor(y0), 0, H), clamp(Math.ceil(x1), 0, W), clamp(Math.ceil(y1), 0, H)];
    if (x1 <= x0 || y1 <= y0) return;
    stamp.clearRect(0, 0, W, H);
    draw(stamp);
    const covered = stamp.getImageData(x0, y0, x1 - x0, y1 - y0).data;
    const id = state.tool === "eraser" ? 0 : state.object;
    for (let y = y0, at = 3; y < y1; y++) for (let x = x0; x < x1; x++, at += 4) if (covered[at] > 127) mask[y * W + x] = id;
    repaint(x0, y0, x1, y1);
  }

  function line([ax, ay], [bx, by]) {
    const r = state.radius;
    const draw = (pen) => {
      Object.assign(pen, { lineWidth: 2 * r, lineCap: "round", strokeStyle: "#000" });
      pen.beginPath();
      pen.moveTo(ax, ay);
      pen.lineTo(bx + 0.01, by); // a dot has some length, or nothing is drawn
      pen.stroke();
    };
    apply(draw, Math.min(ax, bx) - r - 1, Math.min(ay, by) - r - 1, Math.max(ax, bx) + r + 2, Math.max(ay, by) + r + 2);
  }

  function lasso(points) {
    const draw = (pen) => {
      pen.beginPath();
      points.forEach(([x, y]) => pen.lineTo(x, y));
      pen.fill();
    };
    apply(draw, 0, 0, W, H);
  }

  const remember = () => (state.undo = [...state.undo.slice(1 - UNDO), mask.slice()]);

  function changed() {
    state.results = [];
    progress.value = 0;
    model.set("_mask", new DataView(mask.slice().buffer));
    model.save_changes();
    const objects = new Set(mask);
    objects.delete(0);
    tell(objects.size ? `${objects.size} object${objects.size > 1 ? "s" : ""} painted. Propagate carries them through ${meta.names.length} frames.` : "Paint the objects of the first frame.");
    schedule();
  }

  function replaceMask(bytes) {
    remember();
    mask = new Uint8Array(bytes);
    repaint();
    changed();
  }

  // -- drawing
  function draw(target, frame) {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.max(40, Math.round(target.clientWidth * ratio));
    const height = Math.round((width * H) / W);
    if (target.width !== width || target.height !== height) Object.assign(target, { width, height });
    const pen = target.getContext("2d");
    pen.globalAlpha = 1;
    pen.drawImage(state.images[frame], 0, 0, width, height);
    const labels = frame === 0 ? layer : state.results[frame];
    pen.globalAlpha = 0.55;
    if (labels) pen.drawImage(labels, 0, 0, width, height);
    pen.globalAlpha = 1;
    return pen;
  }

  function redraw() {
    state.pending = 0;
    if (!state.images.length) return;
    const pen = draw(canvas, state.frame);
    const scale = canvas.width / W;
    const path = state.path && state.tool === "lasso" ? state.path : null;
    if (path) {
      pen.beginPath();
      path.forEach(([x, y]) => pen.lineTo(x * scale, y * scale));
      Object.assign(pen, { lineWidth: 2, strokeStyle: "#fff" });
      pen.stroke();
    } else if (state.cursor && state.frame === 0 && state.tool !== "lasso") {
      for (const [lineWidth, strokeStyle] of [[3.5, "rgba(15,18,24,.8)"], [1.5, "#fff"]]) {
        Object.assign(pen, { lineWidth, strokeStyle });
        pen.beginPath();
        pen.arc(state.cursor[0] * scale, state.cursor[1] * scale, state.radius * scale, 0, 2 * Math.PI);
        pen.stroke();
      }
    }
    thumbs.forEach(({ canvas: thumb, cell }, frame) => {
      draw(thumb, frame);
      cell.dataset.role = frame === state.frame ? "target" : "";
    });
    updates.forEach((update) => update());
    clock.update();
    root.dataset.ready = "true";
  }

  function schedule() {
    if (!state.pending) state.pending = requestAnimationFrame(redraw);
  }

  function show(frame) {
    state.frame = frame;
    schedule();
  }

  function tell(text) {
    status.textContent = text;
  }

  // -- painting
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * W, ((event.clientY - box.top) / box.height) * H];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (state.frame !== 0) return tell("Masks are painted on the first frame: move the slider to its start.");
    canvas.setPointerCapture(event.pointerId);
    remember();
    state.path = [at(event)];
    if (state.tool !== "lasso") line(state.path[0], state.path[0]);
    schedule();
  });
  canvas.addEventListener("pointermove", (event) => {
    state.cursor = at(event);
    if (state.path) {
      const before = state.path[state.path.length - 1];
      state.path.push(state.cursor);
      if (state.tool !== "lasso") line(before, state.cursor);
    }
    schedule();
  });
  const finish = () => {
    if (!state.path) return;
    if (state.tool === "lasso") lasso(state.path);
    state.path = null;
    changed();
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);
  canvas.addEventListener("pointerleave", () => {
    state.cursor = null;
    schedule();
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    const [x, y] = state.cursor || [W / 2, H / 2];
    const step = state.radius * (event.shiftKey ? 2 : 0.5);
    if (move) state.cursor = [clamp(x + move[0] * step, 0, W), clamp(y + move[1] * step, 0, H)];
    else if (event.key === " " && state.frame === 0) {
      remember();
      line([x, y], [x, y]);
      changed();
    } else if (event.key === "u") takeBack();
    else return;
    event.preventDefault();
    schedule();
  });

  function takeBack() {
    if (!state.undo.length) return;
    mask = state.undo.pop();
    repaint();
    changed();
  }

  // -- controls
  const updates = [];
  const button = (text, run, more = {}) => element("button", { type: "button", textContent: text, onclick: run, ...more });
  function segments(name, options, current, choose) {
    const buttons = options.map(([value, text, colour]) => {
      const node = button(text, () => (choose(value), schedule()));
      if (colour) {
        const swatch = element("i", { className: "tcx-swatch" });
        swatch.style.background = `rgb(${colour.join(",")})`;
        node.prepend(swatch);
      }
      return [value, node];
    });
    updates.push(() => buttons.forEach(([value, node]) => node.setAttribute("aria-pressed", String(value === current()))));
    controls.append(element("div", { className: "tcx-segments", role: "group", "aria-label": name }, ...buttons.map(([, node]) => node)));
  }
  segments("Tool", [["brush", "Brush"], ["lasso", "Lasso"], ["eraser", "Eraser"]], () => state.tool, (tool) => (state.tool = tool));
  if (meta.palette.length > 2) {
    const objects = meta.palette.slice(1).map((colour, i) => [i + 1, String(i + 1), colour]);
    segments("Object", objects, () => state.object, (object) => (state.object = object));
  }
  const size = element("input", { type: "range", min: 1, max: Math.round(H / 6), step: 1, "aria-label": "brush radius in pixels" });
  const sizeText = element("output");
  size.addEventListener("input", () => ((state.radius = Number(size.value)), schedule()));
  updates.push(() => ([size.value, sizeText.textContent] = [state.radius, `${state.radius} px`]));
  controls.append(element("label", { className: "tcx-slider" }, element("span", { textContent: "brush" }), size, sizeText));
  const bordered = (...nodes) => element("div", { className: "tcx-segments" }, ...nodes);
  controls.append(bordered(button("Take back", takeBack), button("Clear", () => replaceMask(new Uint8Array(H * W))), button("Load PNG", () => file.click())));
  const go = button("Propagate", () => ask({ kind: "propagate" }, [mask.slice().buffer]), { className: "tcx-go" });
  controls.append(go);
  if (meta.saves) controls.append(bordered(button("Save PNGs and mp4", () => ask({ kind: "save" }, []))));
  file.addEventListener("change", async () => {
    if (file.files.length) ask({ kind: "load" }, [await file.files[0].arrayBuffer()]);
    file.value = "";
  });

  // -- the kernel
  function ask(content, buffers) {
    tell("Asking the kernel ...");
    clearTimeout(state.waiting);
    state.waiting = setTimeout(() => tell("No answer yet: this needs a running kernel that is not busy."), 4000);
    model.send(content, undefined, buffers);
  }

  async function place(frame, bytes) {
    state.results[frame] = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    schedule();
  }

  async function onMessage(content, buffers) {
    clearTimeout(state.waiting);
    if (content.text) tell(content.text);
    if (content.kind === "mask") replaceMask(asBytes(buffers[0]));
    if (content.kind === "started") state.results = [];
    go.disabled = content.kind === "started" || content.kind === "frame";
    if (content.kind === "frame") {
      progress.value = content.frame + 1;
      if (state.frame === content.frame - 1) state.frame = content.frame; // follow, unless the reader looks elsewhere
      await place(content.frame, asBytes(buffers[0]));
    }
  }
  model.on("msg:custom", onMessage);

  const clock = timeline(time, meta.names, "time: frame shown", () => state.frame, show);
  const thumbs = meta.names.map((name, frame) => {
    const thumb = element("canvas", { className: "tcx-thumb" });
    thumb.style.aspectRatio = `${W} / ${H}`;
    const cell = element("div", { className: "tcx-cell" }, thumb, element("button", { type: "button", className: "tcx-caption", textContent: name, onclick: () => show(frame) }));
    thumb.addEventListener("click", () => show(frame));
    strip.append(cell);
    return { canvas: thumb, cell };
  });
  const fromModel = () => {
    const given = asBytes(model.get("_mask"));
    if (given.length !== H * W || given.every((id, i) => id === mask[i])) return;
    mask = given.slice();
    repaint();
    schedule();
  };
  model.on("change:_mask", fromModel);
  const resized = new ResizeObserver(schedule);
  resized.observe(root);
  repaint();
  tell("Paint the objects of the first frame.");
  const files = splitBytes(asBytes(model.get("_frames")), meta.frames.lengths);
  Promise.all(files.map((jpeg) => createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })))).then((images) => {
    state.images = images;
    const { lengths } = model.get("_results_meta");
    splitBytes(asBytes(model.get("_results")), lengths || []).forEach((png, frame) => place(frame, png));
    if (lengths && lengths.length) progress.value = lengths.length;
    schedule();
  });
  return () => {
    clock.stop();
    clearTimeout(state.waiting);
    cancelAnimationFrame(state.pending);
    resized.disconnect();
    model.off("msg:custom", onMessage);
    model.off("change:_mask", fromModel);
  };
}

export default { render };

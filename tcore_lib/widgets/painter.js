// The mask painter: objects are painted on the first frame, the kernel carries them through the clip, the result plays.
//
// The mask has one byte per pixel of the frame (0 = background, 1 ... = objects), row by row. H, W: the frame's size.

const UNDO = 20; // strokes that can be taken back

function render({ model, el }) {
  const meta = model.get("_meta");
  const [H, W] = meta.frames.size;
  const colours = meta.palette.map(([r, g, b]) => (b << 16) | (g << 8) | r);
  const state = { images: [], results: [], frame: 0, tool: "brush", object: 1, radius: Math.round(H / 24), undo: [] };
  let mask = new Uint8Array(asBytes(model.get("_mask")));
  const stamp = element("canvas", { width: W, height: H }).getContext("2d", { willReadFrequently: true });
  const layer = element("canvas", { width: W, height: H });
  const layerPixels = new ImageData(W, H);
  const layerColours = new Uint32Array(layerPixels.data.buffer);

  // -- the page

  const root = frameOfWidget(el, "Mask painter");
  const controls = element("div", { className: "tcx-controls" });
  const hint = "First frame. Drag to paint. Arrow keys move the brush, space paints, U takes back.";
  const canvas = element("canvas", { className: "tcx-canvas", tabIndex: 0, role: "application", "aria-label": hint });
  Object.assign(canvas.style, { aspectRatio: `${W} / ${H}`, maxWidth: `calc(75vh * ${W / H})` }); // all of it on the screen
  const [time, strip] = ["tcx-time", "tcx-row"].map((className) => element("div", { className }));
  const count = { max: meta.names.length, value: 0, "aria-label": "frames labelled" };
  const progress = element("progress", { className: "tcx-progress", ...count });
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite" });
  const file = element("input", { type: "file", accept: "image/png", hidden: true });
  root.append(controls, canvas, time, strip, progress, status, file);
  const tell = (text) => (status.textContent = text);
  const { schedule, stop } = drawer(root, redraw);

  // -- the mask

  // Objects in their colours with opaque outlines, as `painter._transparent` paints results.
  function repaint() {
    for (let i = 0; i < mask.length; i++) {
      const id = mask[i];
      const edge = id && [i - 1, i + 1, i - W, i + W].some((near) => mask[near] !== id);
      layerColours[i] = id ? ((edge ? 255 : 140) << 24) | colours[id % colours.length] : 0;
    }
    layer.getContext("2d").putImageData(layerPixels, 0, 0);
  }

  // Give the pixels that `draw` covers on an empty canvas to the current object.
  function apply(draw) {
    stamp.clearRect(0, 0, W, H);
    stamp.beginPath();
    draw(stamp);
    const covered = stamp.getImageData(0, 0, W, H).data;
    for (let i = 0; i < mask.length; i++) if (covered[4 * i + 3] > 127) mask[i] = state.tool === "eraser" ? 0 : state.object;
    repaint();
  }

  const line = ([ax, ay], [bx, by]) =>
    apply((pen) => {
      Object.assign(pen, { lineWidth: 2 * state.radius, lineCap: "round", strokeStyle: "#000" });
      pen.moveTo(ax, ay);
      pen.lineTo(bx + 0.01, by); // a dot has some length, or nothing is drawn
      pen.stroke();
    });

  const lasso = (points) =>
    apply((pen) => {
      points.forEach(([x, y]) => pen.lineTo(x, y));
      pen.fill();
    });

  const remember = () => (state.undo = [...state.undo.slice(1 - UNDO), mask.slice()]);

  function changed() {
    state.results = [];
    progress.value = 0;
    model.set("_mask", new DataView(mask.slice().buffer));
    model.save_changes();
    const objects = new Set(mask).size - mask.includes(0);
    const many = `${objects} object${objects > 1 ? "s" : ""} painted. Propagate carries them through ${meta.names.length} frames.`;
    tell(objects ? many : "Paint the objects of the first frame.");
    schedule();
  }

  function replaceMask(bytes) {
    mask = new Uint8Array(bytes);
    repaint();
    changed();
  }

  const takeBack = () => state.undo.length && replaceMask(state.undo.pop());

  // -- drawing

  function draw(target, frame) {
    fit(target, meta.frames.size);
    const pen = target.getContext("2d");
    pen.drawImage(state.images[frame], 0, 0, target.width, target.height);
    const labels = frame === 0 ? layer : state.results[frame];
    if (labels) pen.drawImage(labels, 0, 0, target.width, target.height);
    return pen;
  }

  function redraw() {
    if (!state.images.length) return;
    const pen = draw(canvas, state.frame);
    const scale = canvas.width / W;
    const stroke = (lineWidth, strokeStyle) => (Object.assign(pen, { lineWidth, strokeStyle }), pen.stroke());
    pen.beginPath();
    if (state.path && state.tool === "lasso") {
      state.path.forEach(([x, y]) => pen.lineTo(x * scale, y * scale));
      stroke(2, "#fff");
    } else if (state.cursor && state.frame === 0 && state.tool !== "lasso") {
      pen.arc(state.cursor[0] * scale, state.cursor[1] * scale, state.radius * scale, 0, 2 * Math.PI);
      stroke(3.5, "rgba(15,18,24,.8)");
      stroke(1.5, "#fff");
    }
    thumbs.forEach((thumb, frame) => {
      draw(thumb, frame);
      thumb.parentNode.dataset.role = frame === state.frame ? "target" : "";
    });
    panel.update();
    clock.update();
    root.dataset.ready = "true";
  }

  function show(frame) {
    state.frame = frame;
    schedule();
  }

  // -- painting

  function start() {
    if (state.frame !== 0) return tell("Masks are painted on the first frame: move the slider to its start.");
    remember();
    state.path = [];
  }
  function move([x, y]) {
    state.cursor = [x * W, y * H];
    if (state.path) {
      if (state.tool !== "lasso") line(state.path.at(-1) || state.cursor, state.cursor);
      state.path.push(state.cursor);
    }
    schedule();
  }
  function finish() {
    if (!state.path) return;
    if (state.tool === "lasso") lasso(state.path);
    state.path = null;
    changed();
  }
  onDrag(canvas, start, move, finish);
  canvas.addEventListener("pointerleave", () => ((state.cursor = null), schedule()));
  canvas.addEventListener("keydown", (event) => {
    const [x, y] = state.cursor || [W / 2, H / 2];
    const [down, right] = (MOVES[event.key] || []).map((step) => step * state.radius * (event.shiftKey ? 2 : 0.5));
    if (event.key in MOVES) state.cursor = [clamp(x + right, 0, W), clamp(y + down, 0, H)];
    else if (event.key === " " && state.frame === 0) {
      remember();
      line([x, y], [x, y]);
      changed();
    } else if (event.key === "u") takeBack();
    else return;
    event.preventDefault();
    schedule();
  });

  // -- controls

  const panel = controlPanel();
  const pick = (name) => [() => state[name], (value) => ((state[name] = value), schedule())];
  controls.append(panel.choice("Tool", [["brush", "Brush"], ["lasso", "Lasso"], ["eraser", "Eraser"]], ...pick("tool")));
  const objects = meta.palette.map((colour, id) => [id, String(id), colour]).slice(1);
  if (objects.length > 1) controls.append(panel.choice("Object", objects, ...pick("object")));
  const [range, radius] = [{ min: 1, max: Math.round(H / 6), step: 1 }, () => [state.radius, `${state.radius} px`]];
  controls.append(panel.slider("brush", "brush radius in pixels", range, radius, pick("radius")[1]));
  const clear = () => (remember(), replaceMask(new Uint8Array(H * W)));
  const edits = [button("Take back", takeBack), button("Clear", clear), button("Load PNG", () => file.click())];
  const go = button("Propagate", () => ask({ kind: "propagate" }, [mask.slice().buffer]), { className: "tcx-go" });
  controls.append(element("div", { className: "tcx-segments" }, ...edits), go);
  const save = button("Save PNGs and mp4", () => ask({ kind: "save" }, []));
  if (meta.saves) controls.append(element("div", { className: "tcx-segments" }, save));
  file.addEventListener("change", async () => {
    if (file.files.length) ask({ kind: "load" }, [await file.files[0].arrayBuffer()]);
    file.value = "";
  });
  const clock = timeline(time, meta.names, "time: frame shown", () => state.frame, show);
  const thumbs = meta.names.map((name, frame) => {
    const thumb = element("canvas", { className: "tcx-thumb", onclick: () => show(frame) });
    thumb.style.aspectRatio = `${W} / ${H}`;
    strip.append(element("div", { className: "tcx-cell" }, thumb, button(name, () => show(frame), { className: "tcx-caption" })));
    return thumb;
  });

  // -- the kernel

  function ask(content, buffers) {
    tell("Asking the kernel ...");
    clearTimeout(state.waiting);
    state.waiting = setTimeout(() => tell("No answer yet: this needs a running kernel that is not busy."), 4000);
    model.send(content, undefined, buffers);
  }

  async function place(frame, bytes) {
    state.results[frame] = await toBitmap(bytes, "image/png");
    schedule();
  }

  async function onMessage(content, buffers) {
    clearTimeout(state.waiting);
    if (content.text) tell(content.text);
    if (content.kind === "mask") remember(), replaceMask(asBytes(buffers[0]));
    if (content.kind === "started") state.results = [];
    go.disabled = content.kind === "started" || content.kind === "frame";
    if (content.kind === "frame") {
      progress.value = content.frame + 1;
      if (state.frame === content.frame - 1) state.frame = content.frame; // follow, unless the reader looks elsewhere
      await place(content.frame, asBytes(buffers[0]));
    }
  }

  function fromModel() {
    const given = asBytes(model.get("_mask"));
    if (given.length !== H * W || given.every((id, i) => id === mask[i])) return;
    mask = given.slice();
    repaint();
    schedule();
  }

  model.on("msg:custom", onMessage);
  model.on("change:_mask", fromModel);
  repaint();
  tell("Paint the objects of the first frame.");
  const files = splitBytes(asBytes(model.get("_frames")), meta.frames.lengths);
  Promise.all(files.map((jpeg) => toBitmap(jpeg, "image/jpeg"))).then((images) => {
    state.images = images;
    const { lengths = [] } = model.get("_results_meta");
    splitBytes(asBytes(model.get("_results")), lengths).forEach((png, frame) => place(frame, png));
    progress.value = lengths.length;
    schedule();
  });
  return () => {
    clock.stop();
    stop();
    clearTimeout(state.waiting);
    model.off("msg:custom", onMessage);
    model.off("change:_mask", fromModel);
  };
}

export default { render };

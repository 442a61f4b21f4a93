// The mask painter: objects are painted on the first frame, the kernel carries them through the clip, the result plays.
//
// A mask has one byte per pixel of the frame (0 = background, 1 ... = objects), row by row. H, W: the frame's size.

const FIRST = "Paint the objects of the first frame.";

function render({ model, el }) {
  const meta = model.get("_meta");
  const [H, W] = meta.frames.size;
  const page = openWidget(model, el, "Mask painter", redraw);
  const state = { frame: 0, object: 1, radius: Math.round(H / 24), undo: [], layers: [], cursor: null, last: null };
  const [inside, edge] = [140, 255].map((opacity) => meta.palette.map((rgb) => packed(rgb, opacity)));
  let mask = null;

  // -- masks

  // A label map as a picture: objects in their colours with opaque outlines.
  function layerOf(ids) {
    const colours = new Uint32Array(H * W);
    for (let i = 0; i < ids.length; i++) {
      if (!ids[i]) continue;
      const alone = ids[i - 1] === ids[i] && ids[i + 1] === ids[i] && ids[i - W] === ids[i] && ids[i + W] === ids[i];
      colours[i] = (alone ? inside : edge)[ids[i]];
    }
    return pixelCanvas(colours, W, H);
  }

  function showMask(ids) {
    mask = ids;
    state.layers = [layerOf(mask)]; // results belong to the mask before
    page.schedule();
  }

  function changeMask(ids) {
    showMask(ids);
    model.set("_mask", new DataView(mask.slice().buffer));
    model.save_changes();
    const objects = new Set(mask).size - mask.includes(0);
    tell(objects ? `Objects: ${objects}. Propagate carries them through ${meta.names.length} frames.` : FIRST);
  }

  // Give the pixels whose middle is within the brush's radius of a line to the object.
  function paintLine([ax, ay], [bx, by]) {
    const [dx, dy, id] = [bx - ax, by - ay, state.object];
    for (let i = 0; i < mask.length; i++) {
      const [x, y] = [(i % W) + 0.5 - ax, Math.floor(i / W) + 0.5 - ay];
      const along = clamp((x * dx + y * dy) / (dx * dx + dy * dy || 1), 0, 1);
      if ((x - along * dx) ** 2 + (y - along * dy) ** 2 <= state.radius ** 2) mask[i] = id;
    }
    showMask(mask);
  }

  const remember = () => (state.undo = [...state.undo.slice(-19), mask.slice()]); // 20 strokes can be taken back

  // -- the page

  const leave = () => ((state.cursor = null), page.schedule());
  const canvas = element("canvas", { className: "tcx-canvas", role: "img", onpointerleave: leave });
  canvas.setAttribute("aria-label", "First frame. Drag to paint.");
  canvas.style.maxWidth = `calc(75vh * ${W / H})`; // all of it on the screen
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite", textContent: FIRST });
  const tell = (text) => (status.textContent = text);
  const panel = controlPanel(page.closing);
  const pick = (name) => [() => state[name], (value) => ((state[name] = value), page.schedule())];
  const objects = meta.palette.map((colour, id) => (id ? [id, String(id), colour] : [0, "Eraser"]));
  const [range, radius] = [{ min: 1, max: Math.round(H / 6), step: 1 }, () => [state.radius, `${state.radius} px`]];
  const brush = panel.slider("brush", "brush radius in pixels", range, radius, pick("radius")[1]);
  const takeBack = () => state.undo.length && changeMask(state.undo.pop());
  const clear = () => (remember(), changeMask(new Uint8Array(H * W)));
  const go = button("Propagate", () => ask({ kind: "propagate" }, [mask.slice().buffer]), { className: "tcx-go" });
  const edits = box("tcx-segments", button("Take back", takeBack), button("Clear", clear));
  const controls = box("tcx-controls", panel.choice("Paint with", objects, ...pick("object")), brush, edits, go);
  if (meta.saves) controls.append(box("tcx-segments", button("Save PNGs and mp4", () => ask({ kind: "save" }, []))));
  page.root.append(controls, canvas, panel.timeline(meta.names, "time: frame shown", ...pick("frame")), status);

  function redraw() {
    const pen = canvas.getContext("2d");
    page.drawFrame(canvas, state.frame);
    if (state.layers[state.frame]) pen.drawImage(state.layers[state.frame], 0, 0, canvas.width, canvas.height);
    if (state.cursor && state.frame === 0) {
      const [scale, path] = [canvas.width / W, new Path2D()];
      path.arc(state.cursor[0] * scale, state.cursor[1] * scale, state.radius * scale, 0, 2 * Math.PI);
      strokeWithRim(pen, path, 1.5);
    }
    panel.update();
  }

  // -- painting

  function start([x, y]) {
    if (state.frame !== 0) return tell("Masks are painted on the first frame: move the slider to its start.");
    remember();
    state.last = [x * W, y * H];
  }
  function move([x, y]) {
    state.cursor = [x * W, y * H];
    if (state.last) {
      paintLine(state.last, state.cursor);
      state.last = state.cursor;
    }
    page.schedule();
  }
  function finish() {
    if (state.last) changeMask(mask);
    state.last = null;
  }
  onDrag(canvas, start, move, finish);

  // -- the kernel

  function ask(content, buffers) {
    tell("Asked the kernel. If nothing follows, it is busy or does not run.");
    model.send(content, undefined, buffers);
  }

  // A label map that comes as a grey PNG of ids.
  async function place(frame, png) {
    const pen = element("canvas", { width: W, height: H }).getContext("2d");
    pen.drawImage(await toBitmap(png, "image/png"), 0, 0);
    const pixels = pen.getImageData(0, 0, W, H).data;
    state.layers[frame] = layerOf(Uint8Array.from(mask, (_, i) => pixels[4 * i]));
    page.schedule();
  }

  async function onMessage(content, buffers) {
    tell(content.text);
    go.disabled = content.kind === "started" || content.kind === "frame";
    if (content.kind === "started") showMask(mask);
    if (content.kind !== "frame") return;
    if (state.frame === content.frame - 1) state.frame = content.frame; // follow, unless the reader looks elsewhere
    await place(content.frame, asBytes(buffers[0]));
  }

  function fromModel() {
    const given = asBytes(model.get("_mask")).slice();
    if (!mask || given.some((id, i) => id !== mask[i])) showMask(given);
  }

  page.listen("msg:custom", onMessage);
  page.listen("change:_mask", fromModel);
  fromModel();
  splitBytes(asBytes(model.get("_results")), model.get("_results_meta").lengths || []).forEach((png, frame) => place(frame, png));
  return page.close;
}

export default { render };

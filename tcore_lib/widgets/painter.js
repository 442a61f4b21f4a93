// The mask painter: objects are painted on the first frame, the kernel carries them through the clip, the result plays.
//
// A mask has one byte per pixel of the frame (0 = background, 1 ... = objects), row by row. H, W: the frame's size.

const UNDO = 20; // strokes that can be taken back
const FIRST = "Paint the objects of the first frame.";

function render({ model, el }) {
  const meta = model.get("_meta");
  const [H, W] = meta.frames.size;
  const page = openWidget(model, el, "Mask painter", redraw);
  const state = { frame: 0, tool: "brush", object: 1, radius: Math.round(H / 24), undo: [], layers: [], cursor: null, last: null };
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

  function setMask(ids) {
    mask = ids;
    state.layers = [layerOf(mask)]; // results belong to the mask before
    page.schedule();
  }

  function sendMask() {
    model.set("_mask", new DataView(mask.slice().buffer));
    model.save_changes();
    const objects = new Set(mask).size - mask.includes(0);
    const many = `${objects} object${objects > 1 ? "s" : ""} painted. Propagate carries them through ${meta.names.length} frames.`;
    tell(objects ? many : FIRST);
  }

  // Give the pixels whose middle is within the brush's radius of a line to the object.
  function paintLine([ax, ay], [bx, by]) {
    const [dx, dy, id] = [bx - ax, by - ay, state.tool === "eraser" ? 0 : state.object];
    for (let i = 0; i < mask.length; i++) {
      const [x, y] = [(i % W) + 0.5 - ax, Math.floor(i / W) + 0.5 - ay];
      const along = clamp((x * dx + y * dy) / (dx * dx + dy * dy || 1), 0, 1);
      if ((x - along * dx) ** 2 + (y - along * dy) ** 2 <= state.radius ** 2) mask[i] = id;
    }
    setMask(mask);
  }

  const remember = () => (state.undo = [...state.undo.slice(1 - UNDO), mask.slice()]);

  function replaceMask(ids) {
    setMask(ids);
    sendMask();
  }

  // -- the page

  const hint = "First frame. Drag to paint. Arrow keys move the brush, space paints, U takes back.";
  const about = { className: "tcx-canvas", tabIndex: 0, role: "application", "aria-label": hint, onkeydown: onKey };
  const canvas = page.newCanvas({ ...about, onpointerleave: () => ((state.cursor = null), page.schedule()) });
  canvas.style.maxWidth = `calc(75vh * ${W / H})`; // all of it on the screen
  const status = element("div", { className: "tcx-status", role: "status", "aria-live": "polite", textContent: FIRST });
  const tell = (text) => (status.textContent = text);
  const panel = controlPanel(page.closing);
  const pick = (name) => [() => state[name], (value) => ((state[name] = value), page.schedule())];
  const controls = box("tcx-controls", panel.choice("Tool", [["brush", "Brush"], ["eraser", "Eraser"]], ...pick("tool")));
  const objects = meta.palette.map((colour, id) => [id, String(id), colour]).slice(1);
  if (objects.length > 1) controls.append(panel.choice("Object", objects, ...pick("object")));
  const [range, radius] = [{ min: 1, max: Math.round(H / 6), step: 1 }, () => [state.radius, `${state.radius} px`]];
  controls.append(panel.slider("brush", "brush radius in pixels", range, radius, pick("radius")[1]));
  const takeBack = () => state.undo.length && replaceMask(state.undo.pop());
  const clear = () => (remember(), replaceMask(new Uint8Array(H * W)));
  const go = button("Propagate", () => ask({ kind: "propagate" }, [mask.slice().buffer]), { className: "tcx-go" });
  controls.append(box("tcx-segments", button("Take back", takeBack), button("Clear", clear)), go);
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

  function start() {
    if (state.frame !== 0) return tell("Masks are painted on the first frame: move the slider to its start.");
    remember();
    state.last = []; // pressed, nothing painted yet
  }
  function move([x, y]) {
    state.cursor = [x * W, y * H];
    if (state.last) {
      paintLine(state.last.length ? state.last : state.cursor, state.cursor);
      state.last = state.cursor;
    }
    page.schedule();
  }
  function finish() {
    if (state.last) sendMask();
    state.last = null;
  }
  onDrag(canvas, start, move, finish);
  function onKey(event) {
    const [x, y] = state.cursor || [W / 2, H / 2];
    const [down, right] = (MOVES[event.key] || []).map((step) => step * state.radius * (event.shiftKey ? 2 : 0.5));
    if (event.key in MOVES) state.cursor = [clamp(x + right, 0, W), clamp(y + down, 0, H)];
    else if (event.key === " ") start(), move([x / W, y / H]), finish();
    else if (event.key === "u") takeBack();
    else return;
    event.preventDefault();
    page.schedule();
  }

  // -- the kernel

  function ask(content, buffers) {
    tell("Asking the kernel ...");
    clearTimeout(state.waiting);
    state.waiting = setTimeout(() => tell("No answer yet: this needs a running kernel that is not busy."), 4000);
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
    clearTimeout(state.waiting);
    tell(content.text);
    go.disabled = content.kind === "started" || content.kind === "frame";
    if (content.kind === "started") setMask(mask);
    if (content.kind !== "frame") return;
    if (state.frame === content.frame - 1) state.frame = content.frame; // follow, unless the reader looks elsewhere
    await place(content.frame, asBytes(buffers[0]));
  }

  function fromModel() {
    const given = asBytes(model.get("_mask")).slice();
    if (!mask || given.some((id, i) => id !== mask[i])) setMask(given);
  }

  page.listen("msg:custom", onMessage);
  page.listen("change:_mask", fromModel);
  page.closing.push(() => clearTimeout(state.waiting));
  fromModel();
  splitBytes(asBytes(model.get("_results")), model.get("_results_meta").lengths || []).forEach((png, frame) => place(frame, png));
  return page.close;
}

export default { render };

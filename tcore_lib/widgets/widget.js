// What both widgets share; it is put in front of either module. No imports, no build step.

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// A new element; `on...` properties are listeners, names with a hyphen or unknown to the element are attributes.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const box = (className, ...children) => element("div", { className }, ...children);
const button = (text, onclick, more = {}) => element("button", { type: "button", textContent: text, onclick, ...more });
const swatch = (rgb) => element("i", { className: "tcx-swatch", style: `background: rgb(${rgb})` });
const asBytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const toBitmap = (bytes, type) => createImageBitmap(new Blob([bytes], { type }));

// Files that lie one after the other.
function splitBytes(bytes, lengths) {
  let start = 0;
  return lengths.map((length) => bytes.slice(start, (start += length)));
}

// Red, green, blue and opacity 0..255 as one number in the order that ImageData has in memory.
const packed = ([r, g, b], a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

// A canvas of packed colours (Uint32Array), row by row.
function pixelCanvas(colours, width, height) {
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colours.buffer), width, height), 0, 0);
  return canvas;
}

// White lines with a dark rim are seen on any picture.
function strokeWithRim(pen, path, line) {
  for (const [lineWidth, strokeStyle] of [[line * 2, "rgba(15,18,24,.9)"], [line, "#fff"]]) {
    Object.assign(pen, { lineWidth, strokeStyle });
    pen.stroke(path);
  }
}

// A widget's page: its outermost element, the clip's pictures, and `draw`, which runs once before the next picture of the
// screen, however often it is asked for, and when the size changes. `closing` holds what ends with the widget.
function openWidget(model, el, name, draw) {
  const attributes = { role: "group", "aria-label": name, "data-lm-suppress-shortcuts": "true" };
  const root = element("div", { className: "tcx", ...attributes, onkeydown: (event) => event.stopPropagation() });
  el.replaceChildren(root);
  const { size: [height, width], lengths } = model.get("_meta").frames;
  root.style.setProperty("--shape", `${width} / ${height}`); // of every frame's canvas
  let images = null;
  let pending = 0;
  function drawNow() {
    pending = 0;
    if (!images) return;
    draw();
    root.dataset.ready = "true";
  }
  const schedule = () => (pending ||= requestAnimationFrame(drawNow));
  const resized = new ResizeObserver(schedule);
  resized.observe(root);
  const closing = [() => cancelAnimationFrame(pending), () => resized.disconnect()];
  const jpegs = splitBytes(asBytes(model.get("_frames")), lengths);
  Promise.all(jpegs.map((jpeg) => toBitmap(jpeg, "image/jpeg"))).then((loaded) => {
    images = loaded;
    schedule();
  });
  function listen(event, run) {
    model.on(event, run);
    closing.push(() => model.off(event, run));
  }
  // Draw a frame as sharp as the screen; returns the pixels of the screen per CSS pixel.
  function drawFrame(canvas, frame) {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.max(40, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.round((canvas.width * height) / width);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(images[frame], 0, 0, canvas.width, canvas.height);
    return ratio;
  }
  return { root, schedule, listen, closing, drawFrame, close: () => closing.forEach((run) => run()) };
}

// Pressing, moving and releasing on a canvas; `down` and `move` get the place as shares [x, y] of its size.
function onDrag(canvas, down, move, up) {
  const place = (event) => {
    const area = canvas.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down(place(event));
    move(place(event));
  });
  canvas.addEventListener("pointermove", (event) => move(place(event)));
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, up);
}

// Controls that show what `read` says whenever `update` runs.
function controlPanel(closing) {
  const updates = [];
  // Buttons of which one is pressed; options: [value, text, colour or nothing].
  function choice(name, options, read, write) {
    const buttons = options.map(([value, text, colour]) => {
      const node = button(text, () => write(value));
      if (colour) node.prepend(swatch(colour));
      updates.push(() => node.setAttribute("aria-pressed", String(value === read())));
      return node;
    });
    return element("div", { className: "tcx-segments", role: "group", "aria-label": name }, ...buttons);
  }
  // `read` gives the slider's value and the text beside it.
  function slider(text, label, range, read, write) {
    const output = element("output");
    const input = element("input", { type: "range", ...range, "aria-label": label, oninput: () => write(Number(input.value)) });
    updates.push(() => ([input.value, output.textContent] = read()));
    return element("label", { className: "tcx-slider" }, text, input, output);
  }
  // A play button and a slider over the frames.
  function timeline(names, label, read, write) {
    let playing = 0;
    const stop = () => (playing = clearInterval(playing));
    const next = () => write((read() + 1) % names.length);
    const play = button("", () => (playing ? stop() : (playing = setInterval(next, 250)), update()));
    const update = () => {
      play.textContent = playing ? "❚❚" : "▶";
      play.setAttribute("aria-label", playing ? "pause" : "play through the frames");
    };
    update();
    closing.push(stop);
    const range = { min: 0, max: names.length - 1, step: 1 };
    return box("tcx-time", play, slider("", label, range, () => [read(), names[read()]], write));
  }
  return { choice, slider, timeline, update: () => updates.forEach((run) => run()) };
}

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

const button = (text, onclick, more = {}) => element("button", { type: "button", textContent: text, onclick, ...more });
const asBytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const toBitmap = (bytes, type) => createImageBitmap(new Blob([bytes], { type }));

// Files that lie one after the other.
function splitBytes(bytes, lengths) {
  let start = 0;
  return lengths.map((length) => bytes.slice(start, (start += length)));
}

// The widget's outermost element. The notebook's own keyboard shortcuts stay out of it.
function frameOfWidget(el, name) {
  const root = element("div", { className: "tcx", "data-lm-suppress-shortcuts": "true", role: "group", "aria-label": name });
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.replaceChildren(root);
  return root;
}

// Runs `draw` once before the next picture, however often it is asked for, and when the element changes its size.
function drawer(root, draw) {
  let pending = 0;
  const schedule = () => (pending ||= requestAnimationFrame(() => ((pending = 0), draw())));
  const resized = new ResizeObserver(schedule);
  resized.observe(root);
  const stop = () => (cancelAnimationFrame(pending), resized.disconnect());
  return { schedule, stop };
}

// A canvas as sharp as the screen for a picture of [height, width]; returns the pixels of the screen per CSS pixel.
function fit(canvas, [height, width]) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const columns = Math.max(40, Math.round(canvas.clientWidth * ratio));
  const rows = Math.round((columns * height) / width);
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  canvas.getContext("2d").imageSmoothingQuality = "high";
  return ratio;
}

const swatch = (rgb) => element("i", { className: "tcx-swatch", style: `background: rgb(${rgb})` });

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }; // rows, columns

// Pressing, moving and releasing on a canvas; `move` gets the place as shares [x, y] of its size, pressed or not.
function onDrag(canvas, down, move, up) {
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
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
function controlPanel() {
  const updates = [];
  // Buttons of which one is pressed; options: [value, text, colour or nothing].
  function choice(name, options, read, write) {
    const buttons = options.map(([value, text]) => button(text, () => write(value)));
    options.forEach(([, , colour], i) => colour && buttons[i].prepend(swatch(colour)));
    updates.push(() => buttons.forEach((node, i) => node.setAttribute("aria-pressed", String(options[i][0] === read()))));
    return element("div", { className: "tcx-segments", role: "group", "aria-label": name }, ...buttons);
  }
  // `read` gives the slider's value and the text beside it.
  function slider(text, label, range, read, write) {
    const output = element("output");
    const input = element("input", { type: "range", ...range, "aria-label": label, oninput: () => write(Number(input.value)) });
    updates.push(() => ([input.value, output.textContent] = read()));
    return element("label", { className: "tcx-slider" }, element("span", { textContent: text }), input, output);
  }
  return { choice, slider, update: () => updates.forEach((run) => run()) };
}

// A play button, a slider over the frames and the name of the one shown.
function timeline(node, names, label, read, write) {
  let playing = 0;
  const stop = () => (playing = clearInterval(playing));
  const toggle = () => {
    if (playing) stop();
    else playing = setInterval(() => write((read() + 1) % names.length), 250);
    update();
  };
  const play = button("", toggle, { className: "tcx-play" });
  const range = { type: "range", min: 0, max: names.length - 1, step: 1, "aria-label": label };
  const slider = element("input", { ...range, oninput: () => write(Number(slider.value)) });
  const text = element("output");
  node.append(play, slider, text);
  const update = () => {
    [slider.value, text.textContent] = [read(), names[read()]];
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "pause" : "play through the frames");
  };
  return { update, stop };
}

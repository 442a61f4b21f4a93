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

const asBytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

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

// A play button, a slider over the frames and the name of the one shown.
function timeline(node, names, label, read, write) {
  let playing = null;
  const play = element("button", { type: "button", className: "tcx-play" });
  const slider = element("input", { type: "range", min: 0, max: names.length - 1, step: 1, "aria-label": label });
  const text = element("output");
  node.append(play, slider, text);
  const update = () => {
    [slider.value, text.textContent] = [read(), names[read()]];
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "pause" : "play through the frames");
  };
  const stop = () => {
    clearInterval(playing);
    playing = null;
    update();
  };
  const start = () => {
    playing = setInterval(() => write((read() + 1) % names.length), 250);
    update();
  };
  play.addEventListener("click", () => (playing ? stop() : start()));
  slider.addEventListener("input", () => write(Number(slider.value)));
  update();
  return { update, stop };
}


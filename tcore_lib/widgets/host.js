
// The part of anywidget's model that a widget uses, for a page without a kernel. `ID` is put in by `base.fragment`.
const el = document.getElementById("ID");
const state = JSON.parse(document.getElementById("ID-state").textContent);
for (const [name, value] of Object.entries(state))
  if (value?.base64 !== undefined) state[name] = new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer);
const listeners = {};
const tell = (event, ...what) => (listeners[event] || []).slice().forEach((run) => run(...what));
Object.assign(el, { sent: [], deliver: (content, buffers) => tell("msg:custom", content, buffers) });
el.model = {
  get: (name) => state[name],
  set: (name, value) => {
    state[name] = value;
    tell("change:" + name);
  },
  save_changes: () => {},
  send: (content, callbacks, buffers) => el.sent.push({ content, buffers }),
  on: (event, run) => (listeners[event] ||= []).push(run),
  off: (event, run) => (listeners[event] = (listeners[event] || []).filter((known) => known !== run)),
};
widget.render({ model: el.model, el });

"use strict";

// One board, one socket. What comes from others reaches the page as text and numbers only, never as markup.

const $ = (id) => document.getElementById(id);
const room = new URLSearchParams(location.search).get("room");
const width = 1600, height = 1000; // the board's own points, however large it is here
const maxStroke = 500, maxTrail = 64, inks = 6, pens = [3, 8, 18];

let socket = null;     // the current WebSocket, or null between two tries
let welcomed = false;  // hello has been answered on this socket
let me = "";           // the ID the board knows us by
let attempt = 0;       // failed tries since the last welcome
let retry = 0;         // timer of the next try
let waiting = 0;       // when the ping without an answer was sent
const strokes = new Map(); // id → stroke, as the board has them
const pending = new Map(); // id → stroke, drawn here and not acknowledged
const guests = new Map();  // id → {name, hue, trails, cursor, tag}

$("room").textContent = room;
document.title = `${room} · hibernate whiteboard`;

// ---- connection ----

function connect() {
  clearTimeout(retry);
  if (socket) return;
  show("connecting", attempt ? "Reconnecting" : "Connecting");
  const url = new URL("/ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.search = new URLSearchParams({ room, name: $("name").value });
  const ws = socket = new WebSocket(url);
  ws.onopen = () => ws.send(JSON.stringify({ type: "hello" }));
  ws.onmessage = (e) => receive(e.data);
  ws.onclose = () => lost(ws);
}

// lost plans the next try: twice as late each time up to 20 s, and by chance a little
// earlier, so that a board full of clients does not come back in one instant.
function lost(ws) {
  if (ws !== socket) return;
  socket = null;
  welcomed = false;
  waiting = 0;
  for (const id of [...guests.keys()]) forget(id);
  listGuests();
  const wait = Math.min(20_000, 400 * 2 ** attempt++) * (0.5 + Math.random() / 2);
  show("offline", wait > 1500 ? `Offline, ${Math.round(wait / 1000)} s` : "Offline");
  retry = setTimeout(connect, wait);
}

function drop() {
  const ws = socket;
  if (!ws) return;
  ws.onmessage = null;
  ws.close();
  lost(ws); // onclose may take long when the network is gone
}

function send(message) {
  if (welcomed) socket.send(JSON.stringify(message));
}

addEventListener("online", () => { attempt = 0; connect(); });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  if (!socket) { attempt = 0; connect(); }
  look();
});

// The answer comes from the runtime: the board may be asleep and stays so.
setInterval(() => {
  if (!welcomed) return;
  if (!waiting) {
    waiting = performance.now();
    socket.send("ping");
  } else if (performance.now() - waiting > 10_000) {
    drop();
  }
}, 5_000);

// ---- what the board sends ----

function receive(data) {
  if (data === "pong") { waiting = 0; return; }
  const m = JSON.parse(data);
  switch (m.type) {
    case "welcome": return welcome(m);
    case "strokes": return m.strokes.forEach(drawn);
    case "stroke": return drawn(m.stroke);
    case "cursor": return moved(m);
    case "joined": return joined(m.guest);
    case "left": forget(m.guest.id); return listGuests();
    case "cleared": strokes.clear(); return redraw();
    case "error": return refused(m);
  }
}

function welcome(m) {
  welcomed = true;
  attempt = 0;
  me = m.you;
  show("online", "Connected");
  strokes.clear(); // what was cleared meanwhile is not sent
  redraw();
  for (const g of m.guests || []) joined(g);
  for (const s of pending.values()) send({ type: "stroke", stroke: s }); // the board knows those it already has
  look();
}

function drawn(s) {
  pending.delete(s.id);
  if (!strokes.has(s.id)) {
    strokes.set(s.id, s);
    paint($("drawn"), s);
  }
  for (const g of guests.values()) if (!g.busy) g.trail = []; // the trail has become the stroke
  redrawLive();
  count();
}

function joined(g) {
  forget(g.id);
  const known = { name: g.name, hue: g.hue, trail: [], busy: false };
  guests.set(g.id, known);
  if (g.id !== me) {
    known.cursor = element("div", "cursor");
    known.tag = element("div", "tag", g.name);
    for (const e of [known.cursor, known.tag]) {
      e.hidden = true;
      e.style.setProperty("--hue", g.hue);
      $("cursors").append(e);
    }
  }
  listGuests();
}

function forget(id) {
  const g = guests.get(id);
  g?.cursor?.remove();
  g?.tag?.remove();
  guests.delete(id);
  redrawLive();
}

function moved(m) {
  const g = guests.get(m.who);
  if (!g?.cursor) return;
  g.busy = Boolean(m.drawing);
  if (m.drawing) g.trail = [...g.trail, ...m.trail].slice(-4 * maxStroke);
  const [x, y] = m.trail.slice(-2);
  for (const e of [g.cursor, g.tag]) {
    e.hidden = false;
    e.style.left = `${100 * x / width}%`;
    e.style.top = `${100 * y / height}%`;
  }
  redrawLive();
}

function refused(m) {
  pending.delete(m.id);
  redraw();
  $("refusal").textContent = m.text;
  $("refusal").hidden = false;
  setTimeout(() => { $("refusal").hidden = true; }, 6000);
}

// ---- drawing ----

// paint draws one stroke. A canvas has as many pixels as the screen; points are the board's.
function paint(canvas, s, colour) {
  const c = canvas.getContext("2d");
  c.strokeStyle = colour ?? getComputedStyle(document.documentElement).getPropertyValue(`--ink-${s.ink}`);
  c.lineWidth = s.pen;
  c.lineCap = c.lineJoin = "round";
  const p = s.points;
  c.beginPath();
  c.moveTo(p[0], p[1]);
  for (let i = 2; i + 3 < p.length; i += 2) { // through the middles, so that no corner shows
    c.quadraticCurveTo(p[i], p[i + 1], (p[i] + p[i + 2]) / 2, (p[i + 1] + p[i + 3]) / 2);
  }
  c.lineTo(p[p.length - 2], p[p.length - 1]);
  c.stroke();
}

function prepare(canvas) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  canvas.getContext("2d").setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
}

function redraw() {
  prepare($("drawn"));
  for (const s of strokes.values()) paint($("drawn"), s);
  redrawLive();
  count();
}

// redrawLive shows what is not a stroke yet: our own, and the trails of others. Once a frame is enough.
let live = 0;
function redrawLive() {
  live ||= requestAnimationFrame(() => {
    live = 0;
    prepare($("live"));
    for (const s of pending.values()) paint($("live"), s);
    if (line) paint($("live"), line);
    for (const g of guests.values()) {
      if (g.trail.length > 2) paint($("live"), { pen: 4, points: g.trail }, `hsl(${g.hue} 60% 50% / 50%)`);
    }
  });
}

function count() {
  const n = strokes.size;
  $("drawn").ariaLabel = `The whiteboard, with ${n} ${n === 1 ? "stroke" : "strokes"}`;
  $("drawn").dataset.strokes = n;
  $("board").dataset.pending = pending.size;
  $("empty").hidden = n + pending.size > 0 || line !== null;
}

// ---- the pointer ----

let line = null; // the stroke under the pen
let trail = [];  // where the pointer was since it was last told

function at(e) {
  const box = $("live").getBoundingClientRect();
  const whole = (v, most) => Math.max(0, Math.min(most, Math.round(v)));
  return [whole((e.clientX - box.left) / box.width * width, width), whole((e.clientY - box.top) / box.height * height, height)];
}

$("live").addEventListener("pointerdown", (e) => {
  if (e.button !== 0 || line) return;
  $("live").setPointerCapture(e.pointerId);
  begin(at(e));
});

$("live").addEventListener("pointermove", (e) => {
  for (const one of e.getCoalescedEvents?.() ?? [e]) {
    const p = at(one);
    if (line) {
      line.points.push(...p);
      if (line.points.length >= 2 * maxStroke) { finish(); begin(p); }
    }
    trail.push(...p);
  }
  if (line) redrawLive();
});

for (const end of ["pointerup", "pointercancel"]) $("live").addEventListener(end, finish);

function begin(p) {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
  line = { id, ink: chosen("ink"), pen: chosen("pen"), points: [...p, ...p] };
  trail = [...p];
  redrawLive();
  count();
}

function finish() {
  if (!line) return;
  const s = line;
  line = null;
  tell(); // that the pen is up; the stroke takes the place of its trail
  pending.set(s.id, s);
  send({ type: "stroke", stroke: s });
  redrawLive();
  count();
}

// tell shows the others the pointer, twelve times a second and only when it has moved: a board
// whose guests have all let go can sleep.
function tell() {
  if (!trail.length) return;
  send({ type: "cursor", trail: trail.slice(-2 * maxTrail), drawing: line !== null });
  trail = [];
}
setInterval(tell, 80);

$("clear").addEventListener("click", () => send({ type: "clear" }));

// ---- tools ----

function chosen(name) {
  return Number(document.querySelector(`#tools [name=${name}]:checked`).value);
}

function choice(name, value, checked, label) {
  const c = element("input");
  c.type = "radio";
  c.name = name;
  c.value = value;
  c.checked = checked;
  c.ariaLabel = c.title = label;
  return c;
}

const colours = ["black or white", "blue", "green", "orange", "red", "pink"];
for (let i = 0; i < inks; i++) {
  const c = choice("ink", i, i === 0, colours[i]);
  c.style.setProperty("--ink", `var(--ink-${i})`);
  $("inks").append(c);
}
pens.forEach((pen, i) => {
  const c = choice("pen", pen, i === 1, ["thin", "medium", "thick"][i]);
  c.style.setProperty("--dot", `${6 + i * 5}px`);
  $("pens").append(c);
});

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

// ---- who is here, and is the board? ----

$("name").value = localStorage.getItem("name") || `Guest ${100 + Math.floor(Math.random() * 900)}`;
$("identity").addEventListener("submit", (e) => { e.preventDefault(); $("name").blur(); });
$("name").addEventListener("change", () => {
  $("name").value = $("name").value.trim() || "Guest";
  localStorage.setItem("name", $("name").value);
  attempt = 0;
  drop(); // the name is part of the handshake
  connect();
});

function listGuests() {
  $("guests").replaceChildren(...[...guests.values()].slice(-8).map((g) => {
    const item = element("li", "", [...g.name][0].toUpperCase());
    item.title = item.ariaLabel = g.name;
    item.style.setProperty("--hue", g.hue);
    return item;
  }));
}

function show(state, text) {
  $("connection").dataset.state = state;
  $("connection").lastElementChild.textContent = text;
}

// look asks what the board is doing. The server answers without waking it.
async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(`/state?${new URLSearchParams({ room })}`, { signal: AbortSignal.timeout(3000) });
    const { inMemory, constructed } = await answer.json();
    residence(inMemory ? "awake" : "hibernating", constructed);
  } catch {
    residence("unknown", null);
  }
}
setInterval(look, 1000);

function residence(state, constructed) {
  const words = {
    awake: ["In memory", "The board is in memory. When nobody moves for a while, it leaves."],
    hibernating: ["Hibernating", "The board has left memory. Your connection stays open, and the next touch brings the board back."],
    unknown: ["No answer", "The server does not answer. The drawing is safe on its disk."],
  };
  $("residence").dataset.state = state;
  $("residence").lastElementChild.textContent = words[state][0];
  const times = constructed === null || constructed < 1 ? "" : ` Constructed ${["", "once", "twice"][constructed] ?? `${constructed} times`}.`;
  $("explain").textContent = words[state][1] + times;
  $("explain").dataset.times = constructed ?? "";
}

new ResizeObserver(redraw).observe($("board"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
connect();
look();

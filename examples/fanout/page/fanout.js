"use strict";

// One feed, one socket at one of its leaves. What comes reaches the page as text only, never as markup.

const $ = (id) => document.getElementById(id);
const here = location.pathname.replace(/\/$/, "");
const feed = here.split("/").pop();
const shown = 100; // events on the page

let socket = null; // the current WebSocket, or null between two tries
let attempt = 0;   // failed tries since the last connection
let retry = 0;     // timer of the next try
let lastSeq = 0;   // the newest event on the page
let fetching = false;

$("feed").textContent = feed;
document.title = `${feed} · hibernate fanout`;

// ---- connection ----

function connect() {
  clearTimeout(retry);
  if (socket) return;
  show("connecting", attempt ? "Reconnecting" : "Connecting");
  const url = new URL(`${here}/ws`, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const ws = socket = new WebSocket(url);
  ws.onopen = () => {
    attempt = 0;
    show("online", "Connected");
    catchUp();
    look();
  };
  ws.onmessage = (e) => {
    const event = JSON.parse(e.data);
    if (event.seq > lastSeq + 1) catchUp(); // something went past us
    place(event, true);
  };
  ws.onclose = () => lost(ws);
}

// lost plans the next try: twice as late each time up to 30 s, and by chance much earlier, so
// that thousands of dashboards do not come back in one instant.
function lost(ws) {
  if (ws !== socket) return;
  socket = null;
  const wait = Math.min(30_000, 500 * 2 ** attempt++) * (0.3 + 0.7 * Math.random());
  show("offline", wait > 1500 ? `Offline, ${Math.round(wait / 1000)} s` : "Offline");
  retry = setTimeout(connect, wait);
}

addEventListener("online", () => { attempt = 0; connect(); });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  if (!socket) { attempt = 0; connect(); }
  look();
});

// catchUp asks the root for what this page has missed.
async function catchUp() {
  if (fetching) return;
  fetching = true;
  try {
    const answer = await fetch(`${here}/events?after=${lastSeq}`, { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.statusText);
    for (const event of await answer.json()) place(event, false);
    $("empty").hidden = $("events").children.length > 0;
  } catch {
    setTimeout(catchUp, 1000 + 4000 * Math.random());
  } finally {
    fetching = false;
  }
}

// ---- events ----

// place shows an event once, in the order of the numbers.
function place(event, isNew) {
  let below = $("events").firstElementChild;
  while (below && Number(below.dataset.seq) > event.seq) below = below.nextElementSibling;
  if (below && Number(below.dataset.seq) === event.seq) return;
  const item = element("li", isNew ? "new" : "");
  item.dataset.seq = event.seq;
  const at = new Date(event.at);
  const text = element("p", "", event.text);
  text.prepend(element("b", "", event.source));
  const time = element("time", "", at.toLocaleTimeString());
  time.dateTime = event.at;
  time.title = at.toLocaleString();
  item.append(element("span", "seq", event.seq), text, time);
  $("events").insertBefore(item, below);
  while ($("events").children.length > shown) $("events").lastElementChild.remove();
  lastSeq = Math.max(lastSeq, event.seq);
  $("last").textContent = lastSeq;
  $("empty").hidden = true;
}

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

$("try").addEventListener("click", async () => {
  $("try").disabled = true;
  try {
    const answer = await fetch(`${here}/try`, { method: "POST", signal: AbortSignal.timeout(15_000) });
    if (!answer.ok) throw new Error(await answer.text());
    const { event, reached, milliseconds } = await answer.json();
    tell(`Event ${event.seq} went to ${reached.toLocaleString("en")} ${reached === 1 ? "dashboard" : "dashboards"} in ${milliseconds.toFixed(1)} ms`, false);
  } catch (e) {
    tell(e.name === "Error" ? e.message : "The server does not answer.", true);
  } finally {
    $("try").disabled = false;
  }
});

function tell(text, bad) {
  $("told").textContent = text;
  $("told").classList.toggle("bad", bad);
}

// ---- the tree ----

const svg = (tag, attributes, ...children) => {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
};
const drawn = new Map(); // name → {group, text}

// draw makes the tree from the names: "a" is above "a/0", that above "a/0/3".
function draw(nodes) {
  const rows = [];
  for (const n of nodes) (rows[n.name.split("/").length - 1] ??= []).push(n.name);
  const at = new Map();
  rows.forEach((names, depth) => names.forEach((name, i) => {
    at.set(name, [640 * (i + 0.5) / names.length, 20 + depth * 66]);
  }));
  const lines = [], groups = [];
  for (const { name } of nodes) {
    const [x, y] = at.get(name);
    const above = at.get(name.slice(0, name.lastIndexOf("/")));
    if (above) lines.push(svg("line", { x1: above[0], y1: above[1], x2: x, y2: y }));
    const text = svg("text", { x, y: y + 27 });
    const group = svg("g", {}, svg("circle", { cx: x, cy: y, r: 13 - 3 * name.split("/").length / 1.5 }), text);
    drawn.set(name, { group, text });
    groups.push(group);
  }
  $("tree").replaceChildren(...lines, ...groups);
}

function showTree(nodes) {
  if (!drawn.size) draw(nodes);
  for (const n of nodes) {
    const { group, text } = drawn.get(n.name);
    group.classList.toggle("awake", n.inMemory);
    text.textContent = n.name.split("/").length === 3 ? n.dashboards : "";
  }
  const dashboards = nodes.reduce((sum, n) => sum + n.dashboards, 0);
  const awake = nodes.filter((n) => n.inMemory).length;
  $("dashboards").textContent = dashboards.toLocaleString("en");
  $("awake").textContent = `${awake} of ${nodes.length}`;
  $("tree").ariaLabel = `A tree of ${nodes.length} objects, ${awake} of them in memory, with ${dashboards} dashboards at its leaves`;
  return awake;
}

function show(state, text) {
  $("connection").dataset.state = state;
  $("connection").lastElementChild.textContent = text;
}

// look asks what the objects of the tree are doing. The server answers without waking them.
async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(`${here}/state`, { signal: AbortSignal.timeout(3000) });
    residence(showTree(await answer.json()) ? "awake" : "hibernating");
  } catch {
    residence("unknown");
  }
}
setInterval(look, 1000);

function residence(state) {
  const words = {
    awake: ["In memory", "An event has come down the tree: from its root to the relays, to the leaves, to the dashboards."],
    hibernating: ["Hibernating", "No object of the tree is in memory. Every dashboard is still connected, and the next event finds it."],
    unknown: ["No answer", "The server does not answer. The events are safe on its disk."],
  };
  $("residence").dataset.state = state;
  $("residence").lastElementChild.textContent = words[state][0];
  $("explain").textContent = words[state][1];
}

connect();
look();

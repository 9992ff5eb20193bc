"use strict";

// One room, one socket. What comes from others reaches the page as text only, never as markup.

const $ = (id) => document.getElementById(id);
const here = location.pathname.replace(/\/$/, "");
const room = decodeURIComponent(here.split("/").pop());
const maxText = 2000;

let me = null;         // {name, colour} once known
let socket = null;     // the current WebSocket, or null between two tries
let welcomed = false;  // hello has been answered on this socket
let attempt = 0;       // failed tries since the last welcome
let retry = 0;         // timer of the next try
let lastSeq = 0;       // newest line shown
let lastLine = null;   // {name, colour, at} of the line shown last, to group what follows
let members = [];
let pinged = 0;        // when the ping without an answer was sent
const pending = new Map(); // cid → {text, item}, in the order they were written

$("room").textContent = room;
document.title = `${room} · hibernate chat`;

// ---- connection ----

function connect() {
  clearTimeout(retry);
  if (socket || !me) return;
  show("connecting", attempt ? "Reconnecting" : "Connecting");
  const url = new URL(`${here}/ws`, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const ws = socket = new WebSocket(url);
  ws.onopen = () => ws.send(JSON.stringify({ type: "hello", name: me.name, colour: me.colour }));
  ws.onmessage = (e) => receive(e.data);
  ws.onclose = () => lost(ws);
}

// lost plans the next try: twice as late each time up to 20 s, and by chance a little
// earlier, so that a room full of clients does not come back in one instant.
function lost(ws) {
  if (ws !== socket) return;
  socket = null;
  welcomed = false;
  pinged = 0;
  $("ping").textContent = "–";
  enableComposer();
  const wait = Math.min(20_000, 400 * 2 ** attempt++) * (0.5 + Math.random() / 2);
  const seconds = Math.round(wait / 1000); // until the next try
  show("offline", seconds > 1 ? `Offline, ${seconds} s` : "Offline");
  retry = setTimeout(connect, wait);
}

function drop() {
  const ws = socket;
  if (!ws) return;
  ws.onmessage = null;
  ws.close();
  lost(ws); // onclose may take long when the network is gone
}

addEventListener("online", () => { attempt = 0; connect(); });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  if (!socket) { attempt = 0; connect(); }
  look();
});

// The answer comes from the runtime: the room may be asleep and stays so.
function ping() {
  if (!welcomed) return;
  if (pinged && performance.now() - pinged > 10_000) return drop();
  if (pinged) return;
  pinged = performance.now();
  socket.send("ping");
}
setInterval(ping, 5_000);

// ---- what the room sends ----

function receive(data) {
  if (data === "pong") {
    const ms = performance.now() - pinged;
    pinged = 0;
    $("ping").textContent = `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
    return;
  }
  const m = JSON.parse(data);
  switch (m.type) {
    case "welcome": return welcome(m);
    case "line": return welcomed && line(m.line);
    case "joined": return welcomed && joined(m.member);
    case "left": return welcomed && left(m.member);
    case "error": return refused(m);
  }
}

function welcome(m) {
  welcomed = true;
  attempt = 0;
  show("online", "Connected");
  if ($("hello").open) $("hello").close();
  members = m.members || [];
  listMembers();
  for (const l of m.history || []) line(l);
  for (const [cid, p] of pending) say(cid, p.text); // the room knows those it already has
  enableComposer();
  $("text").focus();
  ping();
  look();
}

function refused(m) {
  const p = pending.get(m.cid);
  if (p) {
    pending.delete(m.cid);
    p.item.classList.replace("pending", "failed");
    p.item.append(element("p", "why", m.text));
    scrollDown();
  } else if (!welcomed) {
    me = null;
    drop();
    clearTimeout(retry);
    introduce(m.text);
  } else {
    complain(m.text);
  }
}

function joined(member) {
  members.push(member);
  listMembers();
  notice(`${member.name} joined`);
}

function left(member) {
  const i = members.findIndex((m) => m.name === member.name && m.colour === member.colour);
  if (i >= 0) members.splice(i, 1);
  listMembers();
  notice(`${member.name} left`);
}

// ---- the log ----

// line shows a stored line once. The copy of an own line takes the place of the pending one.
function line(l) {
  const own = pending.get(l.cid);
  if (own) {
    pending.delete(l.cid);
    own.item.remove();
  }
  if (l.seq > lastSeq) {
    lastSeq = l.seq;
    keepDown(() => place(row(l, l.name === me.name && l.colour === me.colour)));
  }
}

// place puts a stored line above those of our own that are still on their way.
function place(item) {
  const first = $("log").querySelector(".pending");
  $("log").insertBefore(item, first);
  $("empty").hidden = true;
}

function row(l, mine) {
  const at = new Date(l.at);
  const more = lastLine && lastLine.name === l.name && lastLine.colour === l.colour && at - lastLine.at < 3 * 60_000;
  lastLine = { name: l.name, colour: l.colour, at };
  const item = element("li", `line${mine ? " mine" : ""}${more ? " more" : ""}`);
  item.style.setProperty("--hue", l.colour);
  item.dataset.seq = l.seq;
  const face = element("span", "face", [...l.name][0].toUpperCase());
  face.ariaHidden = "true";
  const by = element("span", "by");
  const time = element("time", "", at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = l.at;
  time.title = at.toLocaleString();
  by.append(element("b", "", l.name), time);
  item.append(face, by, element("p", "", l.text));
  return item;
}

function notice(text) {
  lastLine = null;
  keepDown(() => $("log").insertBefore(element("li", "notice", text), $("log").querySelector(".pending")));
}

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

function scrollDown() { $("log").scrollTop = $("log").scrollHeight; }

// keepDown changes the log and stays at its end, unless the reader has scrolled up.
function keepDown(change) {
  const log = $("log");
  const down = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (down) scrollDown();
}

// ---- writing ----

function say(cid, text) {
  if (welcomed) socket.send(JSON.stringify({ type: "say", cid, text }));
}

$("composer").addEventListener("submit", (e) => {
  e.preventDefault();
  const text = $("text").value.trim();
  complain("");
  if (!text) return;
  const n = [...text].length;
  if (n > maxText) return complain(`A message has at most ${maxText} characters; this one has ${n}.`);
  const cid = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
  const item = element("li", "line mine more pending");
  item.append(element("p", "", text));
  $("log").append(item);
  $("empty").hidden = true;
  pending.set(cid, { text, item });
  say(cid, text);
  $("text").value = "";
  grow();
  scrollDown();
  setTimeout(look, 50);
});

$("text").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    $("composer").requestSubmit();
  }
});
$("text").addEventListener("input", () => { complain(""); grow(); });

function grow() {
  const t = $("text");
  t.style.height = "auto";
  t.style.height = `${t.scrollHeight + 2}px`;
}

// Without a connection one may still write: it is sent when the connection is back.
function enableComposer() {
  $("text").disabled = $("send").disabled = !me;
}

function complain(text) {
  $("refusal").textContent = text;
  $("refusal").hidden = !text;
}

// ---- who is here, and is the room? ----

function listMembers() {
  $("count").textContent = members.length ? `· ${members.length}` : "";
  $("members").replaceChildren(...members.map((m) => {
    const item = element("li");
    item.style.setProperty("--hue", m.colour);
    item.append(element("span", "", m.name));
    return item;
  }));
}

function show(state, text) {
  $("connection").dataset.state = state;
  $("connection").lastElementChild.textContent = text;
}

// look asks what the room is doing. The server answers without waking it.
async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(`${here}/state`, { signal: AbortSignal.timeout(3000) });
    const { inMemory, constructed } = await answer.json();
    residence(inMemory ? "awake" : "hibernating", constructed);
  } catch {
    residence("unknown", null);
  }
}
setInterval(look, 1000);

function residence(state, constructed) {
  const words = {
    awake: ["In memory", "The room is in memory. When nobody says anything for a while, it leaves."],
    hibernating: ["Hibernating", "The room has left memory. Your connection stays open, and the next message brings the room back."],
    unknown: ["No answer", "The server does not answer. The history is safe on its disk."],
  };
  if (state === "hibernating" && constructed === 0) {
    words.hibernating[1] = "The room has not been in memory since the server started. The first message brings it back.";
  }
  $("residence").dataset.state = state;
  $("residence").lastElementChild.textContent = words[state][0];
  $("explain").textContent = words[state][1];
  if (constructed !== null) {
    $("constructed").textContent = ["not yet", "once", "twice"][constructed] ?? `${constructed} times`;
    $("constructed").dataset.times = constructed;
  }
}

// ---- the first visit ----

const hues = [250, 210, 180, 145, 90, 45, 20, 350, 320, 285];

function introduce(complaint) {
  $("complaint").textContent = complaint || "";
  $("complaint").hidden = !complaint;
  if (!$("hello").open) $("hello").showModal();
  enableComposer();
}

$("hello").addEventListener("cancel", (e) => e.preventDefault());
$("hello").addEventListener("submit", (e) => {
  e.preventDefault(); // it closes when the room has said welcome
  me = { name: $("name").value.trim(), colour: Number(document.querySelector("#colours :checked").value) };
  localStorage.setItem("me", JSON.stringify(me));   // what a new tab proposes
  sessionStorage.setItem("me", JSON.stringify(me)); // who this tab is
  attempt = 0;
  connect();
});

$("go").addEventListener("submit", (e) => {
  e.preventDefault();
  location.href = `/room/${encodeURIComponent($("elsewhere").value.trim())}`;
});

function remembered(storage) {
  try { return JSON.parse(storage.getItem("me")); } catch { return null; }
}

const before = remembered(localStorage);
const colour = before?.colour ?? hues[Math.floor(Math.random() * hues.length)];
$("name").value = before?.name ?? "";
$("colours").append(...hues.map((hue) => {
  const c = document.createElement("input");
  c.type = "radio";
  c.name = "colour";
  c.value = hue;
  c.ariaLabel = `hue ${hue}`;
  c.checked = hue === colour;
  c.style.setProperty("--hue", hue);
  return c;
}));

me = remembered(sessionStorage);
if (me) { enableComposer(); connect(); } else { introduce(); }
look();
$("empty").hidden = false;

"use strict";

// A socket for each job that is not over. It never says a word and needs no ping: the server pushes
// what a worker reports, and closes it with 1000 when the job is over.

const $ = (id) => document.getElementById(id);
const here = location.pathname.replace(/\/$/, "");
const queue = decodeURIComponent(here.split("/").pop());
const watched = new Map(); // number → {item, socket, attempt, retry}

$("queue").textContent = queue;
document.title = `${queue} · hibernate progress`;

// ---- one job ----

function watch(job) {
  const w = { item: card(), socket: null, attempt: 0, retry: 0, over: false };
  watched.set(job.number, w);
  $("jobs").prepend(w.item);
  $("empty").hidden = true;
  showJob(w, job);
  connect(w, job.number);
}

function connect(w, number) {
  clearTimeout(w.retry);
  if (w.over || w.socket) return;
  const url = new URL(`${here}/jobs/${number}/ws`, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const ws = w.socket = new WebSocket(url);
  ws.onopen = () => { w.attempt = 0; link(w, "Connected"); };
  ws.onmessage = (e) => showJob(w, JSON.parse(e.data));
  // After 1000 there is nothing more to come. Else the next try: twice as late each time up to 20 s, and by
  // chance a little earlier, so that many clients do not come back in one instant.
  ws.onclose = (e) => {
    w.socket = null;
    if (e.code === 1000 || w.over) return link(w, "");
    link(w, "Offline");
    const wait = Math.min(20_000, 500 * 2 ** w.attempt++) * (0.5 + Math.random() / 2);
    w.retry = setTimeout(() => connect(w, number), wait);
  };
}

function card() {
  const item = element("li", "job");
  item.append(element("h2"), element("span", "percent"), element("span", "note"), element("span", "link"), element("progress"));
  return item;
}

function showJob(w, job) {
  w.over = job.state === "done" || job.state === "failed";
  w.item.dataset.state = job.state;
  w.item.dataset.number = job.number;
  const part = (name) => w.item.querySelector(name);
  part("h2").textContent = job.title;
  part(".percent").textContent = { done: "Done", failed: "Failed", silent: "Silent" }[job.state] ?? `${job.percent} %`;
  part(".note").textContent = job.note;
  part("progress").max = 100;
  part("progress").value = job.percent;
  part("progress").ariaLabel = `Progress of ${job.title}`;
}

function link(w, text) { w.item.querySelector(".link").textContent = text; }

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

// ---- all jobs ----

async function list() {
  try {
    const answer = await fetch(`${here}/jobs`, { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const jobs = await answer.json() ?? [];
    for (const job of jobs) if (!watched.has(job.number)) watch(job);
    $("empty").hidden = watched.size > 0;
  } catch {
    setTimeout(list, 2000 + 2000 * Math.random());
  }
}

const ideas = ["Render the trailer", "Transcode episode 7", "Export the annual report", "Train the small model", "Rebuild the search index", "Thumbnails for the archive"];
let idea = Math.floor(Math.random() * ideas.length);
function propose() { $("title").value = ideas[idea++ % ideas.length]; }

$("start").addEventListener("submit", async (e) => {
  e.preventDefault();
  complain("");
  try {
    const answer = await fetch(`${here}/start`, {
      method: "POST",
      body: JSON.stringify({ title: $("title").value }),
      signal: AbortSignal.timeout(5000),
    });
    if (!answer.ok) return complain(await answer.text());
    watch(await answer.json());
    propose();
  } catch {
    complain("The server does not answer.");
  }
});

function complain(text) {
  $("refusal").textContent = text;
  $("refusal").hidden = !text;
}

// ---- is the tracker? ----

// look asks what the tracker is doing. The server answers without waking it.
async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(`${here}/state`, { signal: AbortSignal.timeout(3000) });
    const { inMemory, constructed, watchers } = await answer.json();
    residence(inMemory ? "awake" : "hibernating");
    $("constructed").textContent = ["not yet", "once", "twice"][constructed] ?? `${constructed} times`;
    $("constructed").dataset.times = constructed;
    $("watchers").textContent = watchers;
  } catch {
    residence("unknown");
  }
}
setInterval(look, 500);

function residence(state) {
  const words = {
    awake: ["In memory", "The tracker is in memory: a report has just come, or a watcher."],
    hibernating: ["Hibernating", "The tracker has left memory. The connections stay open without a ping, and the next report brings it back."],
    unknown: ["No answer", "The server does not answer. The jobs are safe on its disk."],
  };
  $("residence").dataset.state = state;
  $("residence").lastElementChild.textContent = words[state][0];
  $("explain").textContent = words[state][1];
}

document.addEventListener("visibilitychange", look);
propose();
list();
look();

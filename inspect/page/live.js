// Asks for this very page again and again and puts the parts that change in place.
"use strict";
const seconds = Number(document.currentScript.dataset.seconds);
const parts = ["numbers", "list", "when"];

async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
  if (!answer.ok) throw new Error(answer.statusText);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const focused = document.activeElement?.closest("#numbers, #list") && document.activeElement.getAttribute("href");
  for (const id of parts) {
    const old = document.getElementById(id), now = fresh.getElementById(id);
    if (!old || !now) continue;
    const scrolled = [...old.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
    old.replaceWith(document.adoptNode(now));
    now.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = scrolled[i] ?? 0; });
  }
  if (focused) document.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

async function beat() {
  // Nobody looks, or somebody is about to copy something.
  if (!document.hidden && getSelection().isCollapsed) {
    try {
      await refresh();
      document.getElementById("beat").className = "beat on";
    } catch {
      document.getElementById("beat").className = "beat lost";
      document.getElementById("when").textContent = "no answer";
    }
  }
  setTimeout(beat, seconds * 1000);
}
setTimeout(beat, seconds * 1000);

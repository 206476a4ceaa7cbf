"use strict";
// Refreshes the tables and lists events as they happen. Everything shown is set as text, never as HTML.

const EVENTS_SHOWN = 100;
const REFRESH_MS = 5000;
const list = document.getElementById("events");

function say(text, kind) {
  const line = document.createElement("li");
  line.textContent = text;
  line.className = kind;
  list.prepend(line);
  while (list.children.length > EVENTS_SHOWN) list.lastChild.remove();
}

const source = new EventSource("api/v1/events");
source.onmessage = (message) => {
  const event = JSON.parse(message.data);
  if (event.event_type === "updated") return;
  const name = event.torrent ? event.torrent.name : "";
  say([event.time, event.server, event.event_type, name].join("  "), "event");
};
source.addEventListener("gap", (message) => say(JSON.parse(message.data).reason, "problem"));
source.onerror = () => say("disconnected from the bridge, reconnecting", "problem");

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(".", { cache: "no-store" });
    if (!answer.ok) return;
    // This is our own page, in which the server has escaped all texts; a document parsed this way runs no scripts.
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("state");
    document.getElementById("state").replaceChildren(...document.adoptNode(fresh).childNodes);
  } catch {
    // The next refresh may succeed.
  }
}
setInterval(refresh, REFRESH_MS);

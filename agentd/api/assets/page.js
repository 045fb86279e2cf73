// Follows the daemon's events and asks for the page again, at most once a second. What is shown is always made (and escaped) by the server.
"use strict";

const fragment = new URLSearchParams(location.hash.slice(1));
if (location.hash) history.replaceState(null, "", location.pathname); // a token must not stay in the address bar

const login = document.getElementById("login");
if (login && fragment.has("token")) {
  document.getElementById("token").value = fragment.get("token");
  login.submit();
}

const content = document.getElementById("content");
if (content) {
  const live = document.getElementById("live");
  const pause = 1000;
  let last = 0;
  let waiting = null;

  const say = (text, tone) => { live.textContent = text; live.className = "badge " + tone; };

  const refresh = async () => {
    waiting = null;
    last = Date.now();
    try {
      const answer = await fetch("/");
      if (answer.status === 401) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const id of ["daemon", "content"]) document.getElementById(id).replaceChildren(...page.getElementById(id).childNodes);
    } catch { say("not reachable", "failed"); }
  };

  const soon = () => { waiting ??= setTimeout(refresh, Math.max(0, last + pause - Date.now())); };

  const events = new EventSource("/api/v1/events");
  events.onopen = () => { say("live", "ok"); soon(); };
  events.onmessage = soon;
  events.onerror = () => say("not reachable", "failed");
  setInterval(soon, 5000);
}

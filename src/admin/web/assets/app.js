// The debug page, live. What the server has escaped is put in place as it is; everything else is text.
const view = document.body.dataset.view;
const live = document.getElementById("live");

function say(text, on) {
  if (live.textContent !== text) live.textContent = text;
  live.classList.toggle("on", on);
}

// --- Live sections: the page is read again, and what has changed is put in its place.

let reading = false;
let again = false;
let last = 0;

async function refresh() {
  if (reading) { again = true; return; }
  reading = true;
  try {
    // Not more often than once a second, whatever happens there.
    const wait = last + 1000 - Date.now();
    if (wait > 0) await new Promise((done) => setTimeout(done, wait));
    last = Date.now();
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const old of document.querySelectorAll("[data-live]")) {
      const now = page.getElementById(old.id);
      if (now) replace(old, now);
    }
  } catch {
    // The stream of events says that the node is gone, and reads again when it is back.
  } finally {
    reading = false;
    if (again) { again = false; refresh(); }
  }
}

function replace(old, now) {
  if (old.className !== now.className) old.className = now.className;
  if (now.dataset.state) old.dataset.state = now.dataset.state;
  if (old.dataset.html === now.innerHTML) return;
  // Who reads here is not disturbed: focus, open tables and places in wide ones stay.
  const active = old.contains(document.activeElement) ? document.activeElement : null;
  const focus = active && [...old.querySelectorAll(active.tagName)].indexOf(active);
  const open = [...old.querySelectorAll("details")].map((one) => one.open);
  const places = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  old.innerHTML = now.innerHTML;
  old.dataset.html = now.innerHTML;
  [...old.querySelectorAll("details")].forEach((one, n) => { one.open = open[n] || false; });
  [...old.querySelectorAll(".scroll")].forEach((one, n) => { one.scrollLeft = places[n] || 0; });
  if (active) {
    const next = old.querySelectorAll(active.tagName)[focus];
    if (next) next.focus({ preventScroll: true });
  }
}

const events = new EventSource("/debug/api/events");
events.onopen = () => { say("live", true); refresh(); };
events.onerror = () => say("not live: the node does not answer", false);
events.addEventListener("request", refresh);
events.addEventListener("missed", refresh);
events.addEventListener("flights", () => { if (view === "flights" || view === "overview") refresh(); });
// What changes without a request: peers, what is held, what is awaited.
setInterval(refresh, 10000);
addEventListener("pagehide", () => events.close());

// --- Small helpers.

function element(name, text, classes) {
  const one = document.createElement(name);
  if (text !== undefined) one.textContent = text;
  if (classes) one.className = classes;
  return one;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit && count < 9.95 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

async function post(path, what) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(what),
  });
  if (answer.ok) return answer;
  const text = await answer.text();
  let said = text.trim();
  try { said = JSON.parse(text).error || said; } catch { /* it is no JSON, and says it in words */ }
  throw new Error(said);
}

// --- Content: who else holds it?

const found = document.getElementById("found");

async function find(reference) {
  found.replaceChildren(element("p", "Asking the cluster …", "quiet"));
  try {
    const told = await (await post("/debug/api/find", { reference })).json();
    const others = told.peers.length;
    const title = element("h2", others === 1 ? "1 other node holds it" : `${others} other nodes hold it`);
    const key = element("p", undefined, "quiet");
    key.append(element("code", told.key), ` · ${told.here ? "this node holds it" : "this node does not"} · ${Math.round(told.took_ms)} ms`);
    const list = element("ul");
    list.id = "holders";
    for (const peer of told.peers) {
      const zone = peer.zone ? ` in ${peer.zone}` : "";
      const item = element("li", `${peer.addresses[0] || peer.peer}${zone}, heard of after ${peer.after_ms.toFixed(1)} ms `);
      const said = peer.asked;
      if (said) {
        const badge = said.delivers ? element("span", "delivers", "badge ok") : element("span", "does not deliver", "badge failed");
        item.append(badge, ` ${said.why ? `${said.why}, ` : ""}after ${said.took_ms.toFixed(1)} ms`);
      } else {
        item.append(element("span", "not asked", "badge"));
      }
      list.append(item);
    }
    found.replaceChildren(title, key, list);
  } catch (error) {
    found.replaceChildren(element("p", error.message, "error"));
  }
}

document.getElementById("find")?.addEventListener("submit", (event) => {
  event.preventDefault();
  find(document.getElementById("reference").value);
});

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-find]");
  if (!button) return;
  document.getElementById("reference").value = button.dataset.find;
  find(button.dataset.find);
  document.getElementById("find").scrollIntoView({ block: "nearest" });
});

// --- Overview: what doctor says. Looking is free; the button has another node deliver a few bytes, too.

const findings = document.getElementById("findings");

function tell(report) {
  const kinds = { broken: "badge failed", warning: "badge warn" };
  const items = (states) => {
    const list = element("ul", undefined, "findings");
    for (const finding of report.findings.filter((one) => states.includes(one.state))) {
      const item = element("li");
      item.append(element("span", finding.state, kinds[finding.state] || "badge"), " ", element("b", finding.check), ` ${finding.seen}`);
      if (finding.cure) item.append(element("pre", finding.cure));
      list.append(item);
    }
    return list;
  };
  // What is to be done first; what could not be looked at is there for those who ask.
  const wrong = items(["broken", "warning"]);
  const skipped = items(["skipped"]);
  const count = report.findings.length;
  const fine = count - wrong.children.length - skipped.children.length;
  const nothing = wrong.children.length ? "" : "Nothing that could be checked from here. ";
  const told = [wrong, element("p", `${nothing}${fine} of ${count} checks found nothing wrong.`)];
  if (skipped.children.length) {
    const rest = element("details");
    rest.append(element("summary", `${skipped.children.length} could not be made here`), skipped);
    told.push(rest);
  }
  findings.replaceChildren(...told);
}

async function examine(thoroughly) {
  try {
    const path = "/debug/api/doctor";
    const answer = thoroughly ? await post(path, {}) : await fetch(path);
    if (answer.ok) tell(await answer.json());
  } catch (error) {
    findings.replaceChildren(element("p", error.message, "error"));
  }
}

if (findings) {
  examine(false);
  document.getElementById("examine").addEventListener("click", () => examine(true));
}

// --- Try a pull.

const status = document.getElementById("try-status");
const layers = document.getElementById("try-layers");
let rows = new Map();

function row(digest, size) {
  const item = element("li");
  item.dataset.digest = digest;
  const bar = element("progress");
  bar.max = size || 1;
  bar.value = 0;
  bar.setAttribute("aria-label", `Progress of ${digest}`);
  const note = element("span", "waiting", "quiet");
  item.append(element("code", digest), bar, note);
  layers.append(item);
  rows.set(digest, { item, bar, note, size });
}

function source(event) {
  if (event.at) return `from ${event.at}`;
  return event.source === "local" ? "from this node itself" : `from ${event.source}`;
}

function speed(count, millis) {
  return `${bytes((count / Math.max(millis, 1)) * 1000)}/s`;
}

function show(event) {
  const known = rows.get(event.digest);
  switch (event.event) {
    case "manifest":
      status.textContent = `Manifest ${event.digest.slice(0, 19)}… ${source(event)}`;
      break;
    case "platform":
      status.textContent = `Image for ${event.platform}`;
      break;
    case "layers":
      for (const layer of event.layers) row(layer.digest, layer.bytes);
      break;
    case "progress":
      if (!known) break;
      known.bar.value = event.bytes;
      known.note.textContent = `${bytes(event.bytes)} of ${bytes(known.size)}`;
      break;
    case "fetched":
      if (!known) break;
      known.bar.value = known.bar.max;
      known.item.className = "verified";
      known.note.textContent = `${bytes(event.bytes)}, digest verified, ${event.took_ms} ms, ${speed(event.bytes, event.took_ms)}, ${source(event)}`;
      break;
    case "failed": {
      const words = element("p", `${event.error}. What to do: ${event.cure}.`, "error");
      if (!known) { layers.append(words); break; }
      known.item.className = "failed";
      known.note.replaceWith(words);
      break;
    }
    case "ended":
      status.textContent = event.ok
        ? `Pulled: ${bytes(event.bytes)} in ${event.took_ms} ms (${speed(event.bytes, event.took_ms)}). Every digest is right; nothing was stored.`
        : `Not all of it came: ${event.failed} failed. containerd would get that from the registry.`;
      status.dataset.ended = event.ok ? "ok" : "failed";
      break;
  }
}

document.getElementById("try")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  rows = new Map();
  layers.replaceChildren();
  delete status.dataset.ended;
  status.textContent = "Asking the mirror …";
  try {
    const answer = await post("/debug/api/pull", {
      image: document.getElementById("image").value,
      platform: document.getElementById("platform").value,
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) show(JSON.parse(line));
    }
    if (!status.dataset.ended) throw new Error("The node broke off in the middle.");
  } catch (error) {
    status.textContent = error.message;
    status.dataset.ended = "failed";
  } finally {
    button.disabled = false;
  }
});

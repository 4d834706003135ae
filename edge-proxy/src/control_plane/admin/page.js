"use strict";
// Draws the page from one JSON document, and draws it anew every two seconds. Elements are made once and then only
// their texts change, so that scrolling, selections and the keyboard's focus stay where they are.

const INTERVAL = 2000;
// With more endpoints than this on the page, clusters that are all healthy are folded at first.
const FOLD = 60;
const byId = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}
function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}
function cls(element, value) {
  if (element.className !== value) element.className = value;
}

// Numbers and times, short.
const whole = new Intl.NumberFormat("en");
function count(n) {
  if (n == null) return "–";
  if (n < 1e5) return whole.format(Math.round(n));
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (n >= size) return (n / size).toFixed(n / size < 100 ? 1 : 0) + " " + unit;
}
const rate = (n) => (n == null ? "–" : n > 0 && n < 10 ? n.toFixed(1) : count(n));
function share(s) {
  if (s == null) return "–";
  const percent = s * 100;
  return (percent === 0 ? "0" : percent < 0.01 ? "<0.01" : percent.toFixed(percent < 1 ? 2 : 1)) + " %";
}
function millis(ms) {
  if (ms == null) return "–";
  if (ms < 1) return Math.round(ms * 1000) + " µs";
  if (ms < 1000) return (ms < 10 ? ms.toFixed(1) : Math.round(ms)) + " ms";
  return (ms / 1000).toFixed(ms < 10000 ? 1 : 0) + " s";
}
function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 48 * 3600) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " days";
}
const bytes = (n) => (n == null ? "–" : n >= 2 ** 30 ? (n / 2 ** 30).toFixed(1) + " GiB" : (n / 2 ** 20).toFixed(n < 1e8 ? 1 : 0) + " MiB");
const day = (s) => new Date(s * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";
const words = (s) => s.replaceAll("_", " ");

// A keyed list of elements: those that are gone are removed, the others kept in the given order.
function keyed(parent, items, key, create, update) {
  const old = (parent.kept ??= new Map());
  const next = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const k = key(item);
    const element = old.get(k) ?? create(item);
    next.set(k, element);
    update(element, item);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  for (const [k, element] of old) if (next.get(k) !== element) element.remove();
  parent.kept = next;
}

function drawTop(data) {
  document.title = data.server.name + (data.server.hostname ? " · " + data.server.hostname : "");
  text(byId("name"), data.server.name);
  text(byId("host"), [data.server.hostname, data.server.listener].filter(Boolean).join(" · "));
  const { serving, certificate, warmed_up } = data.readiness;
  const { ready, state } = data.server;
  const closed = { starting: "the listener isn't open", closing: "draining, the listener is closed", drained: "drained" }[state];
  const why = !serving ? "told to fail health checks" : !certificate ? "no certificate yet" : !warmed_up ? (data.clusters.some((c) => !c.endpoints.length) ? "no addresses yet" : "first checks run") : closed ?? "";
  const drains = ready && state === "draining";
  text(byId("ready"), !ready ? "✕ Not ready: " + why : drains ? "! Draining" : "✓ Ready");
  cls(byId("ready"), "pill " + (!ready ? "bad" : drains ? "warn" : "good"));

  const notices = [];
  const { certificate: cert, configuration, now_ms: now } = data;
  if (cert.last_error) notices.push(["bad", "Certificate: " + cert.last_error.message + age(cert.last_error.at_ms, now) + (cert.current ? ". The one before is still served." : "")]);
  if (cert.current) {
    const left = cert.current.not_after * 1000 - now;
    if (left <= 0) notices.push(["bad", "The certificate has expired on " + day(cert.current.not_after) + "."]);
    else if (left < 14 * 864e5) notices.push(["warn", "The certificate expires in " + span(left) + "."]);
  }
  if (configuration.last_error)
    notices.push(["bad", "The last reload changed nothing: " + configuration.last_error.message + age(configuration.last_error.at_ms, now)]);
  const stuck = data.process.workers_ms.filter((ms) => ms > 5000).length;
  if (stuck) notices.push(["bad", stuck + " of " + data.process.workers_ms.length + " workers haven't run for 5 s."]);
  for (const cluster of data.clusters)
    if (cluster.panic) notices.push(["warn", "Cluster " + cluster.name + ": so few endpoints are healthy that panic_threshold sends RPCs to all of them."]);
  keyed(byId("notices"), notices, (n) => n.join(), (n) => make("p", "notice " + n[0]), (e, n) => text(e, (n[0] === "bad" ? "✕ " : "! ") + n[1]));
}
const age = (at, now) => " (" + span(now - at) + " ago)";

function drawTiles(data) {
  const t = data.traffic;
  const bad = t.error_share >= 0.01 ? "bad" : "";
  const tiles = [
    ["RPCs per second", rate(t.rate), "last 10 s", ""],
    ["Errors", share(t.error_share), "of RPCs, last minute", bad],
    ["Median time", millis(t.p50_ms), "p50, last minute", ""],
    ["Slowest 1 %", millis(t.p99_ms), "p99, last minute", ""],
    ["In flight", count(t.in_flight), count(t.started) + " since start", ""],
    ["Client connections", count(data.connections.downstream), count(data.connections.upstream) + " to backends", ""],
  ];
  keyed(byId("tiles"), tiles, (t) => t[0], (t) => {
    const tile = make("div", "tile", make("dt", "", t[0]), make("dd", ""), make("dd", "sub"));
    if (t[0] === tiles[0][0]) tile.prepend(sparkline());
    return tile;
  }, (e, [, value, sub, look]) => {
    const [main, small] = e.querySelectorAll("dd");
    text(main, value); cls(main, look); text(small, sub);
  });
  drawSparkline(data.rates);
}
function sparkline() {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 60 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "RPCs per second over two minutes");
  for (const name of ["area", "stroke"]) {
    const path = document.createElementNS(ns, "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}
function drawSparkline(rates) {
  const [area, stroke] = document.querySelectorAll("#tiles path");
  if (rates.length < 2) return;
  const top = Math.max(...rates, 1e-9) * 1.08;
  const step = 60 / Math.max(rates.length - 1, 20);
  const x = (i) => (60 - (rates.length - 1 - i) * step).toFixed(2);
  const line = rates.map((r, i) => x(i) + " " + (19.5 - (r / top) * 19).toFixed(2)).join("L");
  stroke.setAttribute("d", "M" + line);
  area.setAttribute("d", "M" + x(0) + " 20L" + line + "L60 20Z");
}

const HEALTH = {
  healthy: ["good", "✓ Healthy"],
  unhealthy: ["bad", "✕ Unhealthy"],
  unknown: ["warn", "… Not checked yet"],
};
const COLUMNS = [
  ["Endpoint", ""], ["Health", ""], ["RPCs/s", "n"], ["In flight", "n"], ["Failed", "n"],
  ["Attempts", "n minor"], ["Connections", "n minor"], ["Last check", "n minor"], ["Since", "n minor"],
];
let before = null;
const perSecond = new Map();

function drawClusters(data) {
  // Rates of endpoints: what their counters grew since the last time, smoothed a little.
  const seconds = before && (data.now_ms - before.at) / 1000;
  const attempts = new Map();
  for (const cluster of data.clusters)
    for (const endpoint of cluster.endpoints) {
      const key = cluster.name + " " + endpoint.address;
      attempts.set(key, endpoint.attempts);
      const last = before?.attempts.get(key);
      if (last == null || !(seconds > 0) || endpoint.attempts < last) continue;
      const now = (endpoint.attempts - last) / seconds;
      const old = perSecond.get(key);
      perSecond.set(key, old == null ? now : old * 0.6 + now * 0.4);
    }
  for (const key of perSecond.keys()) if (!attempts.has(key)) perSecond.delete(key);
  if (!before || seconds > 0.5) before = { at: data.now_ms, attempts };
  keyed(byId("clusters"), data.clusters, (c) => c.name, (c) => createCluster(c, attempts.size), (e, c) => drawCluster(e, c, data.now_ms));
}

function createCluster(cluster, onPage) {
  const head = make("tr", "", ...COLUMNS.map(([name, look]) => {
    const th = make("th", look, name);
    th.scope = "col";
    return th;
  }));
  const box = make("details", "cluster",
    make("summary", "",
      make("span", "title", make("h3", ""), make("span", "pill")),
      make("span", "facts dim"),
      make("span", "where dim"),
      make("span", "share")),
    make("div", "scroll", make("table", "", make("caption", "", "Endpoints of " + cluster.name), make("thead", "", head), make("tbody"))),
    make("p", "nothing"));
  const scroll = box.querySelector(".scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Endpoints of " + cluster.name);
  box.wanted = null;
  box.open = onPage <= FOLD || !cluster.endpoints.every(isFine);
  return box;
}

function drawCluster(box, cluster, now) {
  const healthy = cluster.endpoints.filter(isFine).length;
  const unknown = cluster.endpoints.filter((e) => e.health === "unknown").length;
  const all = cluster.endpoints.length;
  text(box.querySelector("h3"), cluster.name);
  const pill = box.querySelector(".pill");
  text(pill, all === 0 ? "✕ no endpoint" : healthy === all ? "✓ " + (all === 1 ? "healthy" : "all " + all + " healthy") : healthy + " of " + all + " healthy");
  cls(pill, "pill " + (all && healthy === all ? "good" : healthy === 0 ? "bad" : "warn"));

  const t = cluster.traffic;
  const limits = Object.entries(cluster.circuit_breakers).map(([key, of]) => [count(of.used) + " of " + count(of.limit), key, of.used >= of.limit]);
  const facts = [[rate(t.rate), "RPCs/s"], [share(t.error_share), "errors", t.error_share >= 0.01], [millis(t.p50_ms), "p50"], [millis(t.p99_ms), "p99"], ...limits];
  keyed(box.querySelector(".facts"), facts, (f) => f[1], (f) => make("span", "", make("b", ""), " " + f[1]), (e, f) => {
    text(e.firstChild, f[0]);
    cls(e.firstChild, f[2] ? "bad" : "");
  });
  text(box.querySelector(".where"), cluster.targets.map((target) => describe(target, cluster, now)).join("\n"));
  box.querySelector(".where").classList.toggle("bad", cluster.targets.some((target) => target.last_error));

  const bar = box.querySelector(".share");
  bar.classList.toggle("hidden", healthy === all);
  keyed(bar, [["ok", healthy], ["wait", unknown], ["not", all - healthy - unknown]], (p) => p[0], (p) => make("i", p[0]),
    (e, p) => e.style.setProperty("width", all ? (p[1] / all) * 100 + "%" : "0"));

  const order = { unhealthy: 0, unknown: 1, healthy: 2 };
  const shown = cluster.endpoints.filter(matches)
    .map((e, i) => [e, i]).sort(([a, i], [b, j]) => order[a.health] - order[b.health] || i - j).map(([e]) => e);
  // While a filter is on, the boxes with matches are open; then all are as they were.
  const wanted = filtering() ? shown.length > 0 : null;
  if (wanted !== box.wanted) {
    if (box.wanted == null) box.unfiltered = box.open;
    box.open = wanted ?? box.unfiltered;
    box.wanted = wanted;
  }
  keyed(box.querySelector("tbody"), shown, (e) => e.address, createRow, (row, e) => drawRow(row, e, cluster, now));
  box.querySelector(".scroll").classList.toggle("hidden", shown.length === 0);
  const nothing = box.querySelector(".nothing");
  nothing.classList.toggle("hidden", shown.length > 0);
  text(nothing, all === 0 ? "No endpoint is known: RPCs to this cluster get 14 (UNAVAILABLE)." : "No endpoint of this cluster matches the filter.");
}
function describe(target, cluster, now) {
  const name = words(cluster.discovery) + " · " + target.target;
  if (target.last_error) return name + " · last look-up failed" + age(target.last_error.at_ms, now) + ": " + target.last_error.message;
  if (cluster.discovery === "static") return name;
  return name + (target.last_answer_at_ms == null ? " · no answer yet" : " · answered " + span(now - target.last_answer_at_ms) + " ago");
}

const isFine = (endpoint) => endpoint.health === "healthy" && !endpoint.ejected_for;

function createRow() {
  const row = make("tr", "", ...COLUMNS.map(([, look], i) => make(i === 0 ? "th" : "td", look)));
  row.firstChild.scope = "row";
  row.children[1].className = "health";
  row.children[1].append(make("div", "word"), make("div", "why"));
  return row;
}
function drawRow(row, endpoint, cluster, now) {
  const out = endpoint.ejected_for && endpoint.health === "healthy";
  const [look, word] = out ? ["warn", "! Ejected"] : cluster.health_checked ? HEALTH[endpoint.health] : ["good", "✓ Not checked"];
  const health = row.children[1];
  text(health.firstChild, word);
  cls(health.firstChild, "word " + look);
  const why = [endpoint.reason];
  if (endpoint.standing === "leaving") why.push("gone from DNS; serves until another endpoint is healthy");
  if (endpoint.standing === "withdrawn") why.push("gone from DNS; stays while its check passes");
  if (out) why.push("too many in a row: " + words(endpoint.ejected_for) + "; back in " + span(Math.max(0, endpoint.returns_at_ms - now)));
  if (endpoint.health === "healthy" && !endpoint.eligible) why.push("gets no new RPCs");
  text(health.lastChild, why.filter(Boolean).join(" · "));
  const check = endpoint.last_check;
  const values = [
    endpoint.address, null, rate(perSecond.get(cluster.name + " " + endpoint.address)), count(endpoint.active), count(endpoint.failures),
    count(endpoint.attempts), count(endpoint.connections), check ? millis(check.latency_us / 1000) + ", " + span(now - check.at_ms) + " ago" : "–",
    span(now - endpoint.health_since_ms),
  ];
  values.forEach((value, i) => value !== null && text(row.children[i], value));
}
const filtering = () => byId("ill").checked || byId("find").value.trim() !== "";
function matches(endpoint) {
  if (byId("ill").checked && isFine(endpoint)) return false;
  const wanted = byId("find").value.trim().toLowerCase();
  return !wanted || (endpoint.address + " " + endpoint.health + " " + (endpoint.reason ?? "")).toLowerCase().includes(wanted);
}

function drawCards(data) {
  const { certificate: c, configuration: f, server: s, process: p, now_ms: now } = data;
  const left = c.current && c.current.not_after * 1000 - now;
  const slowest = Math.max(0, ...p.workers_ms);
  const cards = [
    ["Certificate", c.current ? [
      ["Names", c.current.names.join(", ") || "none"],
      ["Expires", day(c.current.not_after) + (left > 0 ? ", in " + span(left) : ", expired"), left < 14 * 864e5 ? (left > 0 ? "warn" : "bad") : ""],
      ["Subject", c.current.subject],
      ["Issuer", c.current.issuer],
      ["Key", c.current.key],
      ["Serial", c.current.serial],
      ["Loaded", span(now - c.current.loaded_at_ms) + " ago"],
      ["Refused", count(c.rejected)],
    ] : [["Served", "none yet", "bad"], ["Waits for", c.chain_path], ["and", c.key_path]]],
    ["Configuration", [
      ["File", f.source ?? "none, made in memory"],
      ["In force", "for " + span(now - f.loaded_at_ms)],
      ["Reloads", count(f.reloads) + " applied, " + count(f.rejected) + " refused" + (f.pending ? ", one is getting ready" : "")],
      ["Generation", count(s.generation)],
      ["Log level", s.log_level],
    ]],
    ["Process", [
      ["Version", s.version],
      ["Uptime", span(s.uptime_ms)],
      ["Workers", p.workers_ms.length + (slowest > 5000 ? ", one hasn't run for " + span(slowest) : ", all run"), slowest > 5000 ? "bad" : ""],
      ["Memory", bytes(p.memory_bytes) + (p.memory_limit_bytes ? " of " + bytes(p.memory_limit_bytes) : "")],
      ...(p.overload !== "calm" ? [["Overload", p.overload, "bad"]] : []),
      ["CPU time", p.cpu_ms == null ? "–" : (p.cpu_ms / 1000).toFixed(1) + " s"],
      ["Log lines dropped", count(p.access_log_dropped), p.access_log_dropped ? "warn" : ""],
      ...(p.control_plane_panics ? [["Panics", count(p.control_plane_panics), "bad"]] : []),
    ]],
  ];
  if (data.limits.length) cards.push(["Limits that acted", data.limits.map(([name, n]) => [words(name), count(n) + (n === 1 ? " time" : " times")])]);
  keyed(byId("cards"), cards, (c) => c[0], (c) => make("div", "card", make("h2", "", c[0]), make("dl")), (e, c) => {
    const pairs = c[1].flatMap(([name, value, look]) => [["dt", name, name, ""], ["dd", name, value, look ?? ""]]);
    keyed(e.lastChild, pairs, (p) => p[0] + p[1], (p) => make(p[0], ""), (x, p) => { text(x, p[2]); cls(x, p[3]); });
  });
}

// The newest data, when it came, and how often asking for newer failed since.
let current = null;
let drawnAt = 0;
let failures = 0;

function draw(data) {
  current = data;
  drawTop(data);
  drawTiles(data);
  drawClusters(data);
  drawCards(data);
}
function drawLive() {
  const old = Date.now() - drawnAt;
  text(byId("live"), failures > 1 || old > 3 * INTERVAL ? "! no answer, data " + span(old) + " old" : "live");
  cls(byId("live"), failures > 1 ? "warn" : "dim");
}
async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch("?format=json", { signal: AbortSignal.timeout(5000), cache: "no-store" });
    if (!response.ok) throw new Error(response.status);
    draw(await response.json());
    failures = 0;
    drawnAt = Date.now();
  } catch {
    failures += 1;
  }
  drawLive();
}
async function loop() {
  await refresh();
  setTimeout(loop, INTERVAL);
}
for (const id of ["ill", "find"]) byId(id).addEventListener("input", () => current && drawClusters(current));
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

draw(JSON.parse(byId("data").textContent));
drawnAt = Date.now();
drawLive();
setTimeout(loop, INTERVAL);

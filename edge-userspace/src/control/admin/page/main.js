// The dashboard: takes the news, and shows each section of it.

import { call, token } from "./changes.js";
import { Feed } from "./feed.js";
import { setUp as setUpRouteTest } from "./routetest.js";
import * as sections from "./sections.js";
import { Rates } from "./sparkline.js";
import { Table, make, setText } from "./table.js";
import { bits, bytes, plural } from "./units.js";
import { showProblems, showVerdict } from "./verdict.js";

const get = id => document.getElementById(id);
const news = {};
const rates = { routes: new Rates(bits), backends: new Rates(bits), whole: new Rates(bits) };
// The time of edged at the last news: the clock of this machine may be another.
const clock = () => Date.parse(news.now?.time ?? 0);

const buttons = { backends: new sections.Buttons(), connections: new sections.Buttons() };
const tables = {
  backends: new Table(get("backends"), sections.backends(clock, rates.backends, drainButton)),
  routes: new Table(get("routes"), sections.routes(rates.routes)),
  refusals: new Table(get("refusals"), sections.refusals(clock)),
  tunnels: new Table(get("tunnels"), sections.tunnels(clock)),
  listeners: new Table(get("listeners"), sections.listeners),
  connections: new Table(get("connections"), sections.connections(closeButton)),
};

function drainButton(backend) {
  if (!token.get() || !news.now?.changes) return undefined;
  const drained = backend.state === "drained";
  const name = `${backend.to} of ${backend.pool}`;
  return buttons.backends.for(sections.backendKey(backend), drained ? "Ready" : "Drain",
    drained ? `Put ${name} back` : `Drain ${name}`, () => change(async () => {
      await call("POST", drained ? "backends/ready" : "backends/drain", { to: backend.to, pool: backend.pool });
      return drained ? `${name} takes new connections again.`
        : `${name} is drained: it gets no new connections, and ${plural(backend.connections, "connection")} stay.`;
    }));
}

function closeButton(connection) {
  return buttons.connections.for(connection.id, "Close", `Close connection ${connection.id} of ${connection.client}`,
    () => change(async () => {
      await call("DELETE", "connections/" + connection.id);
      return `Connection ${connection.id} of ${connection.client} is closed.`;
    }));
}

// Makes a change and says what came of it.
async function change(make) {
  try {
    setText(get("said"), await make());
  } catch (error) {
    setText(get("said"), error.message);
    if (error.status === 401) lock();
  }
  showConnections();
}

const tiles = new Map();
function showTiles() {
  const { status } = news;
  const whole = rates.whole;
  for (const [name, value, key] of [
    ["connections", String(status.connections.now)],
    ["clients to home", bits(whole.line("up")?.last ?? 0), "up"],
    ["home to clients", bits(whole.line("down")?.last ?? 0), "down"],
    ["carried since the start", bytes(status.bytes_up + status.bytes_down)],
    ["refused since the start", String(Object.values(status.rejected).reduce((sum, count) => sum + count, 0))],
    ["packets blocked", String(status.blocked_packets)],
  ]) {
    let tile = tiles.get(name);
    if (!tile) {
      tile = make("dd");
      tiles.set(name, tile);
      const text = make("span");
      tile.append(text);
      get("tiles").append(make("div", {}, make("dt", { text: name }), tile));
    }
    setText(tile.firstChild, value);
    const line = key && whole.line(key)?.node;
    if (line && line.parentNode !== tile) tile.append(line);
  }
}

function measure() {
  const time = clock() / 1000;
  const sum = item => item.bytes_up + item.bytes_down;
  rates.routes.take(time, new Map(news.routes.map(route => [sections.routeKey(route), sum(route)])));
  rates.backends.take(time, new Map(news.backends.map(backend => [sections.backendKey(backend), sum(backend)])));
  rates.whole.take(time, new Map([["up", news.status.bytes_up], ["down", news.status.bytes_down]]));
}

// Everything of one time is here when `now` comes.
function take(name, value) {
  news[name] = value;
  if (name !== "now") return;
  measure();
  showProblems(news.now.problems);
  showTiles();
  showToken();
  buttons.backends.keep(new Set(news.backends.map(sections.backendKey)));
  for (const list of ["backends", "routes", "refusals", "tunnels"]) tables[list].show(news[list]);
  tables.listeners.show(news.status.listeners);
}

function showToken() {
  const { changes } = news.now;
  const held = changes && token.get() !== null;
  get("token-none").hidden = changes;
  get("token").hidden = !changes || held;
  get("token-held").hidden = !held;
  get("connections").hidden = !held;
}

function lock() {
  token.forget();
  tables.connections.show([]);
  if (news.now) {
    showToken();
    tables.backends.show(news.backends);
  }
}

async function showConnections() {
  if (!token.get() || !news.now?.changes || document.hidden) return;
  try {
    const all = await call("GET", "connections.json");
    buttons.connections.keep(new Set(all.map(connection => connection.id)));
    tables.connections.show(all);
  } catch (error) {
    if (error.status !== 401 && error.status !== 403) return;
    setText(get("said"), error.message);
    lock();
  }
}

get("token").addEventListener("submit", event => {
  event.preventDefault();
  token.set(get("token-text").value.trim());
  get("token-text").value = "";
  setText(get("said"), "");
  showToken();
  tables.backends.show(news.backends);
  showConnections();
});
get("lock").addEventListener("click", lock);
get("find").addEventListener("submit", event => event.preventDefault());
get("search").addEventListener("input", event => {
  for (const table of Object.values(tables)) table.search(event.target.value);
});

setUpRouteTest();
setInterval(showConnections, 2000);
new Feed(take, (feed, seconds) => {
  document.body.dataset.feed = feed;
  showVerdict(news, feed, seconds);
});

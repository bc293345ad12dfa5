// The columns of each list.

import { make } from "./table.js";
import { age, ago, bits, bytes } from "./units.js";

const list = values => (values ?? []).join(", ");
const LEVELS = { up: "well", unchecked: "empty", down: "fail", drained: "warn" };
const SIGNS = { up: "✓ up", unchecked: "○ unchecked", down: "✕ down", drained: "‖ drained" };
// Down first: a list as it is sorted by state has what is wrong on top.
const RANKS = { down: 0, drained: 1, unchecked: 2, up: 3 };

// Backends and routes are named by all that makes two of them different.
export const backendKey = b => JSON.stringify([b.pool, b.to, b.device]);
export const routeKey = r => JSON.stringify([r.host, r.listener, r.protocol, r.alpn, r.from]);

const state = { title: "State", kind: "state", text: b => SIGNS[b.state], level: b => LEVELS[b.state], value: b => RANKS[b.state] };

// A cell with the present rate and its course.
const rate = (rates, key) => ({
  title: "Rate", kind: "number spark-cell", text: row => bits(rates.line(key(row))?.last ?? 0),
  value: row => rates.line(key(row))?.last ?? 0, node: row => rates.line(key(row))?.node,
});

// When a backend was last known to work or to fail.
function lastCheck(b, now) {
  const times = [[b.last_success_at, "ok"], [b.last_error_at, "failed"]].filter(([time]) => time);
  if (!times.length) return "never checked";
  const [time, how] = times.sort(([a], [b]) => Date.parse(b) - Date.parse(a))[0];
  return `${how} ${ago(time, now)}`;
}

// Why a backend is not up, or what last failed.
const reason = (b, now) => b.state !== "up" && b.reason ? b.reason
  : b.last_error ? `${ago(b.last_error_at, now)}: ${b.last_error}` : "";

export const backends = (clock, rates, action) => ({
  caption: "Backends with their health, tunnel and traffic",
  key: backendKey,
  sort: { at: 0, down: false },
  empty: "There is no backend yet.",
  columns: [
    state,
    { title: "Backend", heads: true, text: b => b.to },
    { title: "Pool", text: b => b.pool === b.to ? "" : b.pool },
    { title: "Since", text: b => age((clock() - Date.parse(b.since)) / 1000), value: b => -Date.parse(b.since), kind: "number" },
    { title: "Last check", text: b => lastCheck(b, clock()), value: b => Date.parse(b.last_success_at ?? b.last_error_at) || 0 },
    { title: "Tunnel", text: b => b.device },
    { title: "Connections", kind: "number", text: b => String(b.connections), value: b => b.connections },
    rate(rates, backendKey),
    { title: "Carried", kind: "number", text: b => bytes(b.bytes_up + b.bytes_down), value: b => b.bytes_up + b.bytes_down },
    { title: "Round trip", kind: "number", text: b => b.rtt_ms === null ? "" : b.rtt_ms.toFixed(1) + " ms", value: b => b.rtt_ms ?? 0 },
    { title: "Reason", kind: "words", text: b => reason(b, clock()) },
    { hidden: "Change", kind: "action", node: action },
  ],
});

const routeDetails = r => [list(r.protocol), list(r.alpn) && "ALPN " + list(r.alpn), list(r.from) && "from " + list(r.from),
  list(r.allow) && "allows " + list(r.allow), list(r.deny) && "denies " + list(r.deny)].filter(Boolean).join("; ");

export const routes = rates => ({
  caption: "Routes with their targets and traffic",
  key: routeKey,
  empty: "There is no route yet: edgectl routes add cloud.example.com 100.64.0.2",
  columns: [
    { title: "Host", heads: true, text: r => r.host },
    { title: "To", kind: "words", text: r => list([r.to].flat()) },
    { title: "Connections", kind: "number", text: r => String(r.connections), value: r => r.connections },
    rate(rates, routeKey),
    { title: "Carried", kind: "number", text: r => bytes(r.bytes_up + r.bytes_down), value: r => r.bytes_up + r.bytes_down },
    { title: "Listener", text: r => list(r.listener) || "all" },
    { title: "Conditions", kind: "words", text: routeDetails },
    { title: "From", text: r => r.source === "file" ? "file" : "edgectl" },
  ],
});

const REASONS = {
  no_route: "no route for this name", refused: "the route refuses everyone", denied: "this source may not come",
  connect_failed: "no backend could be connected", blocked: "the source is blocked", hello_timeout: "said nothing in time",
  source_limit: "too many connections from one source", source_rate: "too many new connections from one source",
  route_limit: "the route is at its limit", backend_limit: "the backends are at their limit",
};

export const refusals = clock => ({
  caption: "The last refusals, by reason and name",
  key: r => JSON.stringify([r.reason, r.name, r.listener, r.route]),
  empty: "Nobody was refused since edged started.",
  columns: [
    { title: "Name", heads: true, text: r => r.name ?? "(none)" },
    { title: "Reason", kind: "words", text: r => (REASONS[r.reason] ?? r.reason.replaceAll("_", " ")) + (r.error ? `: ${r.error}` : "") },
    { title: "Last", kind: "number", text: r => ago(r.at, clock()), value: r => Date.parse(r.at) },
    { title: "Times", kind: "number", text: r => String(r.count), value: r => r.count },
    { title: "Listener", text: r => r.listener },
    { title: "Route", text: r => r.route },
  ],
});

export const tunnels = clock => ({
  caption: "Devices that backends are reached through",
  key: t => t.device,
  empty: "No backend is bound to a device, and no WireGuard device is followed.",
  columns: [
    { title: "State", kind: "state", text: t => t.up ? "✓ up" : "✕ down", level: t => t.up ? "well" : "fail", value: t => Number(t.up) },
    { title: "Device", heads: true, text: t => t.device },
    { title: "MTU", kind: "number", text: t => t.mtu === null ? "" : String(t.mtu), value: t => t.mtu ?? 0 },
    { title: "Last handshake", kind: "number", value: t => Date.parse(t.last_handshake) || 0,
      text: t => t.last_handshake ? ago(t.last_handshake, clock()) : t.wireguard ? "never" : "not WireGuard" },
    { title: "Peers", kind: "number", text: t => t.wireguard ? String(t.peers) : "", value: t => t.peers },
  ],
});

export const listeners = {
  caption: "Listeners with their addresses",
  key: l => l.name,
  empty: "There is no listener.",
  columns: [
    { title: "State", kind: "state", text: l => l.troubles.length ? "✕ not reached" : "✓ open", level: l => l.troubles.length ? "fail" : "well" },
    { title: "Listener", heads: true, text: l => l.name },
    { title: "Protocol", text: l => list(l.protocols) || l.protocol },
    { title: "Bind", text: l => list(l.bind) },
    { title: "Connections", kind: "number", text: l => String(l.connections), value: l => l.connections },
    { title: "Accepted", kind: "number", text: l => String(l.accepted), value: l => l.accepted },
    { title: "MSS", kind: "number", text: l => l.mss === null ? "" : String(l.mss), value: l => l.mss ?? 0 },
  ],
};

export const connections = action => ({
  caption: "Connections of this moment",
  key: c => c.id,
  empty: "There is no connection.",
  columns: [
    { title: "Client", heads: true, text: c => c.client },
    { title: "Host", text: c => c.host },
    { title: "Backend", text: c => c.backend },
    { title: "Data path", text: c => c.datapath },
    { title: "Age", kind: "number", text: c => age(c.age_seconds), value: c => c.age_seconds },
    { title: "Idle", kind: "number", text: c => age(c.idle_seconds), value: c => c.idle_seconds },
    { title: "Up", kind: "number", text: c => bytes(c.bytes_up), value: c => c.bytes_up },
    { title: "Down", kind: "number", text: c => bytes(c.bytes_down), value: c => c.bytes_down },
    { title: "Id", kind: "number", text: c => String(c.id), value: c => c.id },
    { hidden: "Change", kind: "action", node: action },
  ],
});

// A button of a row, the same one as long as the row lives.
export class Buttons {
  #known = new Map();

  for(key, text, label, press) {
    let button = this.#known.get(key);
    if (!button) {
      const node = make("button", { type: "button" });
      button = { node };
      node.addEventListener("click", () => button.press());
      this.#known.set(key, button);
    }
    button.press = press;
    if (button.node.textContent !== text) {
      button.node.textContent = text;
      button.node.setAttribute("aria-label", label);
    }
    return button.node;
  }

  // Forgets those of rows that are gone.
  keep(keys) {
    for (const key of this.#known.keys()) if (!keys.has(key)) this.#known.delete(key);
  }
}

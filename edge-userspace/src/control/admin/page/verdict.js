// The first line: is everything well? And below it what is not, with cause and remedy.

import { make, setAttribute, setText } from "./table.js";
import { age, plural } from "./units.js";

const get = id => document.getElementById(id);
const SIGNS = { well: "✓", empty: "○", warn: "!", fail: "✕", stale: "…", dead: "✕", waiting: "…" };

// The level and the words, from the last news, the state of the feed and the age of the news in seconds.
export function judge({ now, status, routes }, feed, seconds) {
  if (feed === "ended") return ["dead", "edged has ended. This page looks for it every two seconds"];
  if (feed === "dead" && seconds === null) return ["dead", "edged does not answer"];
  if (feed === "dead") return ["dead", `edged does not answer: what follows is ${age(seconds)} old`];
  if (feed === "stale") return ["stale", `No news from edged: what follows is ${age(seconds)} old`];
  if (!now || !status) return ["waiting", "Asking edged how it is"];
  const count = level => now.problems.filter(problem => problem.status === level).length;
  const [fails, warns] = [count("fail"), count("warn")];
  const warnings = plural(warns, "warning");
  if (fails) return ["fail", `Not well: ${plural(fails, "problem")}${warns ? " and " + warnings : ""}`];
  if (warns) return ["warn", `Clients are served, with ${warnings}`];
  if (!routes?.length && status.listeners.every(listener => ["tls", "http"].includes(listener.protocol)))
    return ["empty", "edged runs, and has no route yet"];
  return ["well", "Everything is well"];
}

export function showVerdict(news, feed, seconds) {
  const [level, words] = judge(news, feed, seconds);
  setAttribute(document.body, "data-level", level);
  setText(get("sign"), SIGNS[level]);
  setText(get("verdict"), words);
  const title = `${SIGNS[level]} ${words} – edge`;
  if (document.title !== title) document.title = title;
  setText(get("about"), about(news, level, feed));
}

function about({ status }, level, feed) {
  if (feed === "dead" || feed === "ended")
    return "On the server: systemctl status edge, then journalctl -u edge -n 50. If it runs, the way from here to it is cut.";
  if (level === "empty") return "The first one: edgectl routes add cloud.example.com 100.64.0.2";
  if (!status) return "";
  const { up, unchecked, down, drained } = status.backends;
  const states = [[up, "up"], [unchecked, "unchecked"], [down, "down"], [drained, "drained"]];
  const backends = states.filter(([count]) => count).map(([count, state]) => count + " " + state).join(", ");
  return `edge ${status.version}, up ${age(status.uptime_seconds)} · `
    + `${plural(status.routes.file + status.routes.runtime, "route")} · backends: ${backends || "none"} · `
    + plural(status.connections.now, "connection");
}

const items = new Map();

// Problems by name; each stays where it is while it lasts.
export function showProblems(problems) {
  const list = get("problem-list");
  const names = new Set(problems.map(problem => problem.name));
  for (const [name, item] of items) {
    if (names.has(name)) continue;
    item.node.remove();
    items.delete(name);
  }
  problems.forEach((problem, at) => {
    let item = items.get(problem.name);
    if (!item) {
      const [kind, cause, remedy] = [make("strong"), make("p"), make("p", { class: "remedy" })];
      item = { node: make("li", {}, kind, cause, remedy), kind, cause, remedy };
      items.set(problem.name, item);
    }
    setAttribute(item.node, "data-level", problem.status);
    setText(item.kind, `${problem.status === "fail" ? "✕ Problem" : "! Warning"}: ${problem.name}`);
    setText(item.cause, problem.message);
    const remedy = problem.remedy ? "To mend it: " + problem.remedy : "";
    if (item.remedy.said !== remedy) {
      item.remedy.said = remedy;
      // Commands stand between backticks.
      item.remedy.replaceChildren(...remedy.split("`").map((part, odd) => odd % 2 ? make("code", { text: part }) : part));
    }
    if (list.children[at] !== item.node) list.insertBefore(item.node, list.children[at] ?? null);
  });
  get("problems").hidden = !problems.length;
}

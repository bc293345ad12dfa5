// "Which route would win?": asks edged, changes nothing.

import { call } from "./changes.js";
import { Table, setText } from "./table.js";

const get = id => document.getElementById(id);
const list = values => values.join(", ");

export function setUp() {
  const form = get("routetest");
  const considered = new Table(get("routetest-considered"), {
    caption: "Routes looked at, in the order of precedence",
    key: row => JSON.stringify([row.host, row.listener, row.protocol, row.alpn, row.from]),
    empty: "There is no route.",
    columns: [
      { title: "Wins", kind: "state", text: row => row.wins ? "✓ wins" : "no", level: row => row.wins ? "well" : "" },
      { title: "Route", heads: true, text: row => row.host },
      { title: "To", kind: "words", text: row => list([row.to].flat()) },
      { title: "Why", kind: "words", text: row => row.reason },
    ],
  });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const query = new URLSearchParams();
    for (const [name, text] of new FormData(form)) {
      const values = name === "alpn" ? text.split(/[\s,]+/) : [text.trim()];
      for (const value of values) if (value) query.append(name, value);
    }
    try {
      const test = await call("GET", "routes/test?" + query);
      setText(get("routetest-outcome"), `A client that asks for ${test.host ?? "no name"} on ${test.listener}: `
        + (test.route ? `the route ${test.route.host} wins; it ` : "") + test.outcome + ".");
      considered.show(test.considered);
      get("routetest-considered").hidden = false;
    } catch (error) {
      setText(get("routetest-outcome"), "No answer: " + error.message);
      get("routetest-considered").hidden = true;
    }
  });
}

// The course of a rate over the last two minutes, as an SVG line.

const LENGTH = 120;
const HEIGHT = 22;
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

export class Sparkline {
  #values = [];
  #line = shape("polyline", { class: "line", "vector-effect": "non-scaling-stroke" });
  #area = shape("polygon", { class: "area" });
  #format;
  node = shape("svg", {
    class: "spark", role: "img", viewBox: `0 0 ${LENGTH - 1} ${HEIGHT}`, preserveAspectRatio: "none",
  });

  // `format` writes a value for those who cannot see the line.
  constructor(format) {
    this.#format = format;
    this.node.append(this.#area, this.#line);
    this.#draw();
  }

  get last() {
    return this.#values.at(-1) ?? 0;
  }

  push(value) {
    this.#values.push(value);
    if (this.#values.length > LENGTH) this.#values.shift();
    this.#draw();
  }

  #draw() {
    const most = Math.max(...this.#values, 0);
    const first = LENGTH - this.#values.length;
    const points = this.#values.map((value, at) =>
      `${first + at},${(HEIGHT - 1 - (most ? value / most : 0) * (HEIGHT - 2)).toFixed(1)}`);
    this.#line.setAttribute("points", points.join(" "));
    this.#area.setAttribute("points",
      points.length ? `${first},${HEIGHT} ${points.join(" ")} ${LENGTH - 1},${HEIGHT}` : "");
    const text = most ? `at most ${this.#format(most)} in the last two minutes` : "nothing in the last two minutes";
    if (this.node.getAttribute("aria-label") !== text) this.node.setAttribute("aria-label", text);
  }
}

// Rates of things with counters: keeps a line for each key.
export class Rates {
  #known = new Map();
  #format;

  constructor(format) {
    this.#format = format;
  }

  // Takes the counters of one time, in seconds; forgets keys that are gone.
  take(time, counters) {
    for (const key of this.#known.keys()) if (!counters.has(key)) this.#known.delete(key);
    for (const [key, count] of counters) {
      const known = this.#known.get(key);
      if (!known) {
        this.#known.set(key, { time, count, line: new Sparkline(this.#format) });
      } else if (time > known.time) {
        // A counter that falls has begun anew.
        known.line.push(Math.max(0, count - known.count) / (time - known.time));
        Object.assign(known, { time, count });
      }
    }
  }

  line(key) {
    return this.#known.get(key)?.line;
  }
}

// News of edged: server-sent events, or a look every few seconds where there is no place for one more stream.

const EVENTS = ["status", "routes", "backends", "tunnels", "refusals", "now"];
// Without news for so long, what is shown is old.
const STALE = 5000;
const AGAIN = 5000;

export class Feed {
  #take;
  #tell;
  #source = null;
  #retry = 0;
  #last = 0;
  #ended = false;
  #failed = false;

  // `take(name, value)` gets each section; `tell(state, seconds)` whether the news is "live", "stale", "ended" or "dead",
  // and how old it is; `null` seconds before the first.
  constructor(take, tell) {
    this.#take = take;
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => document.hidden ? this.#close() : this.#open());
    setInterval(() => this.#judge(), 1000);
    this.#open();
  }

  #open() {
    this.#close();
    const source = new EventSource("events");
    this.#source = source;
    for (const name of EVENTS) source.addEventListener(name, event => this.#news(name, JSON.parse(event.data)));
    source.addEventListener("ended", () => {
      this.#ended = true;
      this.#judge();
    });
    source.addEventListener("error", () => {
      this.#failed = true;
      this.#judge();
      // The browser connects again by itself, unless the answer was no stream.
      if (source.readyState === EventSource.CLOSED) this.#look();
    });
  }

  #close() {
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
  }

  async #look() {
    try {
      const answer = await fetch("overview.json");
      if (answer.ok) {
        const overview = await answer.json();
        for (const name of EVENTS) this.#news(name, overview[name]);
      }
    } catch {
      this.#failed = true;
    }
    this.#retry = setTimeout(() => this.#open(), AGAIN);
  }

  #news(name, value) {
    this.#take(name, value);
    if (name !== "now") return;
    this.#last = performance.now();
    this.#ended = this.#failed = false;
    this.#judge();
  }

  #judge() {
    const age = this.#last ? performance.now() - this.#last : null;
    const seconds = age === null ? null : Math.floor(age / 1000);
    if (this.#ended) this.#tell("ended", seconds);
    else if (this.#failed && (age === null || age > STALE / 2)) this.#tell("dead", seconds);
    else if (age !== null && age > STALE && !document.hidden) this.#tell("stale", seconds);
    else if (age !== null) this.#tell("live", seconds);
  }
}

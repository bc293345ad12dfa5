// A table whose rows are kept by key: an update changes texts in place, so that focus, selection and the place of the
// reader survive. On a narrow screen the style shows each row as a card; roles are explicit because of that.

// Rows shown at most; a search finds the others.
const SHOWN = 500;

export function make(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// A column: `title`; `text(row)` is shown and searched, `value(row)` sorted by (the text, if there is none); `kind` is
// "number", "state" or "words"; `heads` marks the one that names the row; `level(row)` colours the cell; `node(row)` is an
// element to show beside or instead of the text, the same one every time.
export class Table {
  #columns;
  #key;
  #empty;
  #rows = [];
  #lines = new Map();
  #sort;
  #search = "";
  #body = make("tbody", { role: "rowgroup" });
  #heads = [];
  #wide;
  #note = make("p", { class: "soft note" });
  #choice;

  constructor(root, { caption, columns, key, empty, sort = null }) {
    this.#columns = columns;
    this.#key = key;
    this.#empty = empty;
    this.#sort = sort;
    const heads = make("tr", { role: "row" });
    this.#choice = make("select");
    this.#choice.append(make("option", { text: "as listed", value: "" }));
    columns.forEach((column, at) => {
      const head = make("th", { scope: "col", role: "columnheader", class: column.kind });
      if (column.title && !column.unsorted) {
        const button = make("button", { type: "button", text: column.title });
        button.addEventListener("click", () => this.#toggle(at));
        head.append(button);
        this.#choice.append(make("option", { text: column.title, value: String(at) }));
      } else {
        head.textContent = column.title || column.hidden;
        if (!column.title) head.classList.add("unseen-text");
      }
      this.#heads.push(head);
      heads.append(head);
    });
    this.#choice.addEventListener("change", () => {
      this.#sort = this.#choice.value === "" ? null : { at: Number(this.#choice.value), down: false };
      this.#draw();
    });
    const table = make("table", { role: "table" }, make("caption", { text: caption }),
      make("thead", { role: "rowgroup" }, heads), this.#body);
    const sorting = make("label", { class: "sorting", text: "Sort by " }, this.#choice);
    this.#wide = make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption }, table);
    root.append(sorting, this.#wide, this.#note);
    this.#draw();
  }

  show(rows) {
    this.#rows = rows;
    this.#draw();
  }

  search(text) {
    this.#search = text.trim().toLowerCase();
    this.#draw();
  }

  #toggle(at) {
    // Up, down, as listed.
    if (this.#sort?.at !== at) this.#sort = { at, down: this.#columns[at].kind === "number" };
    else if (this.#sort.down === (this.#columns[at].kind === "number")) this.#sort = { at, down: !this.#sort.down };
    else this.#sort = null;
    this.#draw();
  }

  #draw() {
    const found = this.#rows.filter(row =>
      !this.#search || this.#columns.some(column => (column.text?.(row) ?? "").toLowerCase().includes(this.#search)));
    this.#order(found);
    const shown = found.slice(0, SHOWN);
    const lines = shown.map(row => this.#line(row));
    const kept = new Set(lines);
    for (const [key, line] of this.#lines) {
      if (!kept.has(line)) {
        line.node.remove();
        this.#lines.delete(key);
      }
    }
    this.#wide.hidden = !lines.length;
    this.#place(lines.map(line => line.node));
    const hidden = found.length - shown.length;
    setText(this.#note, !this.#rows.length ? this.#empty : !found.length ? "Nothing here matches the search."
      : hidden ? `And ${hidden} more: search for them.` : "");
  }

  #order(rows) {
    this.#heads.forEach((head, at) => {
      const mine = this.#sort?.at === at;
      setAttribute(head, "aria-sort", mine ? (this.#sort.down ? "descending" : "ascending") : "none");
    });
    this.#choice.value = this.#sort ? String(this.#sort.at) : "";
    if (!this.#sort) return;
    const column = this.#columns[this.#sort.at];
    const value = column.value ?? column.text;
    const compare = (a, b) => typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    rows.sort((a, b) => {
      const [first, second] = [value(a) ?? "", value(b) ?? ""];
      return (this.#sort.down ? -1 : 1) * compare(first, second);
    });
  }

  #line(row) {
    const key = this.#key(row);
    let line = this.#lines.get(key);
    if (!line) {
      line = { node: make("tr", { role: "row" }), cells: [] };
      for (const column of this.#columns) {
        const cell = column.heads ? make("th", { scope: "row", role: "rowheader" }) : make("td", { role: "cell" });
        if (column.kind) cell.className = column.kind;
        if (column.title) cell.dataset.label = column.title;
        const text = make("span");
        cell.append(text);
        line.cells.push({ cell, text });
        line.node.append(cell);
      }
      this.#lines.set(key, line);
    }
    this.#columns.forEach((column, at) => {
      const { cell, text } = line.cells[at];
      const words = column.text?.(row) ?? "";
      setText(text, words || (column.node ? "" : "–"));
      cell.classList.toggle("none", !words && !column.node);
      if (column.level) setAttribute(cell, "data-level", column.level(row));
      const node = column.node?.(row);
      if (node !== cell.shown) {
        cell.shown?.remove();
        if (node) cell.append(node);
        cell.shown = node;
      }
    });
    return line;
  }

  // Brings rows into their order and never moves the one with the focus or the selection.
  #place(wanted) {
    const holds = node => node && this.#body.contains(node);
    const chosen = [document.activeElement, document.getSelection()?.anchorNode].find(holds);
    const still = chosen && wanted.find(row => row.contains(chosen));
    let at = this.#body.firstElementChild;
    for (const row of wanted) {
      if (row === still) {
        while (at !== row) {
          const next = at.nextElementSibling;
          this.#body.append(at);
          at = next;
        }
      }
      if (row === at) at = at.nextElementSibling;
      else this.#body.insertBefore(row, at);
    }
  }
}

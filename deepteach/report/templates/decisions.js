// Decisions: a label for the index of a sample, "" where it is dropped; as csv, and kept.

/** Cells of a csv text, row by row; quotes as in RFC 4180. Blank lines are left out. */
function csvRows(text) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  const end = () => { row.push(cell); cell = ""; };
  const line = () => { end(); if (row.length > 1 || row[0] !== "") rows.push(row); row = []; };
  const all = text.replace(/^\uFEFF/, "").replace(/\r\n?/g, "\n");
  for (let i = 0; i < all.length; i += 1) {
    const c = all[i];
    if (quoted && c === '"' && all[i + 1] === '"') { cell += c; i += 1; }
    else if (c === '"' && (quoted || cell === "")) quoted = !quoted;
    else if (!quoted && c === ",") end();
    else if (!quoted && c === "\n") line();
    else cell += c;
  }
  if (quoted) throw new Error("a quote is not closed");
  if (cell !== "" || row.length) line();
  return rows;
}

/** A map from index to label. `known`: labels that there are; empty where any may be. */
function readDecisions(text, known) {
  const rows = csvRows(text);
  const heads = (rows.shift() || []).map((name) => name.trim());
  const [at, of] = [heads.indexOf("index"), heads.indexOf("label")];
  if (at < 0 || of < 0) throw new Error("expected the columns index and label");
  const found = new Map();
  rows.forEach((row, i) => {
    const index = (row[at] || "").trim(), label = (row[of] || "").trim();
    const where = `row ${i + 1}`;
    if (!/^\d+$/.test(index)) throw new Error(`${where}: the index is '${index}', no whole number`);
    if (found.has(Number(index))) throw new Error(`${where}: index ${index} comes twice`);
    if (label && known.size && !known.has(label)) {
      throw new Error(`${where}: '${label}' is no label of this run`);
    }
    found.set(Number(index), label);
  });
  return found;
}

function csvOf(decisions) {
  const cell = (text) => (/[",\n\r]|^\s|\s$/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const rows = [...decisions].sort((a, b) => a[0] - b[0]);
  return ["index,label", ...rows.map(([index, label]) => `${index},${cell(label)}`), ""].join("\n");
}

/** The marks of one run: kept in the browser where it lets us, undone step by step. */
class Marks {
  constructor(run) {
    this.key = `deepteach:${run}`;
    this.found = new Map();
    this.steps = [];
    this.kept = this.load();
  }

  /** Whether the browser keeps anything for this page. */
  load() {
    let text;
    try {
      text = localStorage.getItem(this.key) || "[]";
      localStorage.setItem(this.key, text);
    } catch {
      return false;
    }
    try {
      this.found = new Map(JSON.parse(text));
    } catch {
      this.found = new Map(); // not ours: the next mark replaces it
    }
    return true;
  }

  save() {
    if (!this.kept) return;
    try {
      localStorage.setItem(this.key, JSON.stringify([...this.found]));
    } catch {
      this.kept = false; // it was full, or was closed to us meanwhile
    }
  }

  /** One step: labels by index, undefined where a mark is to go. */
  set(changes) {
    const before = new Map();
    for (const [index, label] of changes) {
      before.set(index, this.found.get(index));
      if (label === undefined) this.found.delete(index);
      else this.found.set(index, label);
    }
    this.steps.push(before);
    this.save();
  }

  /** The indices whose marks the last step had changed; nothing where there is none. */
  undo() {
    const before = this.steps.pop();
    if (!before) return [];
    this.set(before);
    this.steps.pop();
    return [...before.keys()];
  }
}

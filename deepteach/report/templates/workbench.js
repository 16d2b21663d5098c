// The samples to be judged: one is chosen, marked, and the next one without a mark is chosen.

function workbench(root) {
  const $ = (selector) => root.querySelector(selector);
  const $$ = (selector) => [...root.querySelectorAll(selector)];
  const free = root.hasAttribute("data-free");
  const list = $("ol.suspects"), cards = [...list.children], inspector = $(".inspector");
  const table = root.parentElement.querySelector("details table");
  const rows = new Map(table ? [...table.tBodies[0].rows].map((row) => [row.cells[0].textContent, row]) : []);
  const heads = table ? [...table.tHead.rows[0].cells].map((head) => head.textContent) : [];
  const labels = new Set($$("datalist option").map((one) => one.value));
  const keys = new Map($$("datalist [data-key]").map((one) => [one.dataset.key, one.value]));
  const earlier = readDecisions($(".earlier").textContent || "index,label", new Set());
  const marks = new Marks(root.dataset.run);
  const indexOf = (card) => Number(card.dataset.index);
  let chosen = cards[0], exported = true;

  const kind = (card) => {
    const label = marks.found.get(indexOf(card));
    if (label === undefined) return "none";
    if (label === "") return "drop";
    return label === card.dataset.given ? "right" : "other";
  };
  const words = (card) => {
    const label = marks.found.get(indexOf(card));
    return { none: "", drop: "dropped", right: "right", other: `label ${label}` }[kind(card)];
  };
  const shown = () => cards.filter((card) => !card.hidden);
  const say = (text) => { $(".message").textContent = text; };

  function draw() {
    const counts = { none: 0, drop: 0, right: 0, other: 0 };
    for (const card of cards) {
      const badge = card.querySelector(".badge");
      counts[kind(card)] += 1;
      card.dataset.state = kind(card);
      badge.textContent = words(card);
      card.setAttribute("aria-selected", String(card === chosen));
      card.tabIndex = card === chosen ? 0 : -1;
      const row = rows.get(card.dataset.index);
      if (row) row.dataset.state = kind(card);
    }
    const elsewhere = marks.found.size - (cards.length - counts.none);
    const more = (elsewhere ? `, and ${elsewhere} of samples that are not on this page` : "")
      + (earlier.size ? `; ${earlier.size} decisions that this run began with are exported with them` : "");
    $(".count").textContent = `${cards.length - counts.none} of ${cards.length} marked: `
      + `${counts.right} right, ${counts.drop} dropped, ${counts.other} with another label${more}.`;
    $("[data-action=undo]").disabled = !marks.steps.length;
    $("[data-action=clear]").disabled = !marks.found.size;
    $(".kept").textContent = marks.kept
      ? "Marks are kept in this browser, for this run."
      : "This browser keeps nothing for this page: export before you close it, and import the file to go on.";
    inspect();
  }

  function inspect() {
    inspector.hidden = !chosen || chosen.hidden;
    if (inspector.hidden) return;
    const image = chosen.querySelector("img"), label = marks.found.get(indexOf(chosen));
    $(".picture").replaceChildren(...(image ? [image.cloneNode()] : []));
    $(".what").textContent = `No. ${chosen.dataset.index}: ${chosen.dataset.given} → ${chosen.dataset.suggested}`
      + (words(chosen) && `, marked: ${words(chosen)}`);
    const right = $("[data-mark=right]"), key = document.createElement("kbd");
    key.textContent = "r";
    right.replaceChildren(`Right: keep ${chosen.dataset.given} `, key);
    for (const button of $$("[data-mark]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mark === kind(chosen)));
    }
    for (const button of $$("[data-label]")) {
      button.setAttribute("aria-pressed", String(button.dataset.label === label));
    }
    $("[name=label]").value = label || (free ? chosen.dataset.suggested : "");
    const row = rows.get(chosen.dataset.index);
    $(".details").replaceChildren(...heads.map((head, i) => {
      const pair = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = head;
      dd.textContent = row ? row.cells[i].textContent : "";
      pair.append(dt, dd);
      return pair;
    }));
  }

  function choose(card, focus = true) {
    if (!card) return;
    chosen = card;
    draw();
    if (focus) {
      card.focus({ preventScroll: true });
      card.scrollIntoView({ block: "nearest" });
    }
  }

  /** Give the chosen sample a label ("" drops it), and go to the next one without a mark. */
  function mark(label) {
    if (!chosen || chosen.hidden) return;
    const own = chosen, from = shown();
    marks.set(new Map([[indexOf(own), label]]));
    exported = false;
    const after = from.slice(from.indexOf(own) + 1);
    chosen = after.find((card) => kind(card) === "none") || own;
    filter();
    choose(chosen);
    say(`Sample ${own.dataset.index}: ${words(own)}.`);
  }

  function undo() {
    const changed = new Set(marks.undo());
    if (!changed.size) return say("There is nothing to undo.");
    exported = false;
    filter();
    choose(cards.find((card) => changed.has(indexOf(card)) && !card.hidden) || chosen);
    say("Undone.");
  }

  function filter() {
    const wanted = new Map($$("[data-filter]").map((one) => [one.dataset.filter, one.value]).filter(([, v]) => v));
    for (const card of cards) {
      card.hidden = ![...wanted].every(([name, value]) =>
        name === "mark" ? kind(card) === value : card.dataset[name] === value.slice(1));
      const row = rows.get(card.dataset.index);
      if (row) row.hidden = card.hidden;
    }
    if (!chosen || chosen.hidden) chosen = shown()[0] || chosen;
    draw();
  }

  function exportCsv() {
    const link = document.createElement("a");
    const text = csvOf(new Map([...earlier, ...marks.found]));
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    exported = true;
    say(`Exported ${new Set([...earlier.keys(), ...marks.found.keys()]).size} decisions.`);
  }

  async function importCsv(event) {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      const found = readDecisions(await file.text(), labels);
      marks.set(found);
      filter();
      say(`Imported ${found.size} decisions from ${file.name}.`);
    } catch (error) {
      say(`${file.name} was not imported: ${error.message}.`);
    }
  }

  function move(key) {
    const all = shown(), at = all.indexOf(chosen);
    const across = all.filter((card) => card.offsetTop === all[0].offsetTop).length;
    const to = {
      ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - across, ArrowDown: at + across,
      Home: 0, End: all.length - 1,
    }[key];
    if (to === undefined) return false;
    choose(all[Math.min(Math.max(to, 0), all.length - 1)]);
    return true;
  }

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const key = event.key.toLowerCase(), field = $("[name=label]");
    const actions = {
      r: () => mark(chosen.dataset.given), w: () => mark(""), u: undo, l: () => field.select(),
    };
    if (keys.has(key)) mark(keys.get(key));
    else if (Object.hasOwn(actions, key)) actions[key]();
    else if (!list.contains(event.target) || !move(event.key)) return;
    event.preventDefault();
  }

  for (const card of cards) {
    const badge = document.createElement("span");
    badge.className = "badge";
    card.append(badge);
    card.setAttribute("role", "option");
    card.addEventListener("click", () => choose(card));
  }
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Samples, the least trusted first");
  $(".bench").addEventListener("keydown", press);
  for (const button of $$("[data-mark]")) {
    button.addEventListener("click", () => mark(button.dataset.mark === "right" ? chosen.dataset.given : ""));
  }
  for (const button of $$("[data-label]")) button.addEventListener("click", () => mark(button.dataset.label));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const written = $("[name=label]").value.trim();
    if (written && (free || labels.has(written))) mark(written);
    else say(written ? `'${written}' is no label of this run.` : "Write a label first.");
  });
  for (const one of $$("[data-filter]")) one.addEventListener("change", filter);
  $("[type=file]").addEventListener("change", importCsv);
  function clear() {
    marks.set(new Map([...marks.found.keys()].map((index) => [index, undefined])));
    filter();
    say("All marks are cleared; undo brings them back.");
  }
  const actions = { export: exportCsv, undo, clear };
  for (const button of $$("[data-action]")) button.addEventListener("click", actions[button.dataset.action]);
  addEventListener("storage", (event) => { if (event.key === marks.key && marks.load()) filter(); });
  addEventListener("beforeunload", (event) => { if (!marks.kept && !exported) event.preventDefault(); });
  $(".tools").hidden = false;
  filter();
}

for (const root of document.querySelectorAll(".workbench")) workbench(root);

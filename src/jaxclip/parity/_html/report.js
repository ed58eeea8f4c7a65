"use strict";
// The table of tensors: sorting, filters and pages. Without it the page says the same,
// but of the tensors only the first rows.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const columns = data.columns.map(([key, label, kind, shown, digits]) => ({
    key, label, kind, shown, digits, values: data.rows[key].map(unpacked),
  }));
  const column = Object.fromEntries(columns.map((c) => [c.key, c]));
  const total = column.verdict.values.length;
  const lowered = data.texts.map((text) => text.toLowerCase());

  const initial = () => ({
    sort: null, descending: false, text: "", verdict: "", stage: "", step: "",
    all: false, page: 0, open: new Set(),
  });
  let state = initial();

  function unpacked(value) {
    if (value === "inf") return Infinity;
    if (value === "-inf") return -Infinity;
    return value === null ? NaN : value;
  }

  // As _figures.py writes them.
  function number(value, digits = 3) {
    if (Number.isNaN(value)) return "—";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
    if (value === 0) return "0";
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = Number(exponent);
    const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (power <= -4 || power >= 5) return `${trimmed(mantissa)}e${power}`;
    const [whole, part] = value.toFixed(Math.max(0, digits - 1 - power)).split(".");
    const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
    return trimmed(part ? `${grouped}.${part}` : grouped);
  }

  const many = (count) => count.toLocaleString("en");

  const levels = [[0.03, "a0"], [0.1, "a1"], [0.3, "a2"], [1, "a3"], [10, "b0"],
    [100, "b1"], [1e3, "b2"], [1e5, "b3"]];
  function level(share, passed) {
    const found = (levels.find(([most]) => share <= most) || [0, "b4"])[1];
    return passed || found > "b" ? found : "b0";
  }

  function make(name, options = {}, ...children) {
    const made = Object.assign(document.createElement(name), options);
    made.append(...children);
    return made;
  }

  function icon(passed) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    const name = passed ? "tick" : "cross";
    use.setAttribute("href", `#${name}`);
    svg.setAttribute("class", `icon ${name}`);
    svg.setAttribute("viewBox", "0 0 16 16");
    svg.setAttribute("aria-hidden", "true");
    svg.append(use);
    return svg;
  }

  const isText = (c) => c.kind === "text" || c.kind === "name";

  function written(c, row) {
    const value = c.values[row];
    if (isText(c)) return data.texts[value];
    if (c.kind === "stage") return data.stages[value];
    if (c.kind === "verdict") return value ? "same" : "different";
    if (c.kind === "count") return many(value);
    return number(value, c.digits);
  }

  // Which rows, in which order.
  function matching() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const searched = columns.filter(isText);
    const stage = state.stage === "" ? -1 : Number(state.stage);
    const rows = [];
    for (let row = 0; row < total; row++) {
      if (state.verdict !== "" && column.verdict.values[row] !== Number(state.verdict)) continue;
      if (stage >= 0 && column.stage.values[row] !== stage) continue;
      if (state.step !== "" && column.step.values[row] !== Number(state.step)) continue;
      if (!words.every((word) => searched.some((c) => lowered[c.values[row]].includes(word)))) continue;
      rows.push(row);
    }
    return rows;
  }

  function sorted(rows) {
    if (state.sort === null) return rows;
    const c = column[state.sort];
    const sign = state.descending ? -1 : 1;
    let keys = c.values;
    if (isText(c)) {
      const order = data.texts.map((text, at) => [text, at])
        .sort(([a], [b]) => (a < b ? -1 : Number(a > b)));
      const rank = new Array(order.length);
      order.forEach(([, at], place) => { rank[at] = place; });
      keys = c.values.map((at) => rank[at]);
    }
    // What is missing comes last in either order; equals stay in the order of the run.
    return rows.sort((a, b) => {
      const x = keys[a], y = keys[b];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
      return x === y ? a - b : sign * (x < y ? -1 : 1);
    });
  }

  function cell(c, row) {
    const text = written(c, row);
    const passed = Boolean(column.verdict.values[row]);
    if (c.kind === "verdict") return make("td", { className: "verdict" }, icon(passed), make("span", { className: "said" }, ` ${text}`));
    if (c.kind === "share") {
      const chip = make("span", { className: `chip ${level(c.values[row], passed)}` }, text);
      return make("td", { className: "share" }, chip);
    }
    if (c.kind === "name") {
      const button = make("button", { type: "button" }, make("bdi", { className: "name" }, text));
      button.dataset.row = row;
      button.setAttribute("aria-expanded", String(state.open.has(row)));
      return make("th", { className: "name", scope: "row" }, button);
    }
    const content = isText(c) ? make("bdi", {}, text) : text;
    return make("td", { className: c.kind }, content);
  }

  function more(row, width) {
    const list = make("dl");
    for (const c of columns) {
      const text = written(c, row);
      if (c.kind === "verdict" || c.kind === "name" || text === "") continue;
      const entry = make("div", {}, make("dt", {}, c.label), make("dd", {}, make("bdi", {}, text)));
      if (c.key === "detail" || c.key === "hint") {
        entry.className = "wide";
        list.prepend(entry);
      } else list.append(entry);
    }
    return make("tr", { className: "more" }, make("td", { colSpan: width }, list));
  }

  const table = byId("table");

  function drawHead(shown) {
    const cells = shown.map((c) => {
      const button = make("button", { type: "button" }, c.label);
      button.dataset.key = c.key;
      const th = make("th", { scope: "col", className: c.kind }, button);
      if (c.key === state.sort) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      return th;
    });
    table.tHead.replaceChildren(make("tr", {}, ...cells));
  }

  function draw() {
    const shown = columns.filter((c) => c.shown || state.all);
    const rows = sorted(matching());
    const pages = Math.max(1, Math.ceil(rows.length / data.page));
    state.page = Math.min(state.page, pages - 1);
    const start = state.page * data.page;
    const visible = rows.slice(start, start + data.page);
    const focused = document.activeElement?.dataset ?? {};
    drawHead(shown);
    table.tBodies[0].replaceChildren(...visible.flatMap((row) => {
      const passed = column.verdict.values[row];
      const made = make("tr", { className: passed ? "" : "differs" }, ...shown.map((c) => cell(c, row)));
      return state.open.has(row) ? [made, more(row, shown.length)] : [made];
    }));
    const refocus = focused.key ? `thead [data-key="${focused.key}"]`
      : focused.row ? `tbody [data-row="${focused.row}"]` : null;
    if (refocus) table.querySelector(refocus)?.focus();
    const differ = rows.filter((row) => !column.verdict.values[row]).length;
    const found = rows.length === total ? many(total) : `${many(rows.length)} of ${many(total)}`;
    const order = state.sort === null
      ? "What differs comes first, in the order of the run."
      : `Sorted by ${column[state.sort].label}, ${state.descending ? "descending" : "ascending"}.`;
    const plural = total === 1 ? "tensor" : "tensors";
    byId("status").textContent = rows.length
      ? `${found} ${plural}, of which ${many(differ)} differ. ${order}`
      : `No tensor matches; there are ${many(total)}.`;
    byId("page").textContent = rows.length
      ? `${many(start + 1)} to ${many(start + visible.length)} of ${many(rows.length)}` : "";
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
    document.querySelector(".pages").hidden = pages === 1;
    table.caption.textContent = `All tensors. ${order}`;
  }

  const filters = ["text", "verdict", "stage", "step"];
  function change(changes) {
    Object.assign(state, { page: 0 }, changes);
    for (const key of filters) byId(key).value = state[key];
    byId("all").checked = state.all;
    draw();
  }

  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { key, row } = button.dataset;
    if (row) {
      const at = Number(row);
      if (!state.open.delete(at)) state.open.add(at);
      draw();
    } else if (key === state.sort) {
      change({ descending: !state.descending });
    } else {
      const upwards = ["name", "text", "stage", "verdict"].includes(column[key].kind);
      change({ sort: key, descending: !upwards && key !== "step" });
    }
  });
  for (const key of filters) {
    byId(key).addEventListener("input", (event) => change({ [key]: event.target.value }));
  }
  byId("all").addEventListener("change", (event) => change({ all: event.target.checked }));
  const form = document.querySelector(".controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => { event.preventDefault(); change(initial()); });
  const turn = (by) => { state.page += by; draw(); };
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  form.hidden = false;
  draw();

  // A stage of the chain, or a cell of a step, leads to its tensors.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-stage]");
    if (!link) return;
    const { stage, step } = link.dataset;
    change({ ...initial(), stage: String(data.stages.indexOf(stage)), step: step ?? "" });
  });

  // On paper, all is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
})();

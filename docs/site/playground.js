// The maskers of the playground, over queries and keys that the page brings; each adds to what those before it chose, as
// Reticle's do. tests/python/test_site.py compares them with Reticle's.
"use strict";

const reticle = (() => {
  const {length: n, dim, queries, keys} = PLAYGROUND_DATA;
  const decode = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const q = decode(queries), k = decode(keys), scale = 1 / Math.sqrt(dim);

  // scores[i * n + j] of the keys that causality leaves, and each row's softmax.
  const scores = new Float64Array(n * n), weights = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    let highest = -Infinity, sum = 0;
    for (let j = 0; j <= i; j++) {
      let dot = 0;
      for (let d = 0; d < dim; d++) dot += q[i * dim + d] * k[j * dim + d];
      scores[i * n + j] = dot * scale;
      highest = Math.max(highest, scores[i * n + j]);
    }
    for (let j = 0; j <= i; j++) sum += weights[i * n + j] = Math.exp(scores[i * n + j] - highest);
    for (let j = 0; j <= i; j++) weights[i * n + j] /= sum;
  }

  const free = (mask, i) => [...Array(i + 1).keys()].filter((j) => !mask[i * n + j]);
  const byScore = (row, of) => row.sort((a, b) => of(b) - of(a) || a - b);

  // Each: parameters with their ranges, a label, and keys(i, mask, parameters) -> the keys that row i adds.
  const maskers = {
    sink: {
      label: "sinks", color: "#0072b2", parameters: {sink_size: [0, 64, 4]},
      keys: (i, mask, p) => [...Array(Math.min(p.sink_size, i + 1)).keys()],
    },
    local: {
      label: "sliding window", color: "#e69f00", parameters: {window_size: [0, 128, 16], dilation: [1, 8, 1]},
      keys: (i, mask, p) => [...Array(p.window_size).keys()].map((w) => i - w * p.dilation).filter((j) => j >= 0),
    },
    strided: {
      label: "strided", color: "#56b4e9", parameters: {stride: [2, 64, 32]},
      keys: (i, mask, p) => [...Array(i + 1).keys()].filter((j) => i - j < p.stride || (i - j) % p.stride === 0),
    },
    quest_top_k: {
      label: "Quest's pages", color: "#d55e00", parameters: {heavy_size: [8, 128, 32], page_size: [2, 32, 8], min_pages: [1, 4, 1]},
      keys: (i, mask, p) => {
        const pages = Math.floor(i / p.page_size) + 1, count = Math.max(p.min_pages, Math.floor(p.heavy_size / p.page_size));
        const bound = (page) => {
          let sum = 0;
          const end = Math.min(n, (page + 1) * p.page_size);
          for (let d = 0; d < dim; d++) {
            let least = Infinity, largest = -Infinity;
            for (let j = page * p.page_size; j < end; j++) {
              least = Math.min(least, k[j * dim + d]);
              largest = Math.max(largest, k[j * dim + d]);
            }
            sum += Math.max(q[i * dim + d] * least, q[i * dim + d] * largest);
          }
          return sum;
        };
        const bounds = [...Array(pages).keys()].map(bound);
        const best = byScore([...Array(pages).keys()], (page) => bounds[page]).slice(0, count);
        return best.flatMap((page) => [...Array(p.page_size).keys()].map((w) => page * p.page_size + w)).filter((j) => j <= i);
      },
    },
    oracle_top_k: {
      label: "top-k by exact score", color: "#009e73", parameters: {heavy_size: [0, 128, 16]},
      keys: (i, mask, p) => byScore(free(mask, i), (j) => scores[i * n + j]).slice(0, p.heavy_size),
    },
    oracle_top_p: {
      label: "top-p by exact mass", color: "#cc79a7", parameters: {top_p: [0, 1, 0.5, 0.01]},
      keys: (i, mask, p) => {
        const row = byScore(free(mask, i), (j) => scores[i * n + j]);
        const whole = row.reduce((sum, j) => sum + weights[i * n + j], 0);
        let mass = 0, count = 0;
        while (count < row.length && mass <= p.top_p * whole) mass += weights[i * n + row[count++]];
        return row.slice(0, count);
      },
    },
  };

  // [{type, ...parameters}] -> who chose each position first (0: nobody, else 1 + place in the list), density, mass.
  function build(config) {
    const mask = new Uint8Array(n * n);
    let kept = 0, mass = 0;
    config.forEach(({type, ...parameters}, place) => {
      for (let i = 0; i < n; i++) {
        for (const j of maskers[type].keys(i, mask, parameters)) {
          if (mask[i * n + j]) continue;
          mask[i * n + j] = place + 1;
          kept += 1;
          mass += weights[i * n + j];
        }
      }
    });
    return {mask, density: kept / (n * n), visible: kept / (n * (n + 1) / 2), mass: mass / n};
  }

  return {n, maskers, build};
})();

function startPlayground(root) {
  const canvas = root.querySelector("canvas"), controls = root.querySelector(".controls");
  const figures = root.querySelector(".figures"), json = root.querySelector("textarea");
  const on = {sink: true, local: true, oracle_top_k: true}, values = {};
  canvas.width = canvas.height = reticle.n;

  function draw() {
    const config = Object.keys(reticle.maskers).filter((type) => on[type]).map((type) => ({type, ...values[type]}));
    const {mask, density, visible, mass} = reticle.build(config);
    const context = canvas.getContext("2d"), image = context.createImageData(reticle.n, reticle.n);
    const colors = config.map(({type}) => parseInt(reticle.maskers[type].color.slice(1), 16));
    mask.forEach((place, at) => {
      const color = place === 0 ? 0xffffff : colors[place - 1];
      image.data.set([color >> 16, (color >> 8) & 255, color & 255, 255], 4 * at);
    });
    context.putImageData(image, 0, 0);
    figures.textContent = `${(100 * density).toFixed(1)} % of all positions, ${(100 * visible).toFixed(1)} % of those that causality ` +
      `leaves; ${(100 * mass).toFixed(1)} % of the attention mass`;
    json.value = JSON.stringify({causal: true, maskers: config}, null, 2);
  }

  for (const [type, {label, color, parameters}] of Object.entries(reticle.maskers)) {
    const set = document.createElement("fieldset"), legend = document.createElement("legend");
    const check = Object.assign(document.createElement("input"), {type: "checkbox", checked: on[type] === true});
    check.addEventListener("change", () => { on[type] = check.checked; draw(); });
    const name = document.createElement("label");
    name.append(check, Object.assign(document.createElement("b"), {textContent: label, style: `color: ${color}`}));
    legend.append(name);
    set.append(legend);
    values[type] = {};
    for (const [parameter, [min, max, start, step = 1]] of Object.entries(parameters)) {
      values[type][parameter] = start;
      const range = Object.assign(document.createElement("input"), {type: "range", min, max, step, value: start});
      const shown = Object.assign(document.createElement("output"), {textContent: start});
      range.addEventListener("input", () => {
        values[type][parameter] = Number(range.value);
        shown.textContent = range.value;
        draw();
      });
      const row = document.createElement("label");
      row.append(parameter, range, shown);
      set.append(row);
    }
    controls.append(set);
  }
  draw();
}

if (typeof document !== "undefined") {
  const root = document.getElementById("playground");
  if (root) startPlayground(root);
}

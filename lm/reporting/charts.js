// Draws the charts of a page from its block of JSON; see charts.py.
'use strict';
(() => {
// Plotly adds some room to the greatest number: that must not be infinite.
const data = JSON.parse(document.getElementById('data').textContent,
  (key, x) => typeof x === 'number' && Math.abs(x) > 1e300 ? null : x);
const controls = document.getElementById('controls');
const hidden = new Set();  // numbers of recipes
const stale = new Set(document.querySelectorAll('[data-chart]'));
const visible = new Set();
const SYMBOLS = ['circle', 'square', 'triangle-up', 'diamond', 'triangle-down',
  'cross'];
const DASHES = ['solid', 'dash', 'dot', 'dashdot'];
const COLORS = SYMBOLS.length;
const CROWD = 8;  // recipes; with more, single seeds have no lines
const UNITS = {step: 'step', tokens: 'tokens', flops: 'FLOPs',
  seconds: 'seconds'};
const dark = matchMedia('(prefers-color-scheme: dark)');
const touch = matchMedia('(pointer: coarse)').matches;

// Plotly reads some HTML in names; names of runs are only ever text.
function plain(name, most = 60) {
  const text = [...String(name)];
  const cut = text.length > most ? text.slice(0, most).join('') + '…' :
    text.join('');
  return cut.replace(/&/g, '&amp;').replace(/</g, '&lt;')
    .replace(/>/g, '&gt;');
}

// Resolves a color of the page's style, which follows light and dark.
function color(name) {
  const probe = document.createElement('span');
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// Metrics and keys have any name, such as one of what all objects inherit.
function own(object, name) {
  return object && Object.hasOwn(object, name) ? object[name] : undefined;
}

function look(n) {
  return {color: color(`c${n % COLORS}`), symbol: SYMBOLS[n % COLORS],
    dash: DASHES[Math.floor(n / COLORS) % DASHES.length]};
}

function layout(height, axes) {
  const ink = color('ink'), rule = color('rule'), page = color('page');
  const axis = {gridcolor: rule, linecolor: rule, zerolinecolor: rule,
    automargin: true, exponentformat: 'power'};
  return {height, showlegend: false, hovermode: 'closest',
    dragmode: touch ? false : 'zoom',
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: ink, size: 12, family: 'system-ui, sans-serif'},
    hoverlabel: {bgcolor: page, bordercolor: rule, font: {color: ink},
      namelength: -1, align: 'left'},
    margin: {l: 48, r: 12, t: 28, b: 40},
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: color('soft'),
      activecolor: ink},
    xaxis: {...axis, ...axes.x}, yaxis: {...axis, ...axes.y}};
}

// Buttons are named one by one: others would send a chart to a service.
const CONFIG = {responsive: true, displaylogo: false, plotlyServerURL: '',
  modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']]};

// The x of steps on an axis, or null where a run does not know it.
function places(steps, run, axis) {
  if (axis === 'step') return steps;
  const clock = run && run.clock, from = clock && clock.step;
  const counted = axis === 'flops' && !(clock && clock.flops);
  const key = counted ? 'tokens' : axis;
  if (!from || !clock[key]) return null;
  const factor = counted ? run.flops_per_token : 1;
  if (!factor) return null;
  let n = 1;
  return steps.map(step => {
    while (n < from.length - 1 && from[n] < step) n++;
    const low = from[n - 1], high = from[n];
    const share = high > low ? (step - low) / (high - low) : 0;
    return factor * (clock[key][n - 1] +
      share * (clock[key][n] - clock[key][n - 1]));
  });
}

// An exponential mean that has no bias at its beginning.
function smoothed(y, weight) {
  let sum = 0, total = 0;
  return y.map(value => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function line(curve, run, name, style, width, opacity) {
  const weight = Number(controls.smooth.value);
  const source = weight && curve.means ? curve.means : curve;
  const x = places(source.step, run, controls.x.value);
  if (!x) return null;
  const few = source.step.length <= 30, axis = controls.x.value;
  const where = axis === 'step' ? '' : ` at %{x:.4~s} ${UNITS[axis]}`;
  return {type: 'scatter', x, name,
    y: weight ? smoothed(source.y, weight) : source.y,
    mode: few ? 'lines+markers' : 'lines', opacity, connectgaps: false,
    line: {color: style.color, dash: style.dash, width},
    marker: {color: style.color, symbol: style.symbol, size: few ? 6 : 4},
    customdata: source.step,
    hovertemplate: `%{y:.5g}${where}<br>step %{customdata}` +
      '<extra>%{fullData.name}</extra>'};
}

function curves(chart) {
  const traces = [];
  const crowded = data.recipes.length - hidden.size > CROWD;
  data.recipes.forEach((recipe, n) => {
    if (hidden.has(n)) return;
    const style = look(n), label = `${recipe.letter} ${plain(recipe.label)}`;
    const runs = data.runs.filter(run => run.recipe === n);
    for (const run of runs) {
      const curve = own(run.curves, chart.metric);
      if (curve && !crowded) {
        const folder = run.name.split('/').filter(Boolean).pop();
        traces.push(line(curve, run, `${recipe.letter} ${plain(folder)}`,
          {...style, dash: 'solid'}, 0.8, 0.45));
      }
    }
    const mean = own(recipe.means, chart.metric);
    const first = runs.find(run => run.clock.step) || runs[0];
    const many = runs.length > 1 ? `, mean of ${runs.length}` : '';
    if (mean) traces.push(line(mean, first, label + many, style, 2, 1));
  });
  const type = on => on ? 'log' : 'linear';
  const log = controls.logy.checked !== chart.log;
  const shown = traces.filter(Boolean);
  const result = layout(300, {
    x: {title: {text: UNITS[controls.x.value]}, exponentformat: 'SI',
      type: type(controls.logx.checked)},
    y: {type: type(log)}});
  if (!shown.length && traces.length) {
    result.annotations = [{text: `no run says its ${
      UNITS[controls.x.value]}`, showarrow: false, xref: 'paper',
      yref: 'paper', x: 0.5, y: 0.5}];
  }
  return [shown, result];
}

// What a chart of results shows of each recipe.
function results(chart) {
  const found = [];
  data.recipes.forEach((recipe, n) => {
    const one = own(own(recipe.estimates, chart.evaluator), chart.metric);
    if (!hidden.has(n) && one && one.value !== null) {
      found.push({n, recipe, one, style: look(n),
        seeds: recipe.seeds[chart.evaluator][chart.metric]});
    }
  });
  return found;
}

// The ends of an axis: all values, and intervals that are not too long. An
// interval of two seeds may be so long that values drawn to its scale would
// look equal.
function ends(found) {
  const values = found.flatMap(x => [x.one.value, ...x.seeds])
    .filter(x => x !== null);
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low) / 2 || Math.abs(high) / 20 || 1;
  const all = [low - room / 4, high + room / 4];
  for (const {one} of found) {
    if (!one.interval) continue;
    const wide = one.basis === 'items' ? Infinity : room;
    all.push(Math.max(one.interval[0], low - wide),
      Math.min(one.interval[1], high + wide));
  }
  const a = Math.min(...all), b = Math.max(...all);
  return [a - (b - a) / 30, b + (b - a) / 30];
}

function bar(one, color) {
  const [low, high] = one.interval || [one.value, one.value];
  return {type: 'data', symmetric: false, color, thickness: 1.5, width: 4,
    array: [high - one.value], arrayminus: [one.value - low],
    visible: Boolean(one.interval)};
}

function told({recipe, one}) {
  const short = x => Number(x).toPrecision(5);
  const range = one.interval ?
    `<br>${short(one.interval[0])} to ${short(one.interval[1])}, over ${
      one.basis}` : '';
  return `${recipe.letter} ${plain(recipe.label)}: ${short(one.value)}${
    range}<br>step ${one.step}, ${one.seeds} seed${
      one.seeds === 1 ? '' : 's'}`;
}

function resultChart(chart, width) {
  const found = results(chart), traces = [];
  for (const x of found) {
    const name = width < 480 ? x.recipe.letter :
      `${x.recipe.letter} ${plain(x.recipe.label, 28)}`;
    if (x.seeds.length > 1) {
      traces.push({type: 'scatter', mode: 'markers', x: x.seeds,
        y: x.seeds.map(() => name), opacity: 0.4, hoverinfo: 'skip',
        marker: {color: x.style.color, symbol: x.style.symbol, size: 6}});
    }
    traces.push({type: 'scatter', mode: 'markers', x: [x.one.value], y: [name],
      marker: {color: x.style.color, symbol: x.style.symbol, size: 9},
      error_x: bar(x.one, x.style.color),
      hovertemplate: `${told(x).replace(/%/g, '&#37;')
      }<extra></extra>`});
  }
  const axes = {x: {}, y: {type: 'category', autorange: 'reversed'}};
  if (found.length) axes.x.range = ends(found);
  return [traces, layout(90 + 26 * found.length, axes)];
}

function sweptChart(chart) {
  const found = results(chart).map(
    x => ({...x, at: x.recipe.settings[chart.key]}));
  found.sort((a, b) => a.at - b.at);
  const at = found.map(x => x.at), traces = [];
  const single = new Set(at).size === at.length;
  if (single) {
    traces.push({type: 'scatter', mode: 'lines', x: at,
      y: found.map(x => x.one.value), hoverinfo: 'skip',
      line: {color: color('soft'), width: 1}});
  }
  for (const x of found) {
    if (x.seeds.length > 1) {
      traces.push({type: 'scatter', mode: 'markers', opacity: 0.4,
        x: x.seeds.map(() => x.at), y: x.seeds, hoverinfo: 'skip',
        marker: {color: x.style.color, symbol: x.style.symbol, size: 6}});
    }
    traces.push({type: 'scatter', mode: 'markers', x: [x.at],
      y: [x.one.value], error_y: bar(x.one, x.style.color),
      marker: {color: x.style.color, symbol: x.style.symbol, size: 9},
      hovertemplate: `%{x}<br>${told(x).replace(/%/g, '&#37;')
      }<extra></extra>`});
  }
  const decades = at.every(x => x > 0) && at[at.length - 1] >= 10 * at[0];
  const axes = {
    x: {title: {text: plain(chart.key)}, type: decades ? 'log' : 'linear'},
    y: {}};
  if (decades) {
    const marks = thin(at);
    Object.assign(axes.x, {tickmode: 'array', tickvals: marks,
      ticktext: marks.map(x => String(Number(x.toPrecision(3))))});
  }
  if (found.length) axes.y.range = ends(found);
  return [traces, layout(320, axes)];
}

// At most eight labels of an axis.
function thin(values) {
  const each = [...new Set(values)], part = Math.ceil(each.length / 8);
  return each.filter((_, n) => n % part === 0);
}

// A mark for each of some names in a row for each of some categories.
function rowChart(chart) {
  const traces = chart.series.map(({name, values}, n) => ({type: 'scatter',
    mode: 'markers', x: values, y: chart.rows, name: plain(name),
    marker: {color: look(n).color, symbol: look(n).symbol, size: 9},
    hovertemplate: '%{y}: %{x:.4g}<extra>%{fullData.name}</extra>'}));
  const result = layout(90 + 26 * chart.rows.length,
    {x: {}, y: {type: 'category', autorange: 'reversed'}});
  result.shapes = [{type: 'line', yref: 'paper', y0: 0, y1: 1,
    x0: chart.line, x1: chart.line, line: {color: color('soft'), width: 1}}];
  return [traces, result];
}

const KINDS = {curve: curves, results: resultChart, swept: sweptChart,
  rows: rowChart};

function draw(element) {
  stale.delete(element);
  const chart = data.charts[Number(element.dataset.chart)];
  element.style.minHeight = 0;  // it was the place of a chart to come
  Plotly.react(element, ...KINDS[chart.kind](chart, element.clientWidth),
    CONFIG);
}

// Charts out of sight wait: fifty runs would take seconds to draw at once.
function redraw() {
  for (const element of document.querySelectorAll('[data-chart]'))
    stale.add(element);
  for (const element of visible) draw(element);
  attention.draw();
}

const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (!isIntersecting) visible.delete(target);
    else {
      visible.add(target);
      if (stale.has(target)) draw(target);
    }
  }
}, {rootMargin: '300px'});

function option(text, value) {
  const element = document.createElement('option');
  element.textContent = text;
  element.value = value;
  return element;
}

// Fills a form with a choice for each of some keys of entries.
function choices(form, entries, keys, changed) {
  const selects = keys.map(([key, title]) => {
    const label = document.createElement('label');
    const select = document.createElement('select');
    select.name = key;
    for (const value of new Set(entries.map(x => x[key])))
      select.append(option(value, value));
    label.append(title, select);
    form.append(label);
    select.addEventListener('change', changed);
    return select;
  });
  // The newest step says most.
  const step = form.elements.step;
  step.selectedIndex = step.length - 1;
  return () => entries.find(entry => selects.every(
    select => String(entry[select.name]) === select.value));
}

// A text whose tokens have the color of their loss.
function tokens() {
  const form = document.getElementById('losses');
  if (!form) return;
  const box = document.getElementById('tokens');
  const word = document.getElementById('token');
  const show = () => {
    const entry = chosen();
    box.replaceChildren();
    if (!entry) {
      word.textContent = 'This run has no such step.';
      return;
    }
    const scored = entry.nats.filter(x => x !== null);
    const mean = scored.reduce((a, b) => a + b, 0) / scored.length;
    const rest = `mean ${mean.toFixed(3)} nats over ${scored.length} tokens`;
    word.textContent = rest;
    entry.pieces.forEach((piece, n) => {
      const nats = entry.nats[n], part = document.createElement('span');
      part.textContent = piece;
      part.tabIndex = n ? -1 : 0;
      if (nats !== null) {
        const share = Math.round(100 * Math.min(1, nats / 8));
        part.style.backgroundColor =
          `color-mix(in srgb, var(--c1) ${0.75 * share}%, transparent)`;
      }
      const tell = () => {
        word.textContent = nats === null ? `${JSON.stringify(piece)}: the ` +
          `first token, which nothing predicts` :
          `${JSON.stringify(piece)}: ${nats.toFixed(3)} nats, probability ${
            (100 * Math.exp(-nats)).toPrecision(3)} %; ${rest}`;
      };
      for (const name of ['mouseenter', 'focus', 'click'])
        part.addEventListener(name, tell);
      box.append(part);
    });
  };
  box.addEventListener('keydown', event => {
    const next = {ArrowRight: 'nextSibling', ArrowLeft: 'previousSibling'};
    const other = document.activeElement[next[event.key]];
    if (other && box.contains(other)) other.focus();
  });
  const chosen = choices(form, data.losses,
    [['text', 'text'], ['run', 'run'], ['step', 'step']], show);
  show();
}

const attention = (() => {
  const form = document.getElementById('attention');
  if (!form) return {draw: () => {}};
  const map = document.getElementById('map');
  const entries = data.attention.flatMap(entry => entry.maps.map(
    one => ({...entry, layer: one.layer, head: one.head, rows: one.rows})));
  const show = () => {
    const entry = chosen();
    if (!entry) {
      Plotly.purge(map);
      return;
    }
    const names = entry.pieces.map((piece, n) =>
      `${n} ${plain(piece.replace(/\n/g, '↵').replace(/ /g, '␣'), 12)}`);
    const S = names.length;
    const z = entry.rows.map(row => [...row.map(x => x / 255),
      ...Array(S - row.length).fill(0)]);
    const scale = [[0, color('page')], [1, color('c0')]];
    const part = Math.ceil(S / (map.clientWidth < 480 ? 12 : 24));
    const ticks = [...names.keys()].filter(n => n % part === 0);
    const axis = {tickvals: ticks, ticktext: ticks.map(n => names[n]),
      showgrid: false, zeroline: false, exponentformat: 'none'};
    Plotly.react(map, [{type: 'heatmap', z, colorscale: scale, zmin: 0,
      zmax: 1, showscale: false, customdata: z.map((_, row) =>
        names.map(name => [names[row], name])),
      hovertemplate: '%{customdata[0]} looks at %{customdata[1]}: ' +
        '%{z:.3f}<extra></extra>'}],
    layout(map.clientWidth < 480 ? 340 : 520, {
      x: {...axis, tickangle: -60}, y: {...axis, autorange: 'reversed'}}),
    CONFIG);
  };
  const chosen = choices(form, entries, [['text', 'text'], ['run', 'run'],
    ['step', 'step'], ['layer', 'layer'], ['head', 'head']], show);
  return {draw: show};
})();

if (controls) {
  controls.addEventListener('input', redraw);
  controls.addEventListener('submit', event => event.preventDefault());
}
for (const button of document.querySelectorAll('[data-recipe]')) {
  button.addEventListener('click', () => {
    const n = Number(button.dataset.recipe), is = hidden.has(n);
    if (is) hidden.delete(n); else hidden.add(n);
    button.setAttribute('aria-pressed', String(is));
    redraw();
  });
}
dark.addEventListener('change', redraw);
for (const element of stale) watcher.observe(element);
tokens();
attention.draw();
})();

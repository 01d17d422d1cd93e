"""One page of what a sweep found: tables, curves and cards, in a file.

Nothing is loaded from anywhere: styles and pictures lie in the page, there are
no scripts, and a policy in its head keeps browsers from asking for more. Names
of runs and tasks are never trusted: they stand in text, escaped, and pictures
know none of them.
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import datetime
import html
import io
import math
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

import matplotlib
from matplotlib import figure, ticker
import numpy as np

from lm import errors
from lm.evals.reports import recipes

# A recipe's marker and line, in pictures and in text; colours are --c0 to --c5.
_MARKERS = tuple(zip('os^DvP', '●■▲◆▼✚', strict=True))
_LINES = (('-', ''), ('--', '╌'), (':', '┈'), ('-.', '─·'))
# Stand-ins that matplotlib draws with; the page puts its own colours there.
_INK = '#0a0bff'
_COLOURS = tuple(f'#0a0b0{n}' for n in range(len(_MARKERS)))
_MOST_SETTINGS = 12  # that are told of a recipe
_MOST_STEPS = 8  # that are named in a row

_STYLE = """
:root { color-scheme: light dark; --page: light-dark(#fff, #14161a);
  --ink: light-dark(#1b1d22, #e6e8ec); --soft: light-dark(#5b616e, #a2a9b6);
  --rule: light-dark(#d9dce3, #363b45);
  --c0: light-dark(#0067b1, #5cb3f5); --c1: light-dark(#c44900, #ff9a5c);
  --c2: light-dark(#00795a, #45c9a0); --c3: light-dark(#a93c83, #ec8fc8);
  --c4: light-dark(#7a5c00, #dfbe4f); --c5: light-dark(#5a4fcf, #a99ff8); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, 'Segoe UI', 'Noto Sans', sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, small { color: var(--soft); }
code { font: .86em/1.4 ui-monospace, 'DejaVu Sans Mono', monospace;
  unicode-bidi: isolate; overflow-wrap: anywhere; }
.hash { white-space: nowrap; }
.wide { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom;
  border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 400; }
tbody tr > * { border-bottom: 1px solid var(--rule); }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; }
small { display: block; font-size: .8rem; font-weight: 400; }
.key { display: inline-block; margin-right: 1.2rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .88rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; }
.grid { display: grid; gap: 1.4rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
ul { font-size: .88rem; padding-left: 1.2rem; }
@media print { :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .grid { grid-template-columns: 1fr 1fr; } }
"""


class _Recipe(NamedTuple):
  """A recipe, its place on the page, and estimates by evaluator and metric."""

  n: int
  name: str
  runs: Sequence[recipes.Run]
  found: Mapping[str, Mapping[str, recipes.Estimate]]

  @property
  def letter(self) -> str:
    return f'{chr(ord("A") + self.n % 26)}{self.n // 26 or ""}'

  @property
  def sign(self) -> str:
    turn, place = divmod(self.n, len(_MARKERS))
    mark = _MARKERS[place][1] + _LINES[turn % len(_LINES)][1]
    return f'<b style="color: var(--c{place})">{mark} {self.letter}</b>'

  @property
  def title(self) -> str:
    """Its sign, and what the names of its runs have in common."""
    names = {run.name.rstrip('/') for run in self.runs}
    if len(names) > 1:
      seed = re.compile(r'([-_./]+(seed|s))?[-_./]*\d+$')
      names = {seed.sub('', name) for name in names}
    label = min(names).rpartition('/')[2] or self.runs[0].name
    return f'{self.sign} {_code(label)}'


def write(path: Path, text: str) -> None:
  """Writes a page as a whole or not at all.

  Raises:
    errors.Storage: it cannot be written there.
  """
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      file.write(text.encode('utf-8', 'replace'))
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  except OSError as error:
    raise errors.Storage(
      f'--html: {errors.refusal(error)}: give another file'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)


def render(
  runs: Sequence[recipes.Run],
  *,
  notes: Iterable[str] = (),
  commit: str = '',
  made: datetime.datetime | None = None,
) -> str:
  """Lays runs out as a page of HTML.

  Args:
    runs: one or more that have results, as `recipes.part` gives them.
    notes: what was left out, a line each.
    commit: of the code that judged; '' if nobody knows.
    made: when; None: now.
  """
  made = made or datetime.datetime.now(datetime.UTC)
  heads = dict(sorted(recipes.headlines(runs).items()))
  notes, shown = [*notes], []
  for n, (name, part) in enumerate(recipes.by_recipe(runs).items()):
    found = {}
    for evaluator in heads:
      found[evaluator], wrong = recipes.estimates(part, evaluator)
      notes += wrong
    shown.append(_Recipe(n, name, part, found))
  cells = {evaluator: [] for evaluator in heads}
  for run in runs:
    for (_, evaluator), cell in run.cells.items():
      cells[evaluator].append(cell)
  metrics = [
    (evaluator, metric)
    for evaluator in heads
    for metric in dict.fromkeys(x for r in shown for x in r.found[evaluator])
  ]
  others = [
    (evaluator, metric)
    for evaluator, metric in metrics
    if metric != heads[evaluator] and not _constant(cells[evaluator], metric)
  ]
  title = f'{_count(len(heads), "task")}, {_count(len(shown), "recipe")}'
  steps = {step for run in runs for step, _ in run.cells}
  codes = {cell.code for each in cells.values() for cell in each} - {''}
  facts = [
    f'{made:%Y-%m-%d %H:%M} UTC',
    f'{_count(len(runs), "run")}, {_count(len(steps), "step")}',
    *([f'commit {_code(commit)}'] if commit else []),
    f'judged by code {" ".join(map(_hash, sorted(codes))) or "—"}',
  ]
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation: {title}</title><style>{_STYLE}</style></head><body>
<h1>Evaluation: {title}</h1>
<p class="soft">{' · '.join(facts)}</p>
<h2>Results</h2>
{_summary(shown, heads)}
<p class="soft">Each cell: the mean over seeds and its 95 % interval, at the
newest step that most seeds of the recipe have. An interval is that of its cell
alone; it takes a paired test to say that one recipe is better than another
(<code>tools.compare</code>).</p>
<h2>Recipes</h2>
<p class="soft">Runs whose configs are the same but for the seed, or the fold
that is held out, are one recipe. The folds of a seed are told together, as soon
as no seed has more of them.</p>
{_recipes(shown)}
<h2>Pictures</h2>
<p class="soft">Lines are means over seeds. Where there are two or more, each is
a thin line, and the band is one standard deviation either way. Bars are the
95 % intervals of the table, cut off where they are long: two seeds say little
of a mean. Of one step, marks are the means, and pale ones the seeds.</p>
{_pictures('h', heads.items(), shown)}
{'<h2>Other metrics</h2>' if others else ''}
{_pictures('o', others, shown)}
<h2>Every metric</h2>
{_everything(shown, metrics)}
<p class="soft">Interval over <i>items</i>: of the mean over the questions of a
task, those of one group counted as one piece of evidence: Wilson’s for right or
wrong answers of one run, otherwise Student’s. Over <i>items and seeds</i>: by
the variances of both, with Satterthwaite’s degrees of freedom, as in min F′.
Over <i>seeds</i>: Student’s, where a metric is no mean of stored items. None,
where there is one seed and no such items. SD is over seeds. Categories are in
the CSV.</p>
<h2>Not judged</h2>
{_missing(runs, heads, notes)}
<h2>Task cards</h2>
{_cards(cells)}
</body></html>
"""


def _text(value: Any) -> str:
  """Escapes what others have named; controls could turn or hide a line."""
  return html.escape(re.sub(r'[\x00-\x1f\x7f-\x9f]', '\ufffd', str(value)))


def _code(value: Any) -> str:
  return f'<code>{_text(value)}</code>'


def _hash(value: str) -> str:
  return f'<code class="hash">{_text(value[:12])}</code>'


def _number(value: float | None) -> str:
  if value is None:
    return '—'
  whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e9)
  text = f'{int(value):,}' if whole else f'{value:.4g}'
  return text.replace('-', '−')


def _count(n: int, what: str) -> str:
  return f'{n} {what}{"" if n == 1 else "s"}'


def _range(one: recipes.Estimate) -> str:
  return ' – '.join(map(_number, one.interval or ())) or 'no interval'


def _few(words: Sequence[str], most: int) -> list[str]:
  rest = len(words) - most
  return [*words[:most], *([f'and {rest} more'] if rest > 0 else [])]


def _table(
  head: Iterable[str], rows: Iterable[Sequence[str]], kind: str = 'words'
) -> str:
  """Lays out cells that are HTML; the first of a row is its heading."""
  top = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
  lines = [
    f'<tr><th scope="row">{first}</th><td>{"</td><td>".join(rest)}</td></tr>\n'
    for first, *rest in rows
  ]
  return (
    f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
    f'<tbody>{"".join(lines)}</tbody></table></div>'
  )


def _summary(shown: Sequence[_Recipe], heads: Mapping[str, str]) -> str:
  asked: dict[tuple[str, int | None], set[str]] = {}
  for run in (run for recipe in shown for run in recipe.runs):
    for (_, x), cell in run.cells.items():
      asked.setdefault((x, run.fold), set()).add(cell.task)
  mixed = [x for (x, _), tasks in asked.items() if len(tasks) > 1]
  head, rows = ['recipe', 'seeds', 'step'], []
  for x, metric in heads.items():
    sign = '†' if x in mixed else ''
    head.append(f'{_text(x)}{sign}<small>{_text(metric)}</small>')
  for recipe in shown:
    seeds = len({run.seed for run in recipe.runs})
    have = [recipe.found[x].get(metric) for x, metric in heads.items()]
    newest = max((one.step for one in have if one), default=None)
    row = [recipe.title, _number(seeds), _number(newest)]
    for one in have:
      if one is None:
        row.append('not judged')
        continue
      small = [_range(one)]
      if one.step != newest:
        small.append(f'step {_number(one.step)}')
      if one.seeds != seeds:
        small.append(_count(one.seeds, 'seed'))
      row.append(f'{_number(one.value)}<small>{"<br>".join(small)}</small>')
    rows.append(row)
  told = (
    '<p>† Judged with other versions of the task in some runs or steps: these'
    ' numbers do not compare. See the cards.</p>'
  )
  return _table(head, rows, 'numbers') + (told if mixed else '')


def _constant(cells: Iterable[recipes.Cell], metric: str) -> bool:
  """Whether it is one whole number everywhere, such as how many were asked."""
  found = {cell.metrics.get(metric, 0.5) for cell in cells}
  return len(found) == 1 and float(*found).is_integer()


def _recipes(shown: Sequence[_Recipe]) -> str:
  settings = [recipe.runs[0].settings for recipe in shown]
  differ = [
    key
    for key in sorted({key for each in settings for key in each})
    if len({repr(each.get(key, ...)) for each in settings}) > 1
  ]
  rows = []
  for recipe, own in zip(shown, settings, strict=True):
    told = [f'{key}={own[key]!r}' for key in differ if key in own]
    told = _few([*map(_code, told)], _MOST_SETTINGS)
    if settings.count(own) > 1:
      told.append('its weights, under one seed')
    runs = [
      f'{_code(run.name)} <span class="soft">seed '
      f'{"—" if run.seed is None else run.seed}'
      f'{"" if run.fold is None else f", fold {run.fold}"}</span>'
      for run in recipe.runs
    ]
    each = '<br>'.join(runs), '<br>'.join(told) or '—'
    rows.append([recipe.title, _hash(recipe.name), *each])
  return _table(['recipe', 'hash', 'runs', 'differs in'], rows)


def _everything(
  shown: Sequence[_Recipe], metrics: Sequence[tuple[str, str]]
) -> str:
  rows = [
    [
      f'{_text(evaluator)} / {_text(metric)}',
      recipe.sign,
      *map(_number, (one.step, one.value)),
      _range(one),
      one.basis or 'none',
      *map(_number, (one.deviation, one.seeds, one.items or None)),
    ]
    for evaluator, metric in metrics
    for recipe in shown
    if (one := recipe.found[evaluator].get(metric))
  ]
  head = ['task / metric', 'recipe', 'step', 'value', '95 % interval', 'over']
  return _table([*head, 'SD', 'seeds', 'items'], rows, 'numbers')


def _missing(
  runs: Iterable[recipes.Run], evaluators: Iterable[str], notes: Sequence[str]
) -> str:
  rows = []
  for run in runs:
    steps = sorted({*run.steps, *(step for step, _ in run.cells)})
    gaps: dict[tuple[int, ...], list[str]] = {}
    for evaluator in evaluators:
      gap = tuple(x for x in steps if (x, evaluator) not in run.cells)
      gaps.setdefault(gap, []).append(evaluator)
    gaps.pop((), None)
    for gap, names in gaps.items():
      which = ['all']
      if len(gap) < len(steps):
        which = _few([*map(_number, gap)], _MOST_STEPS)
      rows.append([_code(run.name), _text(', '.join(names)), ', '.join(which)])
  told = ''
  if rows:
    told = _table(['run', 'tasks', 'steps'], rows) + (
      '<p class="soft">A checkpoint that was deleted before a task was added'
      ' cannot be judged by it.</p>'
    )
  if notes:
    told += f'<ul><li>{"</li><li>".join(map(_code, notes))}</li></ul>'
  return told or (
    '<p>Nothing: every task judged every checkpoint that was asked for.</p>'
  )


def _cards(cells: Mapping[str, Sequence[recipes.Cell]]) -> str:
  fields = dict.fromkeys(
    key for have in cells.values() for cell in have for key in cell.card
  )
  rows = []
  for evaluator, have in cells.items():
    card = {key: x for cell in have for key, x in cell.card.items()}
    row = [_text(evaluator)]
    for key in fields:
      row.append((_code if key == 'sha256' else _text)(card.get(key, '—')))
    for values in ({cell.task for cell in have}, {cell.code for cell in have}):
      row.append('<br>'.join(map(_hash, sorted(values - {''}))))
    rows.append(row)
  return _table(['task', *map(_text, fields), 'task hash', 'code hash'], rows)


def _pictures(
  mark: str, metrics: Iterable[tuple[str, str]], shown: Sequence[_Recipe]
) -> str:
  """Draws metrics, if there are any; `mark` begins the ids in all of them."""
  pictures = [
    _picture(f'{mark}{n}-', evaluator, metric, shown)
    for n, (evaluator, metric) in enumerate(metrics)
  ]
  legend = ''.join(f'<span class="key">{r.title}</span>' for r in shown)
  grid = f'<p>{legend}</p>\n<div class="grid">{"".join(pictures)}</div>'
  return grid if pictures else ''


class _Curve(NamedTuple):
  """What is drawn of a recipe: values by step, of all its seeds and of each."""

  recipe: _Recipe
  values: Mapping[int, Sequence[float]]
  each: Sequence[Mapping[int, Sequence[float]]]
  bar: recipes.Estimate | None


def _picture(
  mark: str, evaluator: str, metric: str, shown: Sequence[_Recipe]
) -> str:
  """Draws one metric, '' if it has no number."""
  curves, said = [], []
  for recipe in shown:
    values, *each = (
      recipes.seeds(runs, evaluator, metric)
      for runs in (recipe.runs, *([run] for run in recipe.runs))
    )
    if any(math.isfinite(x) for xs in values.values() for x in xs):
      bar = recipe.found[evaluator].get(metric)
      curves.append(_Curve(recipe, values, each, bar))
      ends = ', '.join(
        f'{_number(float(np.mean(values[step])))} at step {_number(step)}'
        for step in dict.fromkeys((min(values), max(values)))
      )
      said.append(f'{recipe.letter}: {ends}')
  if not curves:
    return ''
  name = _text(f'{evaluator} / {metric}')
  told = f'role="img" aria-label="{name}: {"; ".join(said)}"'
  svg = _svg(mark, curves).replace('<svg', f'<svg {told}', 1)
  return f'<figure><figcaption>{name}</figcaption>{svg}</figure>\n'


def _svg(mark: str, curves: Sequence[_Curve]) -> str:
  """Draws an element that has the page's colours and letters."""
  steps = {step for curve in curves for step in curve.values}
  with matplotlib.rc_context(
    {
      'axes.formatter.useoffset': False,
      'svg.fonttype': 'none',  # searched, and drawn in the page's letters
      'svg.hashsalt': 'lm',  # equal figures give equal bytes
    }
  ):
    # No pyplot: it has a global state, and looks for a display.
    drawn = figure.Figure((4.2, 2.5), layout='constrained')
    axes = drawn.subplots()
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(steps) > 1:
      _draw_steps(axes, curves)
    else:
      drawn.set_figheight(0.75 + 0.22 * len(curves))
      _draw_rows(axes, curves)
    out = io.StringIO()
    drawn.savefig(out, format='svg', transparent=True)
  svg = out.getvalue()
  svg = svg[svg.index('<svg') :].strip()
  for old, new in (
    (r' xmlns(:xlink)?="[^"]*"', ''),  # HTML knows them
    (r'xlink:href', 'href'),
    (r'(?s)<metadata>.*?</metadata>', ''),
    (r'( id="|href="#|url\(#)', rf'\g<1>{mark}'),  # each id once on a page
    (r'\s*\n\s*', ' '),
    (_INK, 'currentColor'),
    *((colour, f'var(--c{n})') for n, colour in enumerate(_COLOURS)),
  ):
    svg = re.sub(old, new, svg)
  return svg


def _draw_steps(axes: Any, curves: Sequence[_Curve]) -> None:
  """Draws values over steps."""
  for recipe, values, each, _ in curves:
    look = _look(recipe)
    steps = [step for step, x in values.items() if np.isfinite(x).all()]
    means = np.array([np.mean(values[step]) for step in steps])
    axes.plot(steps, means, **look)
    if max(map(len, values.values())) > 1:
      colour = look['color']
      spread = np.array([recipes.deviation(values[s]) or 0 for s in steps])
      low, high = means - spread, means + spread
      axes.fill_between(steps, low, high, color=colour, alpha=0.18)
      for one in each:
        axes.plot([*one], [*one.values()], color=colour, lw=0.6, alpha=0.6)
  x = [x for c in curves for xs in c.values.values() for x in xs]
  x = [*filter(math.isfinite, x)]
  if min(x) > 0 and max(x) > 100 * min(x):
    axes.set_yscale('log')
  # Bars last: that of two seeds may be long, and would press the curves flat.
  low, high = ends = axes.get_ylim()
  wide = 0.01 * np.diff(axes.get_xlim()).item()
  for place, (recipe, _, _, bar) in enumerate(curves):
    if bar and bar.interval:
      beside = bar.step + wide * (place - (len(curves) - 1) / 2)
      axes.vlines(beside, *bar.interval, color=_look(recipe)['color'])
      room = math.inf if bar.basis == 'items' else (high - low) / 2
      ends = (*ends, *np.clip(bar.interval, low - room, high + room))
  if axes.get_yscale() == 'log':
    ends = low, high
  axes.set_ylim(min(ends), max(ends))
  axes.set_xlabel('step', color=_INK)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))


def _draw_rows(axes: Any, curves: Sequence[_Curve]) -> None:
  """Draws the values of one step, a recipe a row."""
  for row, (recipe, values, _, bar) in enumerate(curves):
    look = {**_look(recipe), 'linestyle': 'none'}
    (found,) = values.values()
    if len(found) > 1:
      axes.plot(found, [row] * len(found), **look, alpha=0.35)
    axes.plot([np.mean(found)], [row], **look)
    if bar and bar.interval:
      axes.hlines(row, *bar.interval, color=look['color'])
  axes.set_ylim(len(curves) - 0.4, -0.6)
  axes.set_yticks(range(len(curves)), [c.recipe.letter for c in curves])
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))


def _look(recipe: _Recipe) -> dict[str, Any]:
  turn, place = divmod(recipe.n, len(_MARKERS))
  return {
    'color': _COLOURS[place],
    'marker': _MARKERS[place][0],
    'linestyle': _LINES[turn % len(_LINES)][0],
    'markersize': 4,
    'linewidth': 1.6,
  }

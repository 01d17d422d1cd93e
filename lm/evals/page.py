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
from matplotlib import ticker
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure
import numpy as np

from lm import errors
from lm.evals import recipes

# A recipe's marker, in pictures and in text; colours are --c0 and so on.
_MARKERS = tuple(zip('os^DvP', '●■▲◆▼✚', strict=True))
_LINES = ('-', '--', ':', '-.')
# Stand-ins that matplotlib draws with; the page puts its own colours there.
_INK = '#0a0bff'
_COLOURS = tuple(f'#0a0b0{n}' for n in range(len(_MARKERS)))
_MOST_SETTINGS = 12  # that are told of a recipe
_MOST_STEPS = 8  # that are named in a row

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1d22; --soft: #5b616e;
  --rule: #d9dce3; --tint: #f5f6f8; --c0: #0067b1; --c1: #c44900;
  --c2: #00795a; --c3: #a93c83; --c4: #7a5c00; --c5: #5a4fcf; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14161a;
  --ink: #e6e8ec; --soft: #a2a9b6; --rule: #363b45; --tint: #1d2026;
  --c0: #5cb3f5; --c1: #ff9a5c; --c2: #45c9a0; --c3: #ec8fc8; --c4: #dfbe4f;
  --c5: #a99ff8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, 'Segoe UI', 'Noto Sans', sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, figcaption span, td small { color: var(--soft); }
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
.n { text-align: right; white-space: nowrap; }
td small, th small { display: block; font-size: .8rem; font-weight: 400; }
.key { display: inline-block; margin-right: 1.2rem; }
.key code { color: var(--ink); }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .88rem; font-weight: 600; }
figcaption span { font-weight: 400; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; }
.grid { display: grid; gap: 1.4rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
.list { font-size: .88rem; padding-left: 1.2rem; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .grid { grid-template-columns: 1fr 1fr; } }
""" + ''.join(
  f'.c{n} {{ color: var(--c{n}); }}\n' for n in range(len(_MARKERS))
)


_CURVES = (
  'Lines are means over seeds. Where there are two or more, each is a thin'
  ' line, and the band is one standard deviation either way. Bars are the 95 %'
  ' intervals of the table, cut off where they are long: two seeds say little'
  ' of a mean. A dotted line is chance.'
)
_ROWS = (
  'Means over seeds, with their 95 % intervals. Where there are two or more,'
  ' each is a pale mark. A dotted line is chance.'
)


class _Recipe(NamedTuple):
  """A recipe as the page shows it; `letter` and `n` stand for it."""

  n: int
  letter: str
  label: str
  name: str
  runs: list[recipes.Run]

  @property
  def sign(self) -> str:
    place = self.n % len(_MARKERS)
    mark = _MARKERS[place][1]
    return f'<b class="c{place}">{mark} {self.letter}</b>'


_Estimates = Mapping[tuple[str, str], recipes.Estimate]  # by recipe, metric


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
  notes: Sequence[str] = (),
  commit: str = '',
  made: datetime.datetime | None = None,
) -> str:
  """Lays runs out as a page.

  Args:
    runs: one or more that have results, as `recipes.part` gives them.
    notes: what was left out, a line each.
    commit: of the code that judged; '' if nobody knows.
    made: when; None: now.

  Returns:
    HTML.
  """
  made = made or datetime.datetime.now(datetime.UTC)
  shown = [
    _Recipe(n, _letter(n), _label(part), name, part)
    for n, (name, part) in enumerate(recipes.by_recipe(runs).items())
  ]
  heads = dict(sorted(recipes.headlines(runs).items()))
  notes = list(notes)
  found: dict[str, _Estimates] = {}
  for evaluator in heads:
    found[evaluator] = by = {}
    for recipe in shown:
      estimates, wrong = recipes.estimates(recipe.runs, evaluator)
      by |= {(recipe.name, k): v for k, v in estimates.items() if '/' not in k}
      notes += wrong
  legend = ''.join(
    f'<span class="key">{r.sign} <code>{_text(r.label)}</code></span>'
    for r in shown
  )
  others = [
    (evaluator, metric)
    for evaluator in heads
    for metric in dict.fromkeys(metric for _, metric in found[evaluator])
    if metric != heads[evaluator] and not _constant(runs, evaluator, metric)
  ]
  pictures = [
    _picture(n, evaluator, metric, shown, found[evaluator])
    for n, (evaluator, metric) in enumerate([*heads.items(), *others])
  ]
  steps = {step for run in runs for step, _ in run.cells}
  title = f'{_count(len(heads), "task")}, {_count(len(shown), "recipe")}'
  codes = {cell.code for run in runs for cell in run.cells.values()} - {''}
  facts = [
    f'{made:%Y-%m-%d %H:%M} UTC',
    f'{_count(len(runs), "run")}, {_count(len(steps), "step")}',
    *([f'commit <code>{_text(commit)}</code>'] if commit else []),
    'judged by code ' + (' '.join(map(_hash, sorted(codes))) or '—'),
  ]
  body = [
    f'<h1>Evaluation: {title}</h1>',
    f'<p class="soft">{" · ".join(facts)}</p>',
    '<h2>Results</h2>',
    _summary(shown, heads, found, runs),
    '<p class="soft">Each cell: the mean over seeds and its 95 % interval, at'
    ' the newest step that most seeds of the recipe have. An interval is that'
    ' of its cell alone; it takes a paired test to say that one recipe is'
    ' better than another (<code>tools.compare</code>).</p>',
    '<h2>Recipes</h2>',
    _recipes(shown),
    f'<h2>{"Curves" if len(steps) > 1 else "Pictures"}</h2>',
    f'<p>{legend}</p>',
    f'<p class="soft">{_CURVES if len(steps) > 1 else _ROWS}</p>',
    f'<div class="grid">{"".join(pictures[: len(heads)])}</div>',
  ]
  if others:
    body += [
      '<h2>Other metrics</h2>',
      f'<p>{legend}</p>',
      f'<div class="grid">{"".join(pictures[len(heads) :])}</div>',
    ]
  body += [
    '<h2>Every metric</h2>',
    _everything(shown, heads, found),
    '<p class="soft">Interval over <i>items</i>: of the mean over the questions'
    ' of a task, those of one group counted as one piece of evidence: Wilson’s'
    ' for right or wrong answers of one run, otherwise Student’s. Over <i>items'
    ' and seeds</i>: by the variances of both, with Satterthwaite’s degrees of'
    ' freedom, as in min F′. Over <i>seeds</i>: Student’s, where a metric is no'
    ' mean of stored items. None, where there is one seed and no such items.'
    ' SD is over seeds. Categories are in the CSV.</p>',
    '<h2>Not judged</h2>',
    _missing(runs, list(heads), notes),
    '<h2>Task cards</h2>',
    _cards(runs, list(heads)),
  ]
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="default-src'
    " 'none'; style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>Evaluation: {title}</title><style>{_STYLE}</style></head>\n'
    f'<body>\n{"".join(f"{part}{chr(10)}" for part in body)}</body></html>\n'
  )


def _text(value: Any) -> str:
  """Escapes what others have named; controls could turn or hide a line."""
  return html.escape(re.sub(r'[\x00-\x1f\x7f-\x9f]', '\ufffd', str(value)))


def _hash(value: str) -> str:
  return f'<code class="hash">{_text(value[:12])}</code>'


def _number(value: float | None) -> str:
  if value is None:
    return '—'
  if isinstance(value, int) or (value.is_integer() and abs(value) < 1e9):
    return f'{int(value):,}'.replace('-', '−')
  return f'{value:.4g}'.replace('-', '−')


def _count(n: int, what: str) -> str:
  return f'{n} {what}{"" if n == 1 else "s"}'


def _letter(n: int) -> str:
  return f'{chr(ord("A") + n % 26)}{n // 26 or ""}'


def _label(runs: Sequence[recipes.Run]) -> str:
  """Calls a recipe by what the names of its runs have in common."""
  names = {run.name.rstrip('/') for run in runs}
  if len(names) > 1:
    names = {re.sub(r'[-_./]*(seed|s)?[-_.]*\d+$', '', name) for name in names}
  return min(names).rpartition('/')[2] or runs[0].name


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], n: str) -> str:
  """Lays out cells that are HTML; `n` has a letter a column, 'n' for numbers.

  The first cell of a row is its heading.
  """
  kinds = [' class="n"' if kind == 'n' else '' for kind in n]
  lines = [
    ''.join(
      f'<th scope="col"{kind}>{cell}</th>'
      for cell, kind in zip(head, kinds, strict=True)
    )
  ]
  for row in rows:
    cells = [
      f'<td{kind}>{cell}</td>' for cell, kind in zip(row, kinds, strict=True)
    ]
    lines.append(f'<th scope="row">{row[0]}</th>{"".join(cells[1:])}')
  first, *rest = [f'<tr>{line}</tr>' for line in lines]
  return (
    f'<div class="wide"><table><thead>{first}</thead>'
    f'<tbody>{"".join(rest)}</tbody></table></div>'
  )


def _summary(
  shown: Sequence[_Recipe],
  heads: Mapping[str, str],
  found: Mapping[str, _Estimates],
  runs: Sequence[recipes.Run],
) -> str:
  versions = {
    evaluator: len({cell.task for cell in _cells(runs, evaluator)})
    for evaluator in heads
  }
  head = ['recipe', 'seeds', 'step']
  for evaluator, metric in heads.items():
    chance = _chance(runs, evaluator, metric)
    more = '' if chance is None else f'<small>chance {_number(chance)}</small>'
    sign = '†' if versions[evaluator] > 1 else ''
    head.append(f'{_text(evaluator)}{sign}<small>{_text(metric)}</small>{more}')
  rows = []
  for recipe in shown:
    have = {
      evaluator: by.get((recipe.name, heads[evaluator]))
      for evaluator, by in found.items()
    }
    steps = [x.step for x in have.values() if x is not None]
    row = [
      f'{recipe.sign} <code>{_text(recipe.label)}</code>',
      str(len({run.seed for run in recipe.runs})),
      _number(max(steps, default=None)),
    ]
    for one in have.values():
      if one is None:
        row.append('<span class="soft">not judged</span>')
        continue
      extra = [] if one.step == max(steps) else [f'step {one.step:,}']
      if one.seeds != len({run.seed for run in recipe.runs}):
        extra.append(_count(one.seeds, 'seed'))
      small = ''.join(f'<small>{x}</small>' for x in [_range(one), *extra])
      row.append(f'{_number(one.value)}{small}')
    rows.append(row)
  told = ''
  if max(versions.values()) > 1:
    told = (
      '<p>† Judged with other versions of the task in some runs or steps: these'
      ' numbers do not compare. See the cards.</p>'
    )
  return _table(head, rows, 'tnn' + 'n' * len(heads)) + told


def _range(one: recipes.Estimate) -> str:
  return ' – '.join(map(_number, one.interval or ())) or 'no interval'


def _chance(
  runs: Sequence[recipes.Run], evaluator: str, metric: str
) -> float | None:
  """Finds what a card says that a model gets by lot."""
  for cell in _cells(runs, evaluator):
    found = cell.card.get('chance')
    if cell.card.get('metric') == metric and isinstance(found, int | float):
      return found
  return None


def _constant(runs: Sequence[recipes.Run], evaluator: str, metric: str) -> bool:
  """Whether it is one whole number everywhere, such as how many were asked."""
  found = {cell.metrics.get(metric, 0.5) for cell in _cells(runs, evaluator)}
  return len(found) == 1 and float(*found).is_integer()


def _cells(
  runs: Sequence[recipes.Run], evaluator: str
) -> Iterable[recipes.Cell]:
  for run in runs:
    for (_, name), cell in run.cells.items():
      if name == evaluator:
        yield cell


def _recipes(shown: Sequence[_Recipe]) -> str:
  keys = {key for recipe in shown for key in recipe.runs[0].settings}
  differ = [
    key
    for key in sorted(keys)
    if len({repr(r.runs[0].settings.get(key)) for r in shown}) > 1
  ]
  rows = []
  for recipe in shown:
    settings = recipe.runs[0].settings
    own = [
      f'<code>{_text(key)}={_text(repr(settings[key])[:40])}</code>'
      for key in differ
      if key in settings
    ]
    if len(own) > _MOST_SETTINGS:
      own[_MOST_SETTINGS:] = [f'and {len(own) - _MOST_SETTINGS} more']
    runs = [
      f'<code>{_text(run.name)}</code> '
      f'<span class="soft">seed {_number(run.seed)}</span>'
      for run in recipe.runs
    ]
    rows.append(
      [
        f'{recipe.sign} <code>{_text(recipe.label)}</code>',
        _hash(recipe.name),
        '<br>'.join(runs),
        '<br>'.join(own)
        or '<span class="soft">its weights alone, under one seed</span>',
      ]
    )
  told = (
    '<p class="soft">Runs whose configs are the same but for the seed are one'
    ' recipe.</p>'
  )
  if len(rows) == 1:
    return told + _table(['recipe', 'hash', 'runs'], [rows[0][:3]], 'ttt')
  return told + _table(['recipe', 'hash', 'runs', 'differs in'], rows, 'tttt')


def _everything(
  shown: Sequence[_Recipe],
  heads: Mapping[str, str],
  found: Mapping[str, _Estimates],
) -> str:
  rows = []
  for evaluator in heads:
    for metric in dict.fromkeys(metric for _, metric in found[evaluator]):
      for recipe in shown:
        one = found[evaluator].get((recipe.name, metric))
        if one is None:
          continue
        rows.append(
          [
            f'{_text(evaluator)} / {_text(metric)}',
            recipe.sign,
            _number(one.step),
            _number(one.value),
            _range(one),
            one.basis or 'none',
            _number(one.deviation),
            _number(one.seeds),
            _number(one.items) if one.items else '—',
          ]
        )
  head = ['task / metric', 'recipe', 'step', 'value', '95 % interval', 'over']
  return _table([*head, 'SD', 'seeds', 'items'], rows, 'ttnnntnnn')


def _missing(
  runs: Sequence[recipes.Run], evaluators: Sequence[str], notes: Sequence[str]
) -> str:
  rows = []
  for run in runs:
    steps = sorted({*run.steps, *(step for step, _ in run.cells)})
    gaps: dict[tuple[int, ...], list[str]] = {}
    for evaluator in evaluators:
      gap = tuple(x for x in steps if (x, evaluator) not in run.cells)
      gaps.setdefault(gap, []).append(evaluator)
    for gap, names in gaps.items():
      if not gap:
        continue
      which = ', '.join(f'{step:,}' for step in gap[:_MOST_STEPS])
      if len(gap) > _MOST_STEPS:
        which += f' and {len(gap) - _MOST_STEPS} more'
      rows.append(
        [
          f'<code>{_text(run.name)}</code>',
          _text(', '.join(names)),
          'all' if len(gap) == len(steps) else which,
        ]
      )
  told = ''.join(f'<li><code>{_text(note)}</code></li>' for note in notes)
  if not rows and not told:
    return '<p>Nothing: every task judged every checkpoint that is there.</p>'
  gone = (
    '<p class="soft">A checkpoint that was deleted before a task was added'
    ' cannot be judged by it.</p>'
  )
  table = _table(['run', 'tasks', 'steps'], rows, 'ttt') + gone
  notes_ = f'<ul class="list">{told}</ul>'
  return (table if rows else '') + (notes_ if told else '')


def _cards(runs: Sequence[recipes.Run], evaluators: Sequence[str]) -> str:
  cards: dict[str, Mapping[str, Any]] = {}
  for evaluator in evaluators:
    for cell in _cells(runs, evaluator):
      cards[evaluator] = cell.card or cards.get(evaluator, {})
  fields = list(dict.fromkeys(key for card in cards.values() for key in card))
  rows = []
  for evaluator in evaluators:
    seen = list(_cells(runs, evaluator))
    hashes = [
      '<br>'.join(_hash(x) for x in sorted(values - {''}))
      for values in ({x.task for x in seen}, {x.code for x in seen})
    ]
    card = cards[evaluator]
    told = [
      f'<code>{_text(card[key])}</code>'
      if key == 'sha256' and key in card
      else _text(card.get(key, '—'))
      for key in fields
    ]
    rows.append([_text(evaluator), *told, *hashes])
  head = ['task', *map(_text, fields), 'task hash', 'code hash']
  return _table(head, rows, 't' * len(head))


class _Curve(NamedTuple):
  """What is drawn of a recipe: values by step, of all its seeds and of each."""

  recipe: _Recipe
  values: Mapping[int, Sequence[float]]
  each: Sequence[Mapping[int, Sequence[float]]]
  bar: recipes.Estimate | None


def _picture(
  n: int,
  evaluator: str,
  metric: str,
  shown: Sequence[_Recipe],
  found: _Estimates,
) -> str:
  """Draws one metric as picture `n` of the page, '' if it has no number."""
  curves = []
  for recipe in shown:
    values, *each = (
      recipes.seeds(runs, evaluator, metric)
      for runs in (recipe.runs, *([run] for run in recipe.runs))
    )
    if any(math.isfinite(x) for xs in values.values() for x in xs):
      bar = found.get((recipe.name, metric))
      curves.append(_Curve(recipe, values, each, bar))
  if not curves:
    return ''
  runs = [run for recipe in shown for run in recipe.runs]
  chance = _chance(runs, evaluator, metric)
  several = len({step for c in curves for step in c.values}) > 1
  svg = (_draw_steps if several else _draw_rows)(curves, chance)
  said = []
  for c in curves:
    ends = [
      f'{_number(float(np.mean(c.values[step])))} at step {step:,}'
      for step in dict.fromkeys((min(c.values), max(c.values)))
    ]
    said.append(f'{c.recipe.letter}: {", ".join(ends)}')
  told = ''
  if chance is not None:
    said.append(f'chance: {_number(chance)}')
    told = f' <span>{said[-1]}</span>'
  # A page has several pictures, and each of its ids once.
  svg = re.sub(r'( id="|href="#|url\(#)', rf'\g<1>p{n}-', svg)
  name = f'{_text(evaluator)} / {_text(metric)}'
  svg = svg.removeprefix('<svg').replace(
    '>',
    f'><title id="t{n}">{name}</title>'
    f'<desc id="d{n}">{_text("; ".join(said))}</desc>',
    1,
  )
  return (
    f'<figure><figcaption>{name}{told}</figcaption>'
    f'<svg role="img" aria-labelledby="t{n} d{n}"{svg}</figure>'
  )


def _draw_steps(curves: Sequence[_Curve], chance: float | None) -> str:
  """Draws values over steps."""
  figure, axes = _figure(2.5)
  for recipe, values, each, _ in curves:
    look = _look(recipe)
    steps = [step for step, x in values.items() if np.isfinite(x).all()]
    means = np.array([np.mean(values[step]) for step in steps])
    axes.plot(steps, means, **look)
    if max(map(len, values.values())) > 1:
      spread = np.array([recipes.deviation(values[s]) or 0 for s in steps])
      axes.fill_between(
        steps, means - spread, means + spread, color=look['color'], alpha=0.18
      )
      for one in each:
        axes.plot(
          list(one), [*one.values()], color=look['color'], lw=0.6, alpha=0.6
        )
  if chance is not None:
    axes.axhline(chance, color=_INK, alpha=0.6, linewidth=1, linestyle=':')
  x = [x for c in curves for xs in c.values.values() for x in xs]
  x = [x for x in x if math.isfinite(x)]
  if min(x) > 0 and max(x) > 100 * min(x):
    axes.set_yscale('log')
  else:
    axes.ticklabel_format(axis='y', useOffset=False)
  # Bars last: that of two seeds may be long, and would press the curves flat.
  low, high = axes.get_ylim()
  ends = [low, high]
  wide = 0.01 * np.diff(axes.get_xlim()).item()
  for place, (recipe, _, _, bar) in enumerate(curves):
    if bar is not None and bar.interval is not None:
      beside = wide * (place - (len(curves) - 1) / 2)
      colour = _look(recipe)['color']
      axes.vlines(bar.step + beside, *bar.interval, color=colour)
      room = math.inf if bar.basis == 'items' else (high - low) / 2
      ends += np.clip(bar.interval, low - room, high + room).tolist()
  axes.set_ylim(
    *((low, high) if axes.get_yscale() == 'log' else (min(ends), max(ends)))
  )
  axes.set_xlabel('step', color=_INK)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  return _svg(figure)


def _draw_rows(curves: Sequence[_Curve], chance: float | None) -> str:
  """Draws the values of one step, a recipe a row."""
  figure, axes = _figure(0.75 + 0.22 * len(curves))
  for row, (recipe, values, _, bar) in enumerate(curves):
    look = {**_look(recipe), 'linestyle': 'none'}
    (found,) = values.values()
    if len(found) > 1:
      axes.plot(found, [row] * len(found), **{**look, 'alpha': 0.35})
    axes.plot([np.mean(found)], [row], **look)
    if bar is not None and bar.interval is not None:
      axes.hlines(row, *bar.interval, color=look['color'])
  if chance is not None:
    axes.axvline(chance, color=_INK, alpha=0.6, linewidth=1, linestyle=':')
  axes.set_ylim(len(curves) - 0.4, -0.6)
  axes.set_yticks(range(len(curves)), [c.recipe.letter for c in curves])
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  axes.ticklabel_format(axis='x', useOffset=False)
  return _svg(figure)


def _look(recipe: _Recipe) -> dict[str, Any]:
  turn, place = divmod(recipe.n, len(_MARKERS))
  return {
    'color': _COLOURS[place],
    'marker': _MARKERS[place][0],
    'linestyle': _LINES[turn % len(_LINES)],
    'markersize': 4,
    'linewidth': 1.6,
  }


def _figure(height: float) -> tuple[Figure, Any]:
  figure = Figure(figsize=(4.2, height), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)  # no display, no global state of pyplot
  axes = figure.subplots()
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(_INK)
  axes.tick_params(colors=_INK, labelsize=9)
  axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
  axes.set_axisbelow(True)
  return figure, axes


def _svg(figure: Figure) -> str:
  """Gives a figure as an element that has the page's colours and letters."""
  out = io.StringIO()
  # Text as text, to be read, searched and drawn in the page's letters; equal
  # figures give equal bytes.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'lm'}):
    figure.savefig(out, format='svg', transparent=True, metadata={'Date': None})
  svg = out.getvalue()
  svg = svg[svg.index('<svg') :].strip()
  svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg)  # HTML knows them
  svg = svg.replace('xlink:href', 'href')
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'\s*\n\s*', ' ', svg)
  svg = svg.replace(_INK, 'currentColor')
  for n, colour in enumerate(_COLOURS):
    svg = svg.replace(colour, f'var(--c{n})')
  return svg

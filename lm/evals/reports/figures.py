"""Draws the metrics of recipes: curves over steps, or a row for each recipe."""

from collections.abc import Iterable, Mapping, Sequence
import math
import re
from typing import Any, NamedTuple

from matplotlib import figure, ticker
import numpy as np

from lm.evals.reports import recipes
from lm.reporting import html, pictures

# A recipe's marker and line, in figures and in text.
_MARKERS = tuple(zip('os^DvP', '●■▲◆▼✚', strict=True))
_LINES = (('-', ''), ('--', '╌'), (':', '┈'), ('-.', '─·'))
assert len(_MARKERS) == len(pictures.COLOURS), 'a marker has one colour'


class Recipe(NamedTuple):
  """A recipe as the report shows it.

  Attributes:
    n: its place in the report, which gives it its letter, marker and colour.
    name: the hash that `recipes` knows it by.
    runs: its runs.
    estimates: by evaluator and metric.
  """

  n: int
  name: str
  runs: Sequence[recipes.Run]
  estimates: Mapping[str, Mapping[str, recipes.Estimate]]

  @property
  def letter(self) -> str:
    return f'{chr(ord("A") + self.n % 26)}{self.n // 26 or ""}'

  @property
  def sign(self) -> str:
    """Its marker and letter, in its colour."""
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
    return f'{self.sign} {html.code(label)}'


class _Curve(NamedTuple):
  """The values of a recipe by step: of all its seeds, and of each seed."""

  recipe: Recipe
  values: Mapping[int, Sequence[float]]
  each: Sequence[Mapping[int, Sequence[float]]]
  bar: recipes.Estimate | None


def figures(
  prefix: str, metrics: Iterable[tuple[str, str]], shown: Sequence[Recipe]
) -> str:
  """Draws metrics, a figure each, below one legend; '' if there are none.

  Args:
    prefix: of the ids in these figures.
    metrics: (evaluator, metric).
    shown: the recipes.
  """
  drawn = [
    _figure(f'{prefix}{n}-', evaluator, metric, shown)
    for n, (evaluator, metric) in enumerate(metrics)
  ]
  legend = ''.join(f'<span class="key">{r.title}</span>' for r in shown)
  grid = f'<p>{legend}</p>\n<div class="grid">{"".join(drawn)}</div>'
  return grid if drawn else ''


def _figure(
  prefix: str, evaluator: str, metric: str, shown: Sequence[Recipe]
) -> str:
  """Draws one metric, '' if it has no number."""
  curves, labels = [], []
  for recipe in shown:
    values, *each = (
      recipes.seeds(runs, evaluator, metric)
      for runs in (recipe.runs, *([run] for run in recipe.runs))
    )
    if any(math.isfinite(x) for xs in values.values() for x in xs):
      bar = recipe.estimates[evaluator].get(metric)
      curves.append(_Curve(recipe, values, each, bar))
      ends = ', '.join(
        f'{html.number(float(np.mean(values[step])))} at step '
        f'{html.number(step)}'
        for step in dict.fromkeys((min(values), max(values)))
      )
      labels.append(f'{recipe.letter}: {ends}')
  if not curves:
    return ''
  name = html.text(f'{evaluator} / {metric}')
  label = f'role="img" aria-label="{name}: {"; ".join(labels)}"'
  svg = _draw(prefix, curves).replace('<svg', f'<svg {label}', 1)
  return f'<figure><figcaption>{name}</figcaption>{svg}</figure>\n'


def _draw(prefix: str, curves: Sequence[_Curve]) -> str:
  """Draws curves as SVG."""
  steps = {step for curve in curves for step in curve.values}
  with pictures.style():
    # pyplot would keep a global state, and look for a display.
    drawn = figure.Figure((4.2, 2.5), layout='constrained')
    axes = drawn.subplots()
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(pictures.INK)
    axes.tick_params(colors=pictures.INK, labelsize=9)
    axes.grid(color=pictures.INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(steps) > 1:
      _draw_steps(axes, curves)
    else:
      drawn.set_figheight(0.75 + 0.22 * len(curves))
      _draw_rows(axes, curves)
    return pictures.svg(drawn, prefix)


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
  # Bars come last and are cut: a bar of two seeds may be so long that curves
  # drawn to its scale would look flat.
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
  axes.set_xlabel('step', color=pictures.INK)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))


def _draw_rows(axes: Any, curves: Sequence[_Curve]) -> None:
  """Draws the values of one step, with a row for each recipe."""
  for row, (recipe, values, _, bar) in enumerate(curves):
    look = {**_look(recipe), 'linestyle': 'none'}
    (seeds,) = values.values()
    if len(seeds) > 1:
      axes.plot(seeds, [row] * len(seeds), **look, alpha=0.35)
    axes.plot([np.mean(seeds)], [row], **look)
    if bar and bar.interval:
      axes.hlines(row, *bar.interval, color=look['color'])
  axes.set_ylim(len(curves) - 0.4, -0.6)
  axes.set_yticks(range(len(curves)), [c.recipe.letter for c in curves])
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))


def _look(recipe: Recipe) -> dict[str, Any]:
  """Gives a recipe's marker, line and colour as matplotlib takes them."""
  turn, place = divmod(recipe.n, len(_MARKERS))
  return {
    'color': pictures.COLOURS[place],
    'marker': _MARKERS[place][0],
    'linestyle': _LINES[turn % len(_LINES)][0],
    'markersize': 4,
    'linewidth': 1.6,
  }

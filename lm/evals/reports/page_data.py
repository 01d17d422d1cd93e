"""Builds the data of the page: what its charts draw and programs can read."""

from collections.abc import Iterable, Mapping, Sequence
import math
import re
from typing import Any, NamedTuple

from lm.evals.reports import comparison, curves, recipes
from lm.reporting import html

# A recipe's marker and line, in text; lm/reporting/charts.js draws the same.
_MARKERS = '●■▲◆▼✚'
_LINES = ('', '╌', '┈', '─·')
_MAIN = ('loss_nats', 'bits_per_byte')  # of training, beside evaluations
_MOST_SWEPT = 4  # numeric keys with a chart of their own


class Recipe(NamedTuple):
  """A recipe as the page shows it.

  Attributes:
    n: its place in the page, which gives it its letter, marker and colour.
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
  def mark(self) -> str:
    turn, place = divmod(self.n, len(_MARKERS))
    return f'{_MARKERS[place]}{_LINES[turn % len(_LINES)]}'

  @property
  def sign(self) -> str:
    """Its marker and letter, in its colour."""
    colour = f'var(--c{self.n % len(_MARKERS)})'
    return f'<b style="color: {colour}">{self.mark} {self.letter}</b>'

  @property
  def label(self) -> str:
    """Says what the names of its runs have in common."""
    names = {run.name.rstrip('/') for run in self.runs}
    if len(names) > 1:
      seed = re.compile(r'([-_./]+(seed|s))?[-_./]*\d+$')
      names = {seed.sub('', name) for name in names}
    return min(names).rpartition('/')[2] or self.runs[0].name

  @property
  def title(self) -> str:
    """Its sign and label."""
    return f'{self.sign} {html.code(self.label)}'


def ordered(
  groups: Mapping[str, Sequence[recipes.Run]],
  estimates: Mapping[str, Mapping[str, Mapping[str, recipes.Estimate]]],
  result: tuple[str, str] | None,
) -> list[Recipe]:
  """Puts recipes in the order of their results, the best first.

  Args:
    groups: the runs of each recipe.
    estimates: by recipe, evaluator and metric.
    result: the evaluator and metric that they are ordered by; None keeps their
      order. Recipes without it come last.
  """

  def place(name: str) -> tuple[bool, float]:
    one = result and estimates[name].get(result[0], {}).get(result[1])
    if not one or not result or math.isnan(one.value):
      return True, 0.0
    lower = comparison.lower_is_better(result[1])
    return False, one.value if lower else -one.value

  return [
    Recipe(n, name, groups[name], estimates[name])
    for n, name in enumerate(sorted(groups, key=place))
  ]


def differing(shown: Sequence[Recipe]) -> list[str]:
  """Lists the settings in which recipes differ."""
  settings = [recipe.runs[0].settings for recipe in shown]
  return [
    key
    for key in sorted({key for each in settings for key in each})
    if len({repr(each.get(key, ...)) for each in settings}) > 1
  ]


def swept(shown: Sequence[Recipe], keys: Sequence[str]) -> list[str]:
  """Lists the differing keys that are a number in every recipe."""

  def is_number(value: Any) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(value)

  return [
    key
    for key in keys
    if all(is_number(recipe.runs[0].settings.get(key)) for recipe in shown)
  ][:_MOST_SWEPT]


class Charts(NamedTuple):
  """The charts of a page, by section, and its data.

  Attributes:
    sections: the numbers of charts by section: results, swept, main, other.
    data: of JSON, see `build`.
    left_out: metrics for which there is no room.
  """

  sections: Mapping[str, Sequence[int]]
  data: dict[str, Any]
  left_out: Sequence[str]


def build(
  shown: Sequence[Recipe],
  histories: Mapping[str, curves.History],
  heads: Mapping[str, str],
  compared: Mapping[str, Any] | None,
) -> Charts:
  """Builds the data of a page.

  Args:
    shown: the recipes.
    histories: what the runs wrote as they trained, by the name of the run.
    heads: the main metric of each evaluator.
    compared: what `comparison.compare_with` found; None: nothing.

  Returns:
    Its `data` have `recipes` with their settings and estimates, `runs` with
    their clocks and curves, `charts`, and `comparisons`.
  """
  main = [f'{evaluator}/{metric}' for evaluator, metric in heads.items()]
  every: dict[str, dict[str, curves.Curve]] = {}  # by metric and run
  for recipe in shown:
    for run in recipe.runs:
      for name, curve in _curves(run, histories[run.name]).items():
        every.setdefault(name, {})[run.name] = curve
  trained = [name for name in _MAIN if name in every]
  names, left_out = curves.chosen(
    [name for name in (*trained, *main, *every) if name in every],
    len(histories),
  )
  names = [name for name in names if _says_something(every[name].values())]
  # The means of recipes are curves, too.
  each = len(histories) + len(shown)
  first = [name for name in names if name in (*trained, *main)]
  most = {
    name: curves.points(each * len(kind))
    for kind in (first, [name for name in names if name not in first])
    for name in kind
  }
  differ = differing(shown)
  axes = swept(shown, differ)
  charts: list[dict[str, Any]] = []
  sections = {
    'results': [
      {'kind': 'results', 'evaluator': evaluator, 'metric': metric}
      for evaluator, metric in heads.items()
      if len(shown) > 1
    ],
    'swept': [
      {'kind': 'swept', 'evaluator': evaluator, 'metric': metric, 'key': key}
      for key in axes
      for evaluator, metric in heads.items()
    ],
    'main': [_curve_chart(x, every[x]) for x in first],
    'other': [_curve_chart(x, every[x]) for x in names if x not in first],
  }
  numbers = {}
  for section, each in sections.items():
    numbers[section] = range(len(charts), len(charts) + len(each))
    charts += each
  data = {
    'recipes': [_recipe(recipe, differ, every, most) for recipe in shown],
    'runs': [
      _run(run, recipe, histories[run.name], every, most)
      for recipe in shown
      for run in recipe.runs
    ],
    'charts': charts,
    'comparisons': compared,
  }
  return Charts(numbers, data, left_out)


def _curves(
  run: recipes.Run, history: curves.History
) -> dict[str, curves.Curve]:
  """Lists the curves of a run: of its training, and of its evaluations."""
  found = dict(history.curves)
  stored: dict[str, dict[int, float]] = {}
  for (step, evaluator), evaluation in run.evaluations.items():
    for metric, value in evaluation.metrics.items():
      if '/' not in metric:  # not that of a category
        stored.setdefault(f'{evaluator}/{metric}', {})[step] = value
  # What an evaluator found in training lies beside what lm.evaluate found.
  return {**found, **stored}


def _says_something(each: Iterable[curves.Curve]) -> bool:
  """Tells whether a metric is more than one whole number, such as a count."""
  values = {x for curve in each for x in curve.values()}
  finite = any(map(math.isfinite, values))
  return finite and (len(values) > 1 or not float(*values).is_integer())


def _curve_chart(name: str, each: Mapping[str, curves.Curve]) -> dict[str, Any]:
  values = [x for curve in each.values() for x in curve.values()]
  values = [x for x in values if math.isfinite(x)]
  wide = bool(values) and min(values) > 0 and max(values) > 100 * min(values)
  return {'kind': 'curve', 'metric': name, 'log': wide}


def _recipe(
  recipe: Recipe,
  differ: Sequence[str],
  every: Mapping[str, Mapping[str, curves.Curve]],
  most: Mapping[str, int],
) -> dict[str, Any]:
  settings = recipe.runs[0].settings
  means = {}
  for name in most:
    evaluator, _, metric = name.partition('/')
    stored = recipes.seeds(recipe.runs, evaluator, metric)
    if stored:  # the folds of a seed are one draw
      # A step that some seeds lack would show which ones, and not progress.
      seeds = max(map(len, stored.values()))
      curve = {
        step: recipes.mean(values)
        for step, values in stored.items()
        if len(values) == seeds
      }
    else:
      runs = [
        every[name][x.name] for x in recipe.runs if every[name].get(x.name)
      ]
      curve = curves.shared(runs) if runs else {}
    if curve:
      means[name] = curves.thinned(curve, most[name])
  return {
    'letter': recipe.letter,
    'label': recipe.label,
    'mark': recipe.mark,
    'recipe': recipe.name,
    'settings': {key: settings[key] for key in differ if key in settings},
    'runs': [run.name for run in recipe.runs],
    'estimates': {
      evaluator: {metric: one._asdict() for metric, one in found.items()}
      for evaluator, found in recipe.estimates.items()
    },
    'seeds': {
      evaluator: {
        metric: recipes.seeds(recipe.runs, evaluator, metric).get(one.step, [])
        for metric, one in found.items()
      }
      for evaluator, found in recipe.estimates.items()
    },
    'means': means,
  }


def _run(
  run: recipes.Run,
  recipe: Recipe,
  history: curves.History,
  every: Mapping[str, Mapping[str, curves.Curve]],
  most: Mapping[str, int],
) -> dict[str, Any]:
  return {
    'name': run.name,
    'recipe': recipe.n,
    'seed': run.seed,
    'fold': run.fold,
    'flops_per_token': history.flops_per_token,
    'clock': history.clock,
    # A single run is its recipe's mean.
    'curves': {
      name: curves.thinned(every[name][run.name], points)
      for name, points in most.items()
      if every[name].get(run.name) and len(recipe.runs) > 1
    },
  }

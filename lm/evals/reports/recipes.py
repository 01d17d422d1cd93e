"""Runs that were judged, the recipes that they are seeds of, and what these do.

A recipe is what a run computes: its config without the seed, the fold that it
does not train on and what says only where and how often, and hashes of its data
and tokenizer in place of their paths. One seed is one draw: what is said of a
recipe is a mean over its seeds, with their standard deviation, and an interval
for that mean. Where runs were each asked their own fold of the records, all
folds of one seed are one draw: its metric is the mean of theirs, and its items
are those of all.

Letters here: N items, G groups of items, K seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import checkpoint, config, errors
from lm.evals import items
from lm.evals.reports import stats

_FOLD = 'data.held_out'
_APART = tuple(f'{key}.' for key in ('seed', *checkpoint.CHANGEABLE_KEYS))


class Cell(NamedTuple):
  """What one evaluator found in one checkpoint.

  Attributes:
    checkpoint, task, code: hashes; '' where an older form has none.
    card: what was asked; {} where the evaluator does not say.
    metrics: by name, without that of the evaluator.
  """

  checkpoint: str
  task: str
  code: str
  card: Mapping[str, Any]
  metrics: Mapping[str, float]


class Run(NamedTuple):
  """A run, and what was found in it.

  Attributes:
    name: as it was given.
    folder: where its items lie.
    recipe: a short hash of `settings`; see `part`.
    seed: None if no checkpoint says.
    fold: of the records, that it did not train on; None: none.
    settings: by dotted key, what its recipe is.
    steps: that were to be judged.
    cells: by (step, evaluator).
  """

  name: str
  folder: Path
  recipe: str
  seed: int | None
  fold: int | None
  settings: Mapping[str, Any]
  steps: Sequence[int]
  cells: Mapping[tuple[int, str], Cell]


class Estimate(NamedTuple):
  """What a metric of a recipe is.

  Attributes:
    step: the newest of those that most of its seeds have.
    value: the mean over seeds.
    deviation: over seeds; None of one.
    seeds, items: how many it comes from; no items: they were not stored, or the
      metric is not their mean.
    interval: of the mean, 95 %; None where nothing tells.
    basis: what it is over: 'items', 'seeds', 'items and seeds' or ''.
  """

  step: int
  value: float
  deviation: float | None
  seeds: int
  items: int
  interval: tuple[float, float] | None
  basis: str


def run(
  name: str,
  folder: Path,
  meta: Mapping[str, Any] | None,
  steps: Sequence[int],
  lines: Iterable[Mapping[str, Any]],
) -> Run:
  """Describes a run.

  Args:
    name, folder, steps: as of `Run`.
    meta: of its newest sound checkpoint; None: it has none, and is a recipe of
      its own.
    lines: of its evals.jsonl. Of two of one step and evaluator the later one
      counts, and of two checkpoints of one step, as a run that was rewound
      leaves them, the one that was judged last.
  """
  seed, fold, settings = None, None, {'workdir': name}
  if meta is not None:
    c = config.flatten(config.from_json(meta['config']))
    seed = c['seed']
    settings = {
      key: value
      for key, value in c.items()
      if not f'{key}.'.startswith(_APART) and key.split('.')[-1] != 'path'
    }
    fold = settings.get(_FOLD)
    if fold is not None:
      settings[_FOLD] = 'each'
    data = meta['data']
    prints = data.get('datasets', {'all': data.get('fingerprint')})
    settings['tokenizer.sha256'] = meta['tokenizer']
    settings |= {f'data.sources.{k}.sha256': v for k, v in prints.items()}
  text = json.dumps(settings, sort_keys=True)
  recipe = hashlib.sha256(text.encode()).hexdigest()[:8]
  cells, states = {}, {}
  for line in lines:
    step = line['step']
    states[step] = line['checkpoint']
    task, code = line.get('task', ''), line.get('code', '')
    metrics: dict[str, dict[str, float]] = {}  # older lines have several
    for key, value in line['metrics'].items():
      evaluator, _, metric = key.partition('/')
      metrics.setdefault(evaluator, {})[metric] = value
    for evaluator, found in metrics.items():
      cells[step, evaluator] = Cell(
        line['checkpoint'], task, code, line.get('card', {}), found
      )
  cells = {
    (step, evaluator): cell
    for (step, evaluator), cell in sorted(cells.items())
    if cell.checkpoint == states[step]
  }
  return Run(name, folder, recipe, seed, fold, settings, steps, cells)


def part(runs: Iterable[Run]) -> list[Run]:
  """Gives runs of one config, but other weights, recipes of their own.

  Such as imported models, of which a config does not say where they come from.
  Their recipes end in .2 and so on.
  """
  parted: list[Run] = []
  for run in runs:
    states = {step: cell.checkpoint for (step, _), cell in run.cells.items()}
    name, n = run.recipe, 1
    while any(
      states.get(step, cell.checkpoint) != cell.checkpoint
      for other in parted
      if (other.recipe, other.seed, other.fold) == (name, run.seed, run.fold)
      for (step, _), cell in other.cells.items()
    ):
      n += 1
      name = f'{run.recipe}.{n}'
    parted.append(run._replace(recipe=name))
  return parted


def by_recipe(runs: Iterable[Run]) -> dict[str, list[Run]]:
  """Lists the runs of each recipe, in their order."""
  found: dict[str, list[Run]] = {}
  for run in runs:
    found.setdefault(run.recipe, []).append(run)
  return found


def headlines(runs: Iterable[Run]) -> dict[str, str]:
  """Names the metric of each evaluator that is told first."""
  found: dict[str, str] = {}
  for run in runs:
    for (_, evaluator), cell in run.cells.items():
      names = (cell.card.get('metric', ''), 'bits_per_byte', *cell.metrics)
      found[evaluator] = next(x for x in names if x in cell.metrics)
  return found


def seeds(
  runs: Iterable[Run], evaluator: str, metric: str
) -> dict[int, list[float]]:
  """Lists a metric of a recipe by step: a value a seed, copies left out."""
  found: dict[int, list[float]] = {}
  for step, drawn in sorted(_by_step(runs, evaluator).items()):
    for folds in drawn:
      metrics = [run.cells[step, evaluator].metrics for run in folds]
      if all(metric in x for x in metrics):
        found.setdefault(step, []).append(mean([x[metric] for x in metrics]))
  return found


def mean(values: Sequence[float]) -> float:
  """Averages over seeds."""
  with np.errstate(invalid='ignore', over='ignore'):  # nan, inf
    return float(np.mean(values))


def deviation(values: Sequence[float]) -> float | None:
  """Estimates the standard deviation over seeds; None of one."""
  if len(values) < 2:
    return None
  size = max(map(abs, values)) or 1.0  # the squares of some overflow
  with np.errstate(invalid='ignore'):  # of infinite ones it is nan
    return float(np.std(np.array(values) / size, ddof=1) * size)


def estimates(
  runs: Iterable[Run], evaluator: str
) -> tuple[dict[str, Estimate], list[str]]:
  """Estimates an evaluator's metrics for a recipe, from its runs.

  Returns:
    Estimates by metric, without single categories, {} if none of the runs has
    them; and what is wrong with stored items, a line each.
  """
  by_step = _by_step(runs, evaluator)
  if not by_step:
    return {}, []
  step = max(by_step, key=lambda step: (sum(map(len, by_step[step])), step))
  drawn, wrong = by_step[step], []
  asked: list[list[dict[str, dict[str, Any]]]] = []  # by draw, fold by fold
  for folds in drawn:
    asked.append([])
    for run in folds:
      try:
        asked[-1].append(_items(run, step, evaluator))
      except errors.Failure as error:
        asked[-1].append({})
        wrong.append(f'{run.name}: {error}')
  cells = [[run.cells[step, evaluator] for run in folds] for folds in drawn]
  found = {}
  for metric in cells[0][0].metrics:
    if '/' in metric or not all(metric in x.metrics for c in cells for x in c):
      continue
    x_KF = [[cell.metrics[metric] for cell in folds] for folds in cells]
    values = [mean(x_F) for x_F in x_KF]
    x_KN, groups = _outcomes(asked, metric, x_KF)
    interval, basis = _interval(np.array(values, float), x_KN, groups)
    K, N = x_KN.shape
    found[metric] = Estimate(
      step, mean(values), deviation(values), K, N, interval, basis
    )
  return found, wrong


def _by_step(runs: Iterable[Run], evaluator: str) -> dict[int, list[list[Run]]]:
  """Lists the draws that have an evaluator by step, each as its folds."""
  found: dict[int, dict[tuple[int | None, int | None], Run]] = {}
  for run in runs:
    for step, name in run.cells:
      if name == evaluator:
        found.setdefault(step, {}).setdefault((run.seed, run.fold), run)
  return {
    step: _draws(list(chosen.values()), step, evaluator)
    for step, chosen in found.items()
  }


def _draws(runs: list[Run], step: int, evaluator: str) -> list[list[Run]]:
  """Joins the folds of a seed; of seeds with fewer folds, none counts."""
  if len({run.cells[step, evaluator].task for run in runs}) < 2:
    return [[run] for run in runs]  # all were asked the same
  by_seed: dict[int | None, dict[int | None, Run]] = {}
  for run in runs:
    by_seed.setdefault(run.seed, {})[run.fold] = run
  most = max(by_seed.values(), key=len)
  return [
    [folds[fold] for fold in most]
    for folds in by_seed.values()
    if folds.keys() == most.keys()
  ]


def _items(run: Run, step: int, evaluator: str) -> dict[str, dict[str, Any]]:
  """Reads the items behind a cell by id; {} if they are not there."""
  cell = run.cells[step, evaluator]
  path = items.find(run.folder, step).get(evaluator)
  header, rows = items.read(path) if path else ({}, [])
  if any(header.get(x) != getattr(cell, x) for x in ('checkpoint', 'task')):
    return {}
  return {row['id']: row for row in rows}


def _outcomes(
  asked: Sequence[Sequence[Mapping[str, Mapping[str, Any]]]],
  metric: str,
  x_KF: Sequence[Sequence[float]],
) -> tuple[np.ndarray, list[str]]:
  """Lists a metric's outcome of each draw and item, and the items' groups.

  No items, if draws were not asked the same, a fold has items of another or the
  metric is not their mean.
  """
  none = np.empty((len(asked), 0)), []
  rows_K: list[dict[str, Mapping[str, Any]]] = []
  for rows_F, x_F in zip(asked, x_KF, strict=True):
    rows_K.append({})
    for rows, x in zip(rows_F, x_F, strict=True):
      has = {
        k: v for k, v in rows.items() if isinstance(v.get(metric), int | float)
      }
      values = [row[metric] for row in has.values()]
      if not values or not np.isclose(
        np.mean(values), x, rtol=1e-9, atol=1e-12
      ):
        return none
      if rows_K[-1].keys() & has.keys():
        return none
      rows_K[-1] |= has
  first, *others = rows_K
  if any(rows.keys() != first.keys() for rows in others):
    return none
  x_KN = np.array([[rows[i][metric] for i in first] for rows in rows_K], float)
  # One without a label was drawn by itself; no label has this character.
  return x_KN, [row.get('group') or f'\0{i}' for i, row in first.items()]


def _interval(
  x_K: np.ndarray, x_KN: np.ndarray, groups: Sequence[str]
) -> tuple[tuple[float, float] | None, str]:
  """Gives the interval of a mean and what it is over; see `Estimate`.

  Wilson's for the answers of one seed; otherwise Student's, by the variance
  over items plus that over seeds, as in `stats.difference`, from nothing.
  """
  K, N, G = *x_KN.shape, len(set(groups))
  # Seeds that all agree are of what none changes, such as a count.
  if not np.isfinite(x_K).all() or (G < 2 and len(set(x_K)) < 2):
    return None, ''
  basis = 'seeds' if G < 2 else 'items' if K < 2 else 'items and seeds'
  binary = G > 1 and np.isin(x_KN, (0, 1)).all()
  if binary and K == 1 and G == N:
    return stats.proportion(int(x_KN.sum()), N), basis
  # Two equal items, or seeds, have no variance, which leaves the others'.
  if G < 2:
    x_KN = np.stack([x_K, x_K], axis=1)
  elif K < 2:
    x_KN = np.repeat(x_KN, 2, axis=0)
  size = float(np.abs(x_KN).max()) or 1.0  # the squares of some overflow
  found = stats.difference(
    np.zeros_like(x_KN), x_KN / size, groups=groups if 1 < G < N else None
  )
  low, high = found.low * size, found.high * size
  if not binary:
    return (low, high), basis
  if low == high:  # all are right, or all are wrong
    return stats.proportion(round(low * G), G), basis
  return (max(low, 0.0), min(high, 1.0)), basis

"""Runs that were judged, the recipes that they are seeds of, and what these do.

A recipe is what a run computes: its config without the seed and without what
says only where and how often, and hashes of its data and tokenizer in place of
their paths. One seed is one draw: what is said of a recipe is a mean over its
seeds, with their standard deviation, and an interval for that mean.

Letters here: N items, K seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import config, errors
from lm.evals import items, stats

# What makes no other recipe: the seed, and what lm.train lets differ in a run.
APART = (
  'allow',
  'eval_every',
  'evals',
  'keep',
  'keep_every',
  'log_every',
  'max_skipped',
  'mesh',
  'plan',
  'prefetch',
  'save_every',
  'seed',
  'sharding',
  'sweep',
  'threads',
)


class Cell(NamedTuple):
  """What one evaluator found in one checkpoint; lines of evals.jsonl.

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
    settings: by dotted key, what its recipe is.
    steps: that were to be judged.
    cells: by (step, evaluator).
  """

  name: str
  folder: Path
  recipe: str
  seed: int | None
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
  seed, settings = None, {'workdir': name}
  if meta is not None:
    c = config.flatten(config.from_json(meta['config']))
    seed = c['seed']
    settings = {
      key: value
      for key, value in c.items()
      if key.partition('.')[0] not in APART and not f'.{key}'.endswith('.path')
    }
    prints = meta['data'].get('datasets') or {
      'all': meta['data'].get('fingerprint')
    }
    settings['tokenizer.sha256'] = meta['tokenizer']
    settings |= {f'data.sources.{k}.sha256': v for k, v in prints.items()}
  text = json.dumps(settings, sort_keys=True)
  recipe = hashlib.sha256(text.encode()).hexdigest()[:8]
  cells, states = {}, {}
  for line in lines:
    states[line['step']] = line['checkpoint']
    found: dict[str, dict[str, float]] = {}
    for key, value in line['metrics'].items():
      evaluator, _, metric = key.partition('/')
      found.setdefault(evaluator, {})[metric] = value
    for evaluator, metrics in found.items():
      cells[line['step'], evaluator] = Cell(
        line['checkpoint'],
        line.get('task', ''),
        line.get('code', ''),
        line.get('card', {}),
        metrics,
      )
  cells = {
    key: cell
    for key, cell in sorted(cells.items())
    if cell.checkpoint == states[key[0]]
  }
  return Run(name, folder, recipe, seed, settings, steps, cells)


def part(runs: Iterable[Run]) -> list[Run]:
  """Gives runs of one config and seed, but other weights, recipes of their own.

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
      if (other.recipe, other.seed) == (name, run.seed)
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
  for step, chosen in sorted(_each_once(runs, evaluator).items()):
    cells = [run.cells[step, evaluator] for run in chosen]
    values = [c.metrics[metric] for c in cells if metric in c.metrics]
    if values:
      found[step] = values
  return found


def deviation(values: Sequence[float]) -> float | None:
  """Estimates the standard deviation over seeds; None of one."""
  with np.errstate(invalid='ignore'):  # of infinite ones it is nan
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def estimates(
  runs: Iterable[Run], evaluator: str
) -> tuple[dict[str, Estimate], list[str]]:
  """Estimates an evaluator's metrics for a recipe, from its runs.

  Returns:
    Estimates by metric, {} if none of the runs has them; and what is wrong with
    stored items, a line each.
  """
  by_step = _each_once(runs, evaluator)
  if not by_step:
    return {}, []
  step = max(by_step, key=lambda step: (len(by_step[step]), step))
  chosen = by_step[step]
  cells = [run.cells[step, evaluator] for run in chosen]
  asked, wrong = [], []
  for one, cell in zip(chosen, cells, strict=True):
    try:
      asked.append(_items(one, step, evaluator, cell))
    except errors.Failure as error:
      asked.append({})
      wrong.append(f'{one.name}: {error}')
  found = {}
  for metric in cells[0].metrics:
    if all(metric in cell.metrics for cell in cells):
      x_K = np.array([cell.metrics[metric] for cell in cells], float)
      outcomes_KN, groups = _outcomes(asked, metric, x_K)
      interval, basis = _interval(x_K, outcomes_KN, groups)
      found[metric] = Estimate(
        step,
        float(x_K.mean()),
        deviation(x_K.tolist()),
        len(x_K),
        0 if outcomes_KN is None else outcomes_KN.shape[1],
        interval,
        basis,
      )
  return found, wrong


def _each_once(runs: Iterable[Run], evaluator: str) -> dict[int, list[Run]]:
  """Lists the runs that have an evaluator by step, one of each seed."""
  found: dict[int, dict[int | None, Run]] = {}
  for one in runs:
    for step, name in one.cells:
      if name == evaluator:
        found.setdefault(step, {}).setdefault(one.seed, one)
  return {step: list(by.values()) for step, by in found.items()}


def _items(
  one: Run, step: int, evaluator: str, cell: Cell
) -> dict[str, dict[str, Any]]:
  """Reads the items behind a cell by id; {} if they are not there."""
  path = items.find(one.folder, step).get(evaluator)
  if path is None:
    return {}
  header, rows = items.read(path)
  if any(header[key] != getattr(cell, key) for key in ('checkpoint', 'task')):
    return {}
  return {row['id']: row for row in rows}


def _outcomes(
  asked: Sequence[Mapping[str, Mapping[str, Any]]], metric: str, x_K: np.ndarray
) -> tuple[np.ndarray | None, list[str] | None]:
  """Lists a metric's outcome of each item and run, and the items' groups.

  None if runs were not asked the same, or the metric is not their mean.
  """
  ids = [
    name
    for name in asked[0]
    if all(
      isinstance(rows.get(name, {}).get(metric), int | float) for rows in asked
    )
  ]
  x_KN = np.array([[rows[i][metric] for i in ids] for rows in asked], float)
  if not ids or not np.allclose(x_KN.mean(axis=1), x_K, rtol=1e-9, atol=1e-12):
    return None, None
  labels = [asked[0][name].get('group') for name in ids]
  if all(label is None for label in labels):
    return x_KN, None
  # One without a label was drawn by itself; no label has this character.
  pairs = zip(labels, ids, strict=True)
  return x_KN, [label or f'\0{name}' for label, name in pairs]


def _interval(
  x_K: np.ndarray, outcomes_KN: np.ndarray | None, groups: list[str] | None
) -> tuple[tuple[float, float] | None, str]:
  """Gives the interval of a mean and what it is over; see `Estimate`.

  Wilson's for the answers of one seed; otherwise Student's, by the variance
  over items plus that over seeds, as in `stats.difference`, from nothing.
  """
  K, x_KN = len(x_K), outcomes_KN
  if not np.isfinite(x_K).all():
    return None, ''
  G = 0 if x_KN is None else len(set(groups) if groups else x_KN[0])
  if x_KN is None or G < 2:
    # Two equal items have no variance, which leaves that over seeds.
    x_KN, groups = np.repeat(x_K[:, None], 2, axis=1), None
    # Seeds that all agree are of what none changes, such as a count.
    basis, binary = ('seeds' if len(set(x_K)) > 1 else ''), False
  else:
    basis = 'items and seeds' if K > 1 else 'items'
    binary = bool(np.isin(x_KN, (0, 1)).all())
  if not basis:
    return None, ''
  if binary and K == 1 and groups is None:
    return stats.proportion(int(x_KN.sum()), x_KN.size), basis
  # Two equal seeds have no variance, which leaves that over items.
  x_KN = np.repeat(x_KN, 2, axis=0) if K == 1 else x_KN
  found = stats.difference(np.zeros_like(x_KN), x_KN, groups=groups)
  if not binary:
    return (found.low, found.high), basis
  if found.low == found.high:  # all are right, or all are wrong
    return stats.proportion(round(found.value * G), G), basis
  return (max(found.low, 0.0), min(found.high, 1.0)), basis

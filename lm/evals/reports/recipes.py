"""Groups evaluated runs by recipe, and estimates the metrics of each recipe.

A recipe is what a run computes: its config without the seed, without the fold
that is held out of training and without the keys that only say where and how
often things happen; hashes of its data and tokenizer stand in place of their
paths. Each seed is one draw: a metric of a recipe is the mean over its seeds,
with their standard deviation and an interval for the mean. If each run was
evaluated on its own fold of the records, all folds of one seed together are one
draw: its metric is the mean over the folds, and its items are those of all
folds.

Letters here: N items, G groups of items, K seeds, F folds.
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


class Evaluation(NamedTuple):
  """The result of one evaluator for one checkpoint.

  Attributes:
    checkpoint: hash of the checkpoint's content.
    task: hash of the evaluator's settings and files.
    code: hash of the program behind the evaluator.
    card: describes the questions; {} if the evaluator has none.
    metrics: by name, without that of the evaluator.
    contamination: see `lm.evals.contamination`.
  """

  checkpoint: str
  task: str
  code: str
  card: Mapping[str, Any]
  metrics: Mapping[str, float]
  contamination: str | Mapping[str, Any] = 'unknown'


class Run(NamedTuple):
  """A run and its stored results.

  Attributes:
    name: as the user gave it.
    folder: where its items lie.
    recipe: a short hash of `settings`; see `part`.
    seed: None if no checkpoint is left to say it.
    fold: the fold of the records that was held out of training, if any.
    settings: what makes up its recipe, by dotted key.
    steps: that were to be evaluated.
    evaluations: by (step, evaluator).
  """

  name: str
  folder: Path
  recipe: str
  seed: int | None
  fold: int | None
  settings: Mapping[str, Any]
  steps: Sequence[int]
  evaluations: Mapping[tuple[int, str], Evaluation]


class Estimate(NamedTuple):
  """An estimate of one metric of a recipe.

  Attributes:
    step: the newest of the steps that most of its seeds have.
    value: the mean over seeds.
    deviation: the standard deviation over seeds; None for a single seed.
    seeds: how many seeds it comes from.
    items: how many items it comes from; 0 if none were stored, or the metric is
      not the mean of an outcome.
    interval: for the mean, 95 %; None if there is nothing to estimate it from.
    basis: what the interval covers: 'items', 'seeds', 'items and seeds' or ''.
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
  """Describes a run by its newest checkpoint and its evals.jsonl.

  Args:
    name: as the user gave it.
    folder: where its items lie.
    meta: of its newest sound checkpoint; a run without one (None) is a recipe
      of its own.
    steps: that were to be evaluated.
    lines: of its evals.jsonl. If a step and evaluator have two lines, the later
      one counts; if a step has two checkpoints, as after a run was rewound, the
      one that was evaluated last counts.
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
  evaluations, states = {}, {}
  for line in lines:
    step, evaluator = line['step'], line['evaluator']
    states[step] = line['checkpoint']
    evaluations[step, evaluator] = Evaluation(
      line['checkpoint'],
      line['task'],
      line['code'],
      line.get('card', {}),
      {k.removeprefix(f'{evaluator}/'): v for k, v in line['metrics'].items()},
      line.get('contamination', 'unknown'),
    )
  evaluations = {
    (step, evaluator): evaluation
    for (step, evaluator), evaluation in sorted(evaluations.items())
    if evaluation.checkpoint == states[step]
  }
  return Run(name, folder, recipe, seed, fold, settings, steps, evaluations)


def part(runs: Iterable[Run]) -> list[Run]:
  """Gives runs with one config but different weights recipes of their own.

  Imported models are such runs: their config does not say where the weights
  come from. Their recipes end in .2 and so on.
  """
  parted: list[Run] = []
  for run in runs:
    states = {step: x.checkpoint for (step, _), x in run.evaluations.items()}
    name, n = run.recipe, 1
    while any(
      states.get(step, x.checkpoint) != x.checkpoint
      for other in parted
      if (other.recipe, other.seed, other.fold) == (name, run.seed, run.fold)
      for (step, _), x in other.evaluations.items()
    ):
      n += 1
      name = f'{run.recipe}.{n}'
    parted.append(run._replace(recipe=name))
  return parted


def by_recipe(runs: Iterable[Run]) -> dict[str, list[Run]]:
  """Lists the runs of each recipe, in their order."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.recipe, []).append(run)
  return groups


def headlines(runs: Iterable[Run]) -> dict[str, str]:
  """Names the most important metric of each evaluator.

  One that only some of the runs have is chosen all the same: a run whose
  tokenizer loses text has no bits per byte, and what it has instead does not
  compare with others.
  """
  by_evaluator: dict[str, list[Evaluation]] = {}
  for run in runs:
    for (_, evaluator), x in run.evaluations.items():
      by_evaluator.setdefault(evaluator, []).append(x)
  metrics: dict[str, str] = {}
  for evaluator, found in by_evaluator.items():
    measured = dict.fromkeys(name for x in found for name in x.metrics)
    cards = [x.card.get('metric', '') for x in found]
    names = (*cards, 'bits_per_byte', *measured)
    metrics[evaluator] = next(name for name in names if name in measured)
  return metrics


def seeds(
  runs: Iterable[Run], evaluator: str, metric: str
) -> dict[int, list[float]]:
  """Lists a metric of a recipe by step: one value for each seed.

  Copies of a run count once.
  """
  values: dict[int, list[float]] = {}
  for step, draws in sorted(_by_step(runs, evaluator).items()):
    for folds in draws:
      metrics = [run.evaluations[step, evaluator].metrics for run in folds]
      if all(metric in x for x in metrics):
        values.setdefault(step, []).append(mean([x[metric] for x in metrics]))
  return values


def mean(values: Sequence[float]) -> float:
  """Averages over seeds."""
  with np.errstate(invalid='ignore', over='ignore'):  # nan, inf
    return float(np.mean(values))


def deviation(values: Sequence[float]) -> float | None:
  """Estimates the standard deviation over seeds; None for a single seed."""
  if len(values) < 2:
    return None
  size = max(map(abs, values)) or 1.0  # or squares would overflow
  with np.errstate(invalid='ignore'):  # of infinite ones it is nan
    return float(np.std(np.array(values) / size, ddof=1) * size)


def estimates(
  runs: Iterable[Run], evaluator: str
) -> tuple[dict[str, Estimate], list[str]]:
  """Estimates an evaluator's metrics for a recipe, from its runs.

  Returns:
    Estimates by metric, without those of categories, and {} if no run has them;
    and a line for each file of items that cannot be used.
  """
  by_step = _by_step(runs, evaluator)
  if not by_step:
    return {}, []
  step = max(by_step, key=lambda step: (sum(map(len, by_step[step])), step))
  draws, problems = by_step[step], []
  rows_KF: list[list[dict[str, dict[str, Any]]]] = []  # by draw, fold by fold
  for folds in draws:
    rows_KF.append([])
    for run in folds:
      try:
        rows_KF[-1].append(_items(run, step, evaluator))
      except errors.Failure as error:
        rows_KF[-1].append({})
        problems.append(f'{run.name}: {error}')
  metrics_KF = [
    [run.evaluations[step, evaluator].metrics for run in folds]
    for folds in draws
  ]
  result = {}
  for metric in metrics_KF[0][0]:
    if '/' in metric or not all(metric in x for xs in metrics_KF for x in xs):
      continue
    x_KF = [[metrics[metric] for metrics in xs] for xs in metrics_KF]
    values = [mean(x_F) for x_F in x_KF]
    x_KN, groups = _outcomes(rows_KF, metric, x_KF)
    between, basis = interval(np.array(values, float), x_KN, groups)
    K, N = x_KN.shape
    result[metric] = Estimate(
      step, mean(values), deviation(values), K, N, between, basis
    )
  return result, problems


def _by_step(runs: Iterable[Run], evaluator: str) -> dict[int, list[list[Run]]]:
  """Lists the draws that have an evaluator by step, each as its folds."""
  distinct: dict[int, dict[tuple[int | None, int | None], Run]] = {}
  for run in runs:
    for step, name in run.evaluations:
      if name == evaluator:
        distinct.setdefault(step, {}).setdefault((run.seed, run.fold), run)
  return {
    step: _draws(list(chosen.values()), step, evaluator)
    for step, chosen in distinct.items()
  }


def _draws(runs: list[Run], step: int, evaluator: str) -> list[list[Run]]:
  """Joins the folds of each seed; seeds with fewer folds do not count."""
  if len({run.evaluations[step, evaluator].task for run in runs}) < 2:
    return [[run] for run in runs]  # all were asked the same questions
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
  """Reads the items of an evaluation by id; {} if they are not there."""
  evaluation = run.evaluations[step, evaluator]
  path = items.find(run.folder, step).get(evaluator)
  header, rows = items.read(path) if path else ({}, [])
  for name in ('checkpoint', 'task'):
    if header.get(name) != getattr(evaluation, name):
      return {}
  return {row['id']: row for row in rows}


def _outcomes(
  rows_KF: Sequence[Sequence[Mapping[str, Mapping[str, Any]]]],
  metric: str,
  x_KF: Sequence[Sequence[float]],
) -> tuple[np.ndarray, list[str]]:
  """Lists a metric's outcome of each draw and item, and the items' groups.

  There are no items (N = 0) if the draws were not asked the same questions, two
  folds share an item, or the metric is not the mean of its outcomes.
  """
  none = np.empty((len(rows_KF), 0)), []
  rows_K: list[dict[str, Mapping[str, Any]]] = []
  for rows_F, x_F in zip(rows_KF, x_KF, strict=True):
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
  # An item without a label is a group of its own; no label contains \0.
  return x_KN, [row.get('group') or f'\0{i}' for i, row in first.items()]


def interval(
  x_K: np.ndarray, x_KN: np.ndarray, groups: Sequence[str]
) -> tuple[tuple[float, float] | None, str]:
  """Gives the interval of a mean and its basis; see `Estimate`.

  For right and wrong answers of one seed this is Wilson's interval. Otherwise
  it is Student's, by the variance over items plus the variance over seeds: that
  of `stats.difference` between side A, all 0, and the outcomes.
  """
  K, N, G = *x_KN.shape, len(set(groups))
  # If all seeds agree, the metric does not depend on the seed, as a count.
  if not np.isfinite(x_K).all() or (G < 2 and len(set(x_K)) < 2):
    return None, ''
  basis = 'seeds' if G < 2 else 'items' if K < 2 else 'items and seeds'
  binary = G > 1 and np.isin(x_KN, (0, 1)).all()
  if binary and K == 1 and G == N:
    return stats.proportion(int(x_KN.sum()), N), basis
  # Two equal items, or two equal seeds, add no variance of their own: what is
  # left is the variance of the other source.
  if G < 2:
    x_KN = np.stack([x_K, x_K], axis=1)
  elif K < 2:
    x_KN = np.repeat(x_KN, 2, axis=0)
  size = float(np.abs(x_KN).max()) or 1.0  # or squares would overflow
  rise = stats.difference(
    np.zeros_like(x_KN), x_KN / size, groups=groups if 1 < G < N else None
  )
  low, high = rise.low * size, rise.high * size
  if not binary:
    return (low, high), basis
  if low == high:  # all answers are right, or all are wrong
    return stats.proportion(round(low * G), G), basis
  return (max(low, 0.0), min(high, 1.0)), basis

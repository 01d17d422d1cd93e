"""Lays evaluation results out as text for a terminal, and as CSV."""

from collections.abc import Mapping, Sequence
import csv
from pathlib import Path
import textwrap
from types import MappingProxyType
from typing import Any

from lm import errors
from lm.evals import records as records_lib
from lm.evals.reports import recipes
from lm.reporting import metrics_log

_COLUMNS = 100  # of a terminal


def table(
  records: Sequence[Mapping[str, Any]],
  headlines: Mapping[str, str] = MappingProxyType({}),
) -> str:
  """Lays records out, a checkpoint a row, without metrics of categories.

  Args:
    records: as `lm.evals.records.read` or `rows` gives them.
    headlines: the one metric of each evaluator that is shown if there is no
      room for all; by default its first.
  """
  records = [
    {**r, 'metrics': without_categories(r['metrics'])}
    | ({'checkpoint': r['checkpoint'][:8]} if 'checkpoint' in r else {})
    for r in records
  ]
  keys = list(dict.fromkeys(k for r in records for k in r if k != 'metrics'))
  names = list(dict.fromkeys(k for r in records for k in r['metrics']))
  whole = metrics_log.table(
    [{**r, **r['metrics']} for r in records], [*keys, *names]
  )
  if _width(whole) <= _COLUMNS:
    return whole
  shown: dict[str, str] = {}
  for name in names:
    evaluator, _, first = name.partition('/')
    shown.setdefault(evaluator, headlines.get(evaluator, first))
  lines = [
    {**r, **{e: r['metrics'].get(f'{e}/{shown[e]}') for e in shown}}
    for r in records
  ]
  blocks: list[list[str]] = [[]]
  for evaluator in shown:
    wider = metrics_log.table(lines, [*keys, *blocks[-1], evaluator])
    if blocks[-1] and _width(wider) > _COLUMNS:
      blocks.append([])
    blocks[-1].append(evaluator)
  legend = ', '.join(f'{e} {metric}' for e, metric in shown.items())
  return '\n\n'.join(
    [
      textwrap.fill(f'One metric a task, all in --csv: {legend}.', _COLUMNS),
      *(metrics_log.table(lines, [*keys, *block]) for block in blocks),
    ]
  )


def rows(runs: Sequence[recipes.Run]) -> Sequence[Mapping[str, Any]]:
  """Lists the results of runs as `table` takes them: a checkpoint a row.

  Below the runs of a recipe stand, for each step, the mean and the standard
  deviation over its seeds, or the mean over the folds of one seed.
  """
  if len(runs) == 1:
    return records_lib.read(runs[0].folder)
  result: list[Mapping[str, Any]] = []
  short = _short([run.name for run in runs])
  for recipe, group in recipes.by_recipe(runs).items():
    for run in group:
      by_step: dict[int, dict[str, float]] = {}
      for (step, evaluator), evaluation in run.evaluations.items():
        by_step.setdefault(step, {}).update(
          {f'{evaluator}/{k}': v for k, v in evaluation.metrics.items()}
        )
      fold = {} if run.fold is None else {'fold': run.fold}
      about = {'run': short[run.name], 'recipe': recipe, 'seed': run.seed}
      result += [
        {**about, **fold, 'step': step, 'metrics': metrics}
        for step, metrics in by_step.items()
      ]
    result += _summaries(recipe, group)
  return result


def write_csv(runs: Sequence[recipes.Run], path: Path) -> None:
  """Writes each metric as a line, with its mean over the recipe's seeds.

  Raises:
    errors.Storage: the file cannot be written.
  """
  lines = []
  for recipe, group in recipes.by_recipe(runs).items():
    over_seeds = _over_seeds(group)
    for run in group:
      for (step, evaluator), evaluation in run.evaluations.items():
        for metric, value in evaluation.metrics.items():
          mean, deviation, seeds = over_seeds[evaluator, metric][step]
          lines.append(
            {
              'run': run.name,
              'recipe': recipe,
              'seed': run.seed,
              'fold': run.fold,
              'step': step,
              'checkpoint': evaluation.checkpoint,
              'evaluator': evaluator,
              'task': evaluation.task,
              'code': evaluation.code,
              'metric': metric,
              'value': value,
              'mean': mean,
              'sd': deviation,
              'seeds': seeds,
            }
          )
  try:
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(lines[0]))
      writer.writeheader()
      writer.writerows(lines)
  except OSError as error:
    raise errors.Storage(
      f'--csv: {errors.refusal(error)}: give another file'
    ) from error


def without_categories(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves out metrics of single categories: 'EVALUATOR/METRIC/CATEGORY'."""
  return {name: x for name, x in metrics.items() if name.count('/') < 2}


def _summaries(
  recipe: str, runs: Sequence[recipes.Run]
) -> list[Mapping[str, Any]]:
  """Lists the rows of a recipe's means and deviations, by step."""
  metrics: dict[tuple[int, int, str], dict[str, float]] = {}
  for (evaluator, metric), by_step in _over_seeds(runs).items():
    for step, (mean, deviation, seeds) in by_step.items():
      name = f'{evaluator}/{metric}'
      if deviation is not None or len({run.fold for run in runs}) > 1:
        metrics.setdefault((step, seeds, 'mean'), {})[name] = mean
      if deviation is not None:
        metrics.setdefault((step, seeds, 'SD'), {})[name] = deviation
  return [
    {
      'run': f'{kind} of {seeds if seeds > 1 else "folds"}',
      'recipe': recipe,
      'step': step,
      'metrics': values,
    }
    for (step, seeds, kind), values in sorted(
      metrics.items(), key=lambda x: x[0][:2]
    )
  ]


def _over_seeds(
  runs: Sequence[recipes.Run],
) -> dict[tuple[str, str], dict[int, tuple[float, float | None, int]]]:
  """Gives a recipe's (mean, deviation, seeds) by metric and step."""
  names = {
    (evaluator, metric)
    for run in runs
    for (_, evaluator), evaluation in run.evaluations.items()
    for metric in evaluation.metrics
  }
  return {
    name: {
      step: (recipes.mean(x), recipes.deviation(x), len(x))
      for step, x in recipes.seeds(runs, *name).items()
    }
    for name in sorted(names)
  }


def _short(names: Sequence[str]) -> dict[str, str]:
  """Takes off the folders that all names begin with."""
  parts = [name.split('/') for name in names]
  same = 0
  while all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
    same += 1
  return {name: '/'.join(name.split('/')[same:]) for name in names}


def _width(text: str) -> int:
  return max(map(len, text.splitlines()), default=0)

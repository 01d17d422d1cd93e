"""Reads folders of runs for a report: as data, and without changing them."""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from lm import config, errors
from lm.checkpoint import manifest
from lm.evals import records
from lm.evals.reports import curves, recipes
from lm.training import run_record

TRAINING = 'training'  # stands for an evaluator where a run has none
_LAST = 0.1  # the share of the lines whose mean is the result of a training


def find(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
  """Finds the folders of runs: those given, or the runs that lie in them.

  Returns:
    The folders, each once; and a note for each path that has none.

  Raises:
    config.ConfigError: there is no run at all.
  """
  found: dict[Path, None] = {}
  notes, first = [], None
  for path in paths:
    first = first or path
    inner = sorted(x.parent for x in path.glob('*/config.json'))
    runs = [path] if (path / 'config.json').is_file() else inner
    found.update(dict.fromkeys(runs))
    if not runs:
      notes.append(f'{path}: left out: no folder of a run: no config.json')
  if not found:
    raise config.ConfigError(f'{first}: no folder of a run: no config.json')
  return list(found), notes


def read(folders: Sequence[Path]) -> list[recipes.Run]:
  """Reads the configs and evaluations of runs, and parts their recipes.

  Raises:
    config.ConfigError: a config cannot be read.
  """
  metas = [_newest_meta(folder) for folder in folders]
  if not all(metas):
    # Two seeds of a recipe must not differ because one has no checkpoint.
    metas = [_meta(folder) for folder in folders]
  return recipes.part(
    recipes.run(
      str(folder),
      folder,
      meta,
      manifest.steps(folder),
      records.lines(folder / records.NAME),
    )
    for folder, meta in zip(folders, metas, strict=True)
  )


def _newest_meta(folder: Path) -> Mapping[str, Any] | None:
  for step in reversed(manifest.steps(folder)):
    with contextlib.suppress(errors.Gone, errors.Damaged):
      return manifest.read(folder, step)['meta']
  return None


def _meta(folder: Path) -> Mapping[str, Any]:
  """Describes a run by its config, and its data by the record of its start."""
  try:
    text = curves.config_text(folder)
  except (OSError, ValueError) as error:
    path = folder / 'config.json'
    raise config.ConfigError(
      f'{path}: cannot be read ({type(error).__name__}): leave this run out'
    ) from error
  data: Mapping[str, Any] = {}
  with contextlib.suppress(errors.Damaged):
    starts = run_record.read(folder)['starts']
    data = starts[-1]['data'] if starts else {}
  return {'config': text, 'data': data, 'tokenizer': ''}


def with_training(
  runs: Sequence[recipes.Run], histories: Sequence[curves.History]
) -> list[recipes.Run]:
  """Adds to runs what they measured themselves as they trained.

  That is what their evaluators found during training, where lm.evaluate found
  nothing. If no run has any evaluation, the result is the training loss: the
  mean over the last tenth of its lines.
  """
  result = []
  for run, history in zip(runs, histories, strict=True):
    known = {evaluator for _, evaluator in run.evaluations}
    found: dict[tuple[int, str], dict[str, float]] = {}
    for name, curve in history.curves.items():
      evaluator, slash, metric = name.partition('/')
      if slash and evaluator in history.evaluators - known:
        for step, value in curve.items():
          found.setdefault((step, evaluator), {})[metric] = value
    result.append(_adding(run, found))
  if any(run.evaluations for run in result):
    return result
  return [
    _adding(run, _training_loss(history))
    for run, history in zip(result, histories, strict=True)
  ]


def _training_loss(
  history: curves.History,
) -> dict[tuple[int, str], dict[str, float]]:
  curve = history.curves.get('loss_nats', {})
  if not curve:
    return {}
  last = list(curve.values())[-max(1, round(_LAST * len(curve))) :]
  with np.errstate(over='ignore', invalid='ignore'):
    return {(max(curve), TRAINING): {'loss_nats': float(np.mean(last))}}


def _adding(
  run: recipes.Run, found: Mapping[tuple[int, str], Mapping[str, float]]
) -> recipes.Run:
  # It was measured on parameters that may have no checkpoint.
  added = {
    key: recipes.Evaluation('', '', '', {}, metrics)
    for key, metrics in found.items()
  }
  both = {**added, **run.evaluations}
  return run._replace(evaluations=dict(sorted(both.items())))

"""Says beside each score whether the run has seen items of the evaluator.

The run's contamination.json has the certificates of its data (lm.training.
certificates), which know an evaluator's file by its hash. A line of evals.jsonl
says

  "contamination": "unknown"

without them, and otherwise

  "contamination": {"items": 2376, "flagged": 3, "unchecked": 27,
                    "clean": {"accuracy": [0.25, 0.23, 0.27]}}

where flagged items were found in the text that the data were made of, unchecked
ones could not be sought, and `clean` has each metric over all other items, with
both ends of its interval at 95 %, or null where there is none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import config
from lm.evals import results
from lm.evals.reports import recipes
from lm.training import certificates

UNKNOWN = 'unknown'
State = str | Mapping[str, Any]
_KEYS = {'items', 'flagged', 'unchecked', 'clean'}


def state(workdir: Path, result: results.Result | Mapping[str, float]) -> State:
  """Describes how far an evaluator's items were in the data of a run.

  Args:
    workdir: folder of the run.
    result: what the evaluator returned.

  Returns:
    What stands in evals.jsonl. It is unknown if a source of the run has no
    certificate, or its certificate does not have the evaluator's file.
  """
  if not isinstance(result, results.Result) or not result.card:
    return UNKNOWN
  try:
    sources = certificates.read(workdir)
  except config.ConfigError:
    return UNKNOWN
  files = result.card.get('sha256', '').split()
  if not sources or not files:
    return UNKNOWN
  flagged: set[str] = set()
  items = unchecked = 0
  for certificate in sources.values():
    found = [(certificate or {}).get('files', {}).get(x) for x in files]
    if not all(found):
      return UNKNOWN
    flagged |= {name for x in found for name in x['flagged']}
    items = sum(x['items'] for x in found)
    # What one source could not seek may be in it.
    unchecked = max(unchecked, sum(sum(x['unchecked'].values()) for x in found))
  clean = [x for x in result.items if x['id'] not in flagged]
  hits = len(result.items) - len(clean)
  sets = {name.partition('/')[0] for name in flagged}
  is_other = sets.isdisjoint(x['id'].partition('/')[0] for x in result.items)
  if flagged and not hits and (is_other or len(result.items) >= items):
    return UNKNOWN  # the certificate calls the items by other names
  return {
    'items': len(result.items),
    'flagged': hits,
    'unchecked': unchecked,
    'clean': {
      name: estimate
      for name in result.metrics
      if '/' not in name and (estimate := _estimate(result, clean, name))
    },
  }


def lines(runs: Sequence[recipes.Run]) -> list[str]:
  """Describes the newest results of each run, a task a line.

  Tasks about which nothing is known share a line.
  """
  headlines = recipes.headlines(runs)
  told: list[str] = []
  for run in runs:
    newest = {name: x for (_, name), x in sorted(run.evaluations.items())}
    prefix = f'{run.name}: ' if len(runs) > 1 else ''
    unknown = []
    for name, evaluation in newest.items():
      text = brief(evaluation.contamination, headlines[name])
      if text == UNKNOWN:
        unknown.append(name)
      else:
        told.append(f'{prefix}{name}: contamination: {text}')
    if unknown:
      told.append(f'{prefix}contamination: unknown: {", ".join(unknown)}')
  return told


def brief(found: Any, metric: str) -> str:
  """Describes a state in words, with one metric over the clean items."""
  # A line may have been written by others.
  if not isinstance(found, Mapping) or not found.keys() >= _KEYS:
    return UNKNOWN
  text = f'{found["flagged"]} of {found["items"]} items'
  if found['unchecked']:
    text += f', {found["unchecked"]} of the set could not be checked'
  if metric in found['clean']:
    value, low, high = found['clean'][metric]
    text += f'; {metric} without them {value:.4g}'
    if low is not None:
      text += f' ({low:.4g} to {high:.4g})'
  return text


def _estimate(
  result: results.Result, clean: Sequence[results.Item], metric: str
) -> list[float | None] | None:
  """Estimates a metric over clean items; None if it is no mean over items."""

  def outcomes(items: Sequence[results.Item]) -> dict[str, float]:
    return {
      x['id']: float(x[metric])
      for x in items
      if isinstance(x.get(metric), int | float | np.number)
    }

  all_outcomes, known = outcomes(result.items), outcomes(clean)
  if not known or not np.isclose(
    np.mean([*all_outcomes.values()]),
    result.metrics[metric],
    rtol=1e-9,
    atol=1e-12,
  ):
    return None
  x_N = np.array([*known.values()])
  groups = [x.get('group') or f'\0{x["id"]}' for x in clean if x['id'] in known]
  interval, _ = recipes.interval(x_N.mean(keepdims=True), x_N[None], groups)
  low, high = interval or (None, None)
  return [float(x_N.mean()), low, high]

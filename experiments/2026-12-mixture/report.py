"""Writes results.json and results.png from the runs that are finished."""

from collections.abc import Mapping, Sequence
import itertools
import json
from pathlib import Path
import statistics
from typing import Any

from matplotlib.figure import Figure
import numpy as np
from scipy import stats as scipy_stats

from lm.evals.reports import stats

Run = Mapping[str, Any]
Table = dict[str, dict[int, float]]
LEVEL = 0.05


def losses(done: Sequence[Run], stage: str) -> Table:
  """Gives mean bits per byte of the mixtures of a stage, by seed.

  Seeds that not all mixtures have are left out.
  """
  found: Table = {}
  for run in done:
    if run['stage'] == stage:
      loss = statistics.fmean(run['losses'].values())
      found.setdefault(run['mixture'], {})[run['seed']] = loss
  whole = set.intersection(*map(set, found.values())) if found else set()
  return {
    name: {seed: by_seed[seed] for seed in sorted(whole)}
    for name, by_seed in found.items()
  }


def correlation(a: Mapping[str, float], b: Mapping[str, float]) -> Any:
  """Gives Spearman's rank correlation of two losses of the same mixtures.

  Its p is exact: the share of all orders that correlate as much.
  """
  x_N = scipy_stats.rankdata([a[name] for name in b])
  y_N = scipy_stats.rankdata([*b.values()])
  value = float(np.corrcoef(x_N, y_N)[0, 1])
  orders = np.array([*itertools.permutations(y_N - y_N.mean())])
  all_values = orders @ (x_N - x_N.mean()) / (len(x_N) * x_N.std() * y_N.std())
  p = float(np.mean(np.abs(all_values) >= abs(value) - 1e-9))
  return {'value': value, 'p': p}


def compared(table: Table) -> dict[str, dict[str, float]]:
  """Compares each mixture with the predicted one, in pairs of seeds.

  Positive differences say that the predicted one is better.
  """
  own = table['predicted']
  result = {}
  for name, by_seed in table.items():
    if name != 'predicted' and len(own) > 1:
      found = stats.mean(np.array([by_seed[n] - own[n] for n in own]))
      result[name] = {key: float(x) for key, x in found._asdict().items()}
  return result


def deviation(table: Table) -> float:
  """Estimates the deviation of a loss over seeds, pooled over mixtures."""
  return float(
    np.sqrt(np.mean([np.var([*x.values()], ddof=1) for x in table.values()]))
  )


def answer(rows: Mapping[str, Any]) -> str:
  """Answers by the rule that was written before the first run."""
  is_significant = [x['p'] < LEVEL for x in rows.values()]
  above = [x['value'] > 0 for x in rows.values()]
  if all(above) and all(is_significant):
    return 'yes'
  worse = [x and not y for x, y in zip(is_significant, above, strict=True)]
  return 'no' if any(worse) else 'open'


def summary(done: Sequence[Run], prediction: Run) -> dict[str, Any]:
  """Sums up what the tests of both sizes say."""
  guess = prediction['predicted_loss'][prediction['chosen']]
  result: dict[str, Any] = {}
  means: dict[str, dict[str, float]] = {}
  for stage in ('target', 'small'):
    table = losses(done, stage)
    if not table or not next(iter(table.values())):
      continue
    means[stage] = {
      name: statistics.fmean(x.values()) for name, x in table.items()
    }
    rows = compared(table)
    seeds = len(table['predicted'])
    result[stage] = {
      'seeds': seeds,
      'mean': means[stage],
      'deviation_over_seeds': deviation(table) if seeds > 1 else None,
      'minus_predicted': rows,
      'answer': answer(rows),
      'rank_correlation_with': {
        law: correlation(x, means[stage])
        for law, x in prediction['predicted_loss'].items()
      },
    }
  if len(means) == 2:
    result['rank_correlation_of_sizes'] = correlation(*means.values())
  result['guess'] = guess
  return result


def draw(
  done: Sequence[Run], prediction: Run, found: Mapping[str, Any], path: Path
) -> None:
  """Draws the fit, the prediction against the test, and the differences."""
  figure = Figure(figsize=(13, 4), layout='constrained')
  left, middle, right = figure.subplots(1, 3)
  law = prediction['chosen']
  error = prediction['left_out_error'][law]
  left.plot(prediction['proxy_loss'], prediction['left_out'][law], 'ko', ms=3)
  left.axline((4, 4), slope=1, color='0.7', zorder=0)
  left.set(
    xlim=_limits(prediction['proxy_loss']),
    ylim=_limits(prediction['proxy_loss']),
    xlabel='loss of a proxy, mean bits per byte',
    ylabel='predicted without it',
    title=f'{law} law, error {error:.4f}',
  )
  target = found['target']
  table = losses(done, 'target')
  for n, (name, by_seed) in enumerate(table.items()):
    spread = statistics.stdev(by_seed.values()) if len(by_seed) > 1 else 0
    middle.errorbar(
      found['guess'][name],
      target['mean'][name],
      yerr=spread,
      fmt='o',
      color=f'C{n}',
      label=name,
    )
  rank = target['rank_correlation_with'][law]['value']
  middle.set(
    xlabel='predicted loss of the proxy',
    ylabel='loss of the larger model',
    title=f'rank correlation {rank:.2f}',
  )
  middle.legend(fontsize=8)
  rows = target['minus_predicted']
  for n, row in enumerate(rows.values()):
    right.plot([row['low'], row['high']], [n, n], color=f'C{n + 1}')
    right.plot(row['value'], n, 'o', color=f'C{n + 1}')
  right.axvline(0, color='0.7', zorder=0)
  right.set_yticks(range(len(rows)), [*rows])
  right.set(
    xlabel='bits per byte above the predicted mixture',
    title=f'{target["seeds"]} pairs, 95 % intervals',
  )
  figure.savefig(path, dpi=110)


def _limits(values: Sequence[float]) -> tuple[float, float]:
  edge = 0.05 * (max(values) - min(values))
  return min(values) - edge, max(values) + edge


def write(
  folder: Path, done: Sequence[Run], missing: Sequence[tuple[Any, ...]]
) -> None:
  """Writes both files.

  Args:
    folder: of the experiment, with prediction.json.
    done: the runs that are finished.
    missing: the keys of the others.
  """
  prediction = json.loads((folder / 'prediction.json').read_text())
  hours = sum(x['seconds'] for x in done) / 3600
  found = summary(done, prediction)
  result = {
    'chosen': prediction['chosen'],
    'left_out_error': prediction['left_out_error'],
    **found,
    'runs': len(done),
    'missing': [list(x) for x in missing],
    'processor_hours': round(hours, 3),
  }
  text = json.dumps(result, indent=1)
  (folder / 'results.json').write_text(text + '\n', encoding='utf-8')
  if 'target' in found:
    draw(done, prediction, found, folder / 'results.png')
  print(f'{len(done)} runs, {len(missing)} missing, {hours:.2f} hours')

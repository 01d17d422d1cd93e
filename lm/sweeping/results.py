"""Results of a sweep: a row for each run, and a table of its points.

The metrics of a run are those of its end, or of the rung at which it was ended.
`loss_nats` and `bits_per_byte` of training are means over the last tenth of the
lines of metrics.jsonl up to there, because those of single lines are noisy. A
metric with a slash is of an evaluator, and its newest value counts.

In the table, the runs that differ in their seed alone are one row: the mean of
their metrics, with a 95 % interval for the mean.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lm import config
from lm.evals import records as eval_records
from lm.evals.reports import recipes
from lm.reporting import metrics_log
from lm.sweeping import points

TRAINING = ('loss_nats', 'bits_per_byte')  # metrics of training lines
ABOUT = ('name', 'state', 'step', 'workdir', 'error')  # a row's other columns
_SHARE = 10  # the last tenth of lines
_LIKELIHOOD = 'lm.evals.likelihood:make'

Row = dict[str, Any]


def metric(c: config.Config) -> tuple[str, bool]:
  """Chooses what runs are compared by, where nobody has named it.

  Returns:
    `early.metric` if the config ends runs by it; or else the held-out loss, if
    it is evaluated in training; or else the training loss. And whether higher
    is better.
  """
  if c.early.metric is not None:
    return c.early.metric, c.early.higher
  if c.eval_every:
    for name, spec in c.evals.items():
      if spec.fn == _LIKELIHOOD:
        return f'{name}/loss_nats', False
  return 'loss_nats', False


def value(
  lines: Sequence[Mapping[str, Any]], name: str, step: int | None = None
) -> float | None:
  """Reads a metric of a run.

  Args:
    lines: of its metrics.jsonl, see `lines`.
    name: of the metric.
    step: the last step that counts; None: all count.

  Returns:
    Its value; None if there is none up to that step.
  """
  found = [
    line[name]
    for line in lines
    if name in line and (step is None or line['step'] <= step)
  ]
  if not found:
    return None
  if name not in TRAINING:
    return float(found[-1])
  last = found[-max(1, len(found) // _SHARE) :]
  return math.fsum(last) / len(last)


def lines(workdir: Path) -> list[dict[str, Any]]:
  """Reads the metrics of a run, in training and by lm.evaluate, by step."""
  found = metrics_log.read(workdir / 'metrics.jsonl')
  for record in eval_records.read(workdir):
    found.append({'step': record['step'], **record['metrics']})
  return sorted(found, key=lambda line: line['step'])  # stable


def metrics(
  lines: Sequence[Mapping[str, Any]], step: int | None = None
) -> dict[str, float]:
  """Reads the metrics of a run that a table shows; see `value`."""
  names = dict.fromkeys(
    name for line in lines for name in line if name in TRAINING or '/' in name
  )
  found = {name: value(lines, name, step) for name in names}
  return {name: x for name, x in found.items() if x is not None}


def keys(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
  """Lists the keys whose values differ between rows, or all of a single row."""
  differ = [key for key in swept if len({repr(row[key]) for row in rows}) > 1]
  return differ if len(rows) > 1 else list(swept)


def table(
  rows: Sequence[Row], swept: Sequence[str], metric: str, higher: bool
) -> list[Row]:
  """Sums up the runs of each point, the best point first.

  Points whose runs are all done come first. Then come those of which a run has
  failed or is not finished, whose metrics are of earlier steps; those that were
  ended at a rung, later rungs first; and those without the metric.

  Args:
    rows: of the runs.
    swept: keys that points set.
    metric: that they are sorted by.
    higher: whether higher is better.

  Returns:
    Rows with the keys that differ, `runs`, `state`, the mean of each metric,
    and `METRIC low` and `METRIC high`, where the interval could be estimated.
  """
  columns = [key for key in keys(rows, swept) if key != points.SEED]
  groups: dict[str, list[Row]] = {}
  for row in rows:
    point = repr([row[key] for key in swept if key != points.SEED])
    groups.setdefault(point, []).append(row)
  found = [_summary(group, columns, metric) for group in groups.values()]
  sign = -1.0 if higher else 1.0

  def place(row: Row) -> tuple[bool, bool, bool, int, float]:
    x = float(row.get(metric, math.nan))
    ended = row['state'].startswith('ended')
    rung = -row['step'] if ended else 0
    finite, done = math.isfinite(x), row['state'] == 'done'
    return not finite, ended, not done, rung, sign * x if finite else 0.0

  return sorted(found, key=place)


def _summary(group: Sequence[Row], columns: Sequence[str], metric: str) -> Row:
  states = list(dict.fromkeys(row['state'] for row in group))
  names = dict.fromkeys([metric, *(k for row in group for k in _measured(row))])
  summary = {
    **{key: group[0][key] for key in columns},
    'runs': len(group),
    'state': ', '.join(states),
    # Of runs that took different numbers of steps the metrics do not compare.
    'step': min(row['step'] for row in group),
  }
  for name in names:
    values = [row[name] for row in group if name in row]
    if not values:
      continue
    summary[name] = recipes.mean(values)
    if name == metric:
      none = np.empty((len(values), 0))  # items: it covers seeds alone
      interval, _ = recipes.interval(np.array(values, float), none, [])
      if interval is not None:
        summary[f'{name} low'], summary[f'{name} high'] = interval
  return summary


def _measured(row: Row) -> list[str]:
  return [name for name in row if name in TRAINING or '/' in name]


def columns(rows: Sequence[Row]) -> list[str]:
  """Lists all columns of rows."""
  return list(dict.fromkeys(name for row in rows for name in row))


def text(rows: Sequence[Row]) -> str:
  """Lays a table out for a terminal."""
  return metrics_log.table(rows, columns(rows))


def markdown(rows: Sequence[Row]) -> str:
  """Lays a table out in markdown."""
  names = columns(rows)

  def cell(x: Any) -> str:
    shown = '' if x is None else f'{x:.5g}' if isinstance(x, float) else str(x)
    return shown.replace('|', '\\|')

  out = [[*map(cell, names)], ['---'] * len(names)]
  out += [[cell(row.get(name)) for name in names] for row in rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in out)


def comma_separated(rows: Sequence[Row]) -> str:
  """Lays a table out as CSV, with all digits."""
  out = io.StringIO()
  writer = csv.DictWriter(out, columns(rows), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def to_json(table: Sequence[Row], rows: Sequence[Row], metric: str) -> str:
  """Lays table and runs out as JSON; what is not finite is a string."""
  lists = {'table': table, 'runs': rows}
  done = {
    name: [json.loads(metrics_log.to_json(row)) for row in found]
    for name, found in lists.items()
  }
  return json.dumps({'metric': metric, **done}, indent=1) + '\n'

"""Tests whether one run is better than another, or how much data it takes.

  python -m tools.compare runs/a runs/b
  python -m tools.compare runs/a1,runs/a2,runs/a3 runs/b1,runs/b2,runs/b3

Pairs the items that `lm.evaluate` wrote for both (lm/evals/items.py), for every
evaluator and outcome that both have. Lower is better for names that end in
nats, loss, error, brier, negative, empty, exposure, known or verbatim;
otherwise higher is better. Names that end in stereotype, biased, male, female,
difference, confidence, tokens, bytes, words, positive, sentiment, repetition or
nats_per_byte only describe a run, and are shown if `--metric` names them.

With one run on each side the test is whether these two checkpoints differ; two
seeds of one recipe differ, too. Folders joined by commas are seeds of one
recipe, and then the recipes are compared. Folds of a cross-validation are also
joined by commas: folds with different items make up one run together. Items
with one label `group` count as one piece of evidence.

An interval is that of its row alone; p, and so the decision, is corrected for
the number of rows (Holm). The number of items or seeds that would show a
difference is for a power of 80 %, if the difference is as large as measured.
"""

import argparse
from collections.abc import Sequence
import csv
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from lm import config, errors
from lm.checkpoint import manifest
from lm.evals import items
from lm.evals.reports import stats
from lm.reporting import metrics_log

_LOWER = re.compile(
  '(.*_)?(nats|loss|error|brier|negative|empty|exposure|known|verbatim)'
)
_DESCRIBES = re.compile(
  '(.*_)?(stereotype|biased|male|female|difference|confidence|tokens|bytes|words'
  '|positive|sentiment|repetition|nats_per_byte)'
)
_COLUMNS = ('task', 'metric', 'n', 'A', 'B', 'B - A', 'interval', 'p')
_POWER = 0.8


class Evaluated(NamedTuple):
  """The items of one evaluator in one run.

  Attributes:
    workdir: folder of the run.
    header: of the file of items.
    rows: items by id.
  """

  workdir: str
  header: dict[str, Any]
  rows: dict[str, dict[str, Any]]


def load(
  workdirs: Sequence[str], step: int | None = None
) -> dict[str, list[Evaluated]]:
  """Reads the runs of one side, by evaluator.

  Only the evaluators that all these runs have are read.

  Raises:
    config.ConfigError: two runs are the same, or at different steps.
    errors.Missing: a run has no items of this step.
    errors.Failure: a file is damaged, or cannot be read.
  """
  runs = []
  for workdir in workdirs:
    folder = manifest.root(workdir).parent  # refuses an address
    if not folder.is_dir():
      raise errors.Missing(f'{workdir}: no such folder: check the path')
    files = items.find(folder, step)
    if not files:
      which = 'no items' if step is None else f'no items of step {step}'
      raise errors.Missing(
        f'{workdir}: {which}: run python -m lm.evaluate on it'
      )
    runs.append(files)
  names = sorted(set.intersection(*map(set, runs)))
  side = {}
  for name in names:
    side[name] = []
    for workdir, files in zip(workdirs, runs, strict=True):
      header, rows = items.read(files[name])
      side[name].append(Evaluated(workdir, header, {r['id']: r for r in rows}))
    _check_seeds(name, side[name])
  return side


def compare(
  a: Sequence[str],
  b: Sequence[str],
  *,
  step: int | None = None,
  metrics: Sequence[str] = (),
  level: float = 0.05,
) -> dict[str, Any]:
  """Compares two sides, of one run or of several seeds each.

  Args:
    a: work directories of side A.
    b: work directories of side B.
    step: of the checkpoints; None: the newest that was evaluated.
    metrics: outcomes to compare; empty: all that can be better or worse.
    level: how often one decision or more of the table may be wrong.

  Returns:
    `{'level', 'a', 'b', 'rows', 'notes'}`: the runs of each side with their
    steps, a row for each outcome, and notes on what was left out.

  Raises:
    config.ConfigError: there is nothing to compare, or items are not the same.
    errors.Failure: a file is missing or damaged, see `load`.
  """
  if not 0 < level < 1:
    raise config.ConfigError(f'--level: {level} must be between 0 and 1')
  left, right = load(a, step), load(b, step)
  both = sorted(left.keys() & right.keys())
  if not both:
    raise config.ConfigError(
      f'{",".join(a)} and {",".join(b)}: no evaluator in common: evaluate both'
      ' with the same evals'
    )
  rows, notes, too_few = [], [], []
  if alone := sorted(left.keys() ^ right.keys()):
    notes.append(f'left out, as only one side has them: {", ".join(alone)}')
  known = set()
  for name in both:
    if len({run.header['code'] for run in left[name] + right[name]}) > 1:
      notes.append(f'{name}: evaluated by different versions of its code')
    sides = _paired(name, left[name], right[name])
    outcomes = _outcomes([*sides[0], *sides[1]])
    known.update(outcomes)
    for metric in outcomes:
      if metric in metrics or not (metrics or _DESCRIBES.fullmatch(metric)):
        row = _row(name, metric, *sides, level)
        if row is None:
          too_few.append(
            f'{name}/{metric}: left out: fewer than two items or groups'
          )
        else:
          rows.append(row)
  if unknown := [metric for metric in metrics if metric not in known]:
    raise config.ConfigError(
      f'--metric: no outcome {unknown[0]} in common'
      f'{config.did_you_mean(unknown[0], sorted(known))}'
    )
  if not rows and too_few:
    raise config.ConfigError(f'nothing to compare: {too_few[0]}')
  if not rows:
    raise config.ConfigError(
      f'nothing to compare: name outcomes with --metric'
      f'{config.did_you_mean("", sorted(known))}'
    )
  _decide(rows, level)
  return {
    'level': level,
    'a': _about(left),
    'b': _about(right),
    'rows': [{k: v for k, v in row.items() if k != 'estimate'} for row in rows],
    'notes': notes + too_few,
  }


def table(report: dict[str, Any]) -> str:
  """Lays a report out for a reader."""
  lines = []
  for side in ('a', 'b'):
    for run in report[side]:
      steps = ', '.join(map(str, run['steps']))
      lines.append(f'{side.upper()}: {run["workdir"]}, step {steps}')
  rows = [
    {
      **row,
      'A': row['mean_a'],
      'B': row['mean_b'],
      'B - A': row['difference'],
      'interval': f'{row["low"]:.3g} to {row["high"]:.3g}',
    }
    for row in report['rows']
  ]
  return '\n'.join(
    [
      *lines,
      '',
      metrics_log.table(rows, [*_COLUMNS, 'decision']),
      *report['notes'],
    ]
  )


def _check_seeds(name: str, runs: list[Evaluated]) -> None:
  steps = {run.header['step']: run.workdir for run in runs}
  if len(steps) > 1:
    (one, here), (two, there) = sorted(steps.items())[:2]
    raise config.ConfigError(
      f'{name}: {here} is at step {one}, {there} at {two}: give one --step'
    )
  seen: dict[str, str] = {}
  for run in runs:
    state = run.header['checkpoint']
    if state in seen:
      raise config.ConfigError(
        f'{name}: {seen[state]} and {run.workdir} are the same checkpoint: give'
        ' runs of different seeds'
      )
    seen[state] = run.workdir


def _paired(
  name: str, left: list[Evaluated], right: list[Evaluated]
) -> tuple[list[Evaluated], list[Evaluated]]:
  """Checks that two sides have the same tasks; joins the folds of each."""
  by_task: dict[str, tuple[list[Evaluated], list[Evaluated]]] = {}
  for side, runs in enumerate((left, right)):
    for run in runs:
      by_task.setdefault(run.header['task'], ([], []))[side].append(run)
  for ours, theirs in by_task.values():
    if not (ours and theirs):
      one, other = (ours or left)[0], (theirs or right)[0]
      hashes = [run.header['task'][:12] for run in (one, other)]
      raise config.ConfigError(
        f'{name}: another task in {one.workdir} ({hashes[0]}) than in'
        f' {other.workdir} ({hashes[1]}): evaluate both with one'
      )
    _check_same(name, ours + theirs)
  a, b = (_joined(name, runs) for runs in zip(*by_task.values(), strict=True))
  if min(len(a), len(b)) == 1 != max(len(a), len(b)):
    raise config.ConfigError(
      f'{len(a)} against {len(b)} runs: give each side one, or two and more'
    )
  return a, b


def _joined(name: str, folds: Sequence[list[Evaluated]]) -> list[Evaluated]:
  """Joins the n-th runs of all folds, which have no item in common."""
  (first, *_), *others = folds
  rows = dict(first.rows)
  for run, *_ in others:
    if both := rows.keys() & run.rows.keys():
      raise config.ConfigError(
        f'{name}: another task in {first.workdir} than in {run.workdir}, with'
        f' {min(both)} in both: evaluate both with one'
      )
    rows |= run.rows
  counts = [len(runs) for runs in folds]
  if min(counts) < max(counts):
    raise config.ConfigError(
      f'{name}: {min(counts)} to {max(counts)} runs per fold: give each as many'
    )
  return [
    runs[0]._replace(rows={k: v for run in runs for k, v in run.rows.items()})
    for runs in zip(*folds, strict=True)
  ]


def _check_same(name: str, runs: list[Evaluated]) -> None:
  first, *others = runs
  for run in others:
    here = len(run.rows.keys() - first.rows.keys())
    there = len(first.rows.keys() - run.rows.keys())
    if here or there:
      raise config.ConfigError(
        f'{name}: items are missing ({here} and {there}): {first.workdir} and'
        f' {run.workdir}: evaluate both with one task'
      )


def _number(value: Any) -> bool:
  return isinstance(value, int | float)


def _outcomes(runs: list[Evaluated]) -> list[str]:
  """Lists the outcomes that are numbers in every run, in the first's order."""
  sets = [
    {k for row in run.rows.values() for k, v in row.items() if _number(v)}
    for run in runs
  ]
  named = dict.fromkeys(k for row in runs[0].rows.values() for k in row)
  return [name for name in named if all(name in each for each in sets)]


def _row(
  name: str,
  metric: str,
  left: list[Evaluated],
  right: list[Evaluated],
  level: float,
) -> dict[str, Any] | None:
  """Compares one outcome; None if there are too few items of it."""
  runs = left + right
  ids = [
    item
    for item in runs[0].rows
    if all(_number(run.rows[item].get(metric)) for run in runs)
  ]
  labels = [runs[0].rows[item].get('group') for item in ids]
  groups = None
  if any(isinstance(label, str) for label in labels):
    # An item without a label is a group of its own; no label contains \0.
    groups = [
      label if isinstance(label, str) else f'\0{item}'
      for label, item in zip(labels, ids, strict=True)
    ]
  pieces = len(ids if groups is None else set(groups))
  if pieces < 2:
    return None
  a_KN, b_KN = (
    np.array([[run.rows[i][metric] for i in ids] for run in side], float)
    for side in (left, right)
  )
  estimate = stats.difference(a_KN, b_KN, groups=groups, level=level)
  return {
    'task': name,
    'metric': metric,
    'n': len(ids),
    'groups': None if groups is None else pieces,
    'runs': min(len(left), len(right)),
    'mean_a': float(a_KN.mean()),
    'mean_b': float(b_KN.mean()),
    'difference': estimate.value,
    'low': estimate.low,
    'high': estimate.high,
    'estimate': estimate,
  }


def _decide(rows: list[dict[str, Any]], level: float) -> None:
  """Adds corrected p-values, decisions and how much more data it would take."""
  corrected = stats.holm([row['estimate'].p for row in rows])
  decided = int((corrected <= level).sum())
  for row, p in zip(rows, corrected.tolist(), strict=True):
    row['p'], row['more'] = p, {}
    if p <= level:
      rises = row['difference'] > 0
      better = rises != bool(_LOWER.fullmatch(row['metric']))
      row['decision'] = (
        'differs'
        if _DESCRIBES.fullmatch(row['metric'])
        else f'B is {"better" if better else "worse"}'
      )
      continue
    row['more'] = stats.more(
      row['estimate'],
      items=row['n'],
      runs=row['runs'],
      # The level of Holm's next step, for the best of the rows that are left.
      level=level / (len(rows) - decided),
      power=_POWER,
    )
    more = ' and '.join(
      f'{_rounded(n):,} more {name if n > 1 else name[:-1]}'
      for name, n in row['more'].items()
    )
    row['decision'] = 'not distinguishable: ' + (
      f'about {more} would tell' if more else 'no difference was seen'
    )


def _rounded(n: int) -> int:
  """Keeps two digits: more would promise too much."""
  return int(float(f'{n:.1e}'))


def _about(side: dict[str, list[Evaluated]]) -> list[dict[str, Any]]:
  steps: dict[str, set[int]] = {}
  for runs in side.values():
    for run in runs:
      steps.setdefault(run.workdir, set()).add(run.header['step'])
  return [{'workdir': k, 'steps': sorted(v)} for k, v in steps.items()]


def _store(rows: list[dict[str, Any]], path: Path) -> None:
  try:
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(
        {**row, 'more': ' '.join(f'{k}={v}' for k, v in row['more'].items())}
        for row in rows
      )
  except OSError as error:
    raise errors.Storage(
      f'--csv: {errors.refusal(error)}: give another file'
    ) from error


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.compare',
    description=__doc__,
    epilog=config.exit_code_help('tools.compare'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('a', help='a work directory, or several of seeds: X,Y,Z')
  parser.add_argument('b', help='the run, or runs, to compare with it')
  parser.add_argument(
    '--step', type=int, help='of the checkpoints, if not the newest'
  )
  parser.add_argument(
    '--metric', nargs='+', action='extend', default=[], metavar='NAME'
  )
  parser.add_argument('--level', type=float, default=0.05)
  parser.add_argument('--json', action='store_true', help='print JSON instead')
  parser.add_argument('--csv', type=Path, metavar='FILE', help='the rows')
  flags = parser.parse_args(argv)
  report = compare(
    flags.a.split(','),
    flags.b.split(','),
    step=flags.step,
    metrics=flags.metric,
    level=flags.level,
  )
  if flags.csv is not None:
    _store(report['rows'], flags.csv)
  if flags.json:
    config.print_json(report)
  else:
    print(table(report))


if __name__ == '__main__':
  config.main(main)

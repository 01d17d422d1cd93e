"""Compares runs item by item: which is better, and what it would take to tell.

Items are those that `lm.evaluate` wrote (lm/evals/items.py). Lower is better
for names that end in nats, loss, error, brier, negative, empty, exposure, known
or verbatim; otherwise higher is better. Some names only describe a run: they
differ, and are neither better nor worse. tools.compare is the program.
"""

from collections.abc import Callable, Mapping, Sequence
import re
from typing import Any, NamedTuple

import numpy as np

from lm import config, errors
from lm.checkpoint import manifest
from lm.evals import items
from lm.evals.reports import stats

_LOWER = re.compile(
  '(.*_)?(nats|loss|error|brier|negative|empty|exposure|known|verbatim)'
)
_DESCRIBES = re.compile(
  '(.*_)?(stereotype|biased|male|female|difference|confidence|tokens|bytes|words'
  '|positive|sentiment|repetition|nats_per_byte)'
)
# Of a whole evaluation, where the names above are those of single items.
_LOWER_MEANS = re.compile('(.*_)?(bits_per_byte|perplexity)')
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
  _check_level(level)

  def choose(name: str, outcomes: Sequence[str]) -> list[str]:
    del name
    return [x for x in outcomes if x in metrics or not (metrics or _tells(x))]

  left, right, rows, notes, too_few, known = _pair(a, b, step, choose, level)
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
    'rows': list(map(_told, rows)),
    'notes': notes + too_few,
  }


def compare_with(
  a: Sequence[str],
  others: Mapping[str, Sequence[str]],
  *,
  headlines: Mapping[str, str],
  chosen: bool,
  level: float = 0.05,
) -> dict[str, Any]:
  """Compares several sides with one, corrected for all comparisons together.

  Args:
    a: work directories of the side that the others are compared with.
    others: those of the other sides, by their names.
    headlines: the outcome of each evaluator that is compared, where its items
      have it; otherwise all that can be better or worse.
    chosen: whether `a` was chosen by its results, as the best one is. Then p is
      corrected as if every pair of sides had been compared.
    level: the same as in `compare`.

  Returns:
    `{'level', 'pairs', 'rows', 'notes'}`. A row is that of `compare`, with the
    name of the other side as `b`. Sides that cannot be compared have a note.
  """
  _check_level(level)

  def choose(name: str, outcomes: Sequence[str]) -> list[str]:
    if headlines.get(name) in outcomes:
      return [headlines[name]]
    return [x for x in outcomes if not _tells(x)]

  rows, notes = [], []
  for name, workdirs in others.items():
    try:
      pair = _pair(a, workdirs, None, choose, level)
    except (config.ConfigError, errors.Failure) as error:
      notes.append(f'{name}: not compared: {error}')
      continue
    rows += [{'b': name, **row} for row in pair.rows]
    notes += [f'{name}: {note}' for note in pair.notes + pair.too_few]
  sides = len(others) + 1
  pairs = sides * (sides - 1) // 2 if chosen else len(others)
  if rows:
    unseen = round(len(rows) * (pairs / len(others) - 1))
    _decide(rows, level, unseen)
  return {
    'level': level,
    'pairs': pairs,
    'rows': list(map(_told, rows)),
    'notes': notes,
  }


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise config.ConfigError(f'--level: {level} must be between 0 and 1')


def lower_is_better(metric: str) -> bool:
  """Tells by its name whether a metric is better when it is lower."""
  return bool(_LOWER.fullmatch(metric) or _LOWER_MEANS.fullmatch(metric))


def _tells(metric: str) -> bool:
  """Tells whether an outcome only describes a run."""
  return bool(_DESCRIBES.fullmatch(metric))


def _told(row: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in row.items() if k != 'estimate'}


class _Pair(NamedTuple):
  """Two sides, compared without decisions.

  Attributes:
    left, right: what was evaluated of each side.
    rows: a row for each outcome, and `known` the names of all.
    notes, too_few: on what was left out, the latter for too few items.
  """

  left: dict[str, list[Evaluated]]
  right: dict[str, list[Evaluated]]
  rows: list[dict[str, Any]]
  notes: list[str]
  too_few: list[str]
  known: set[str]


def _pair(
  a: Sequence[str],
  b: Sequence[str],
  step: int | None,
  choose: Callable[[str, Sequence[str]], list[str]],
  level: float,
) -> _Pair:
  """Compares two sides, without decisions.

  Raises:
    config.ConfigError: they have no evaluator in common, or other items.
    errors.Failure: see `load`.
  """
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
    for metric in choose(name, outcomes):
      row = _row(name, metric, *sides, level)
      if row is None:
        too_few.append(
          f'{name}/{metric}: left out: fewer than two items or groups'
        )
      else:
        rows.append(row)
  return _Pair(left, right, rows, notes, too_few, known)


def _check_seeds(name: str, runs: list[Evaluated]) -> None:
  steps = {run.header['step']: run.workdir for run in runs}
  if len(steps) > 1:
    (one, here), (two, there) = sorted(steps.items())[:2]
    raise config.ConfigError(
      f'{name}: {here} is at step {one}, {there} at {two}: compare at one step'
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


def _decide(rows: list[dict[str, Any]], level: float, unseen: int = 0) -> None:
  """Adds corrected p-values, decisions and how much more data it would take.

  Args:
    rows: of one table.
    level: how often one decision or more may be wrong.
    unseen: comparisons that chose these rows, and have no row. They count as
      the least likely to differ, so that p is rather too high.
  """
  p = [row['estimate'].p for row in rows]
  corrected = stats.holm([*p, *[1.0] * unseen])[: len(rows)]
  decided = int((corrected <= level).sum())
  for row, p in zip(rows, corrected.tolist(), strict=True):
    row['p'], row['more'] = p, {}
    if p <= level:
      rises = row['difference'] > 0
      better = rises != bool(_LOWER.fullmatch(row['metric']))
      row['decision'] = (
        'differs'
        if _tells(row['metric'])
        else f'B is {"better" if better else "worse"}'
      )
      continue
    row['more'] = stats.more(
      row['estimate'],
      items=row['n'],
      runs=row['runs'],
      # The level of Holm's next step, for the best of the rows that are left.
      level=level / (len(rows) + unseen - decided),
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

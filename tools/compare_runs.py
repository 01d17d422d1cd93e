"""Finds where two runs diverge: the first step and array that differ.

  python -m tools.compare_runs runs/a runs/b [--json]

Compares the bits of the metrics in metrics.jsonl, and the hashes of every array
in the checkpoints that both have. For the first parameter that differs it
prints by how much. Times and speeds are not compared. A refactor should show no
difference; with `numerics='deterministic'` another mesh should not either.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import checkpoint, config
from lm.checkpoint import manifest
from lm.reporting import metrics_log
from lm.training import run_meter


class Difference(NamedTuple):
  """The first difference between two runs.

  Attributes:
    step: the first step that differs.
    names: metrics, or arrays of a checkpoint, that differ there.
    values: of the first name, on each side.
  """

  step: int
  names: list[str]
  values: tuple[Any, Any]


class Comparison(NamedTuple):
  """Two runs, compared bit by bit.

  Attributes:
    metrics_steps: steps of metrics.jsonl that both have.
    metrics: the first difference there; None without one.
    checkpoints_steps: checkpoints that both have.
    checkpoints: the first difference there; None without one.
    distance: by how much the first parameter differs; '' if none does.
  """

  metrics_steps: int
  metrics: Difference | None
  checkpoints_steps: int
  checkpoints: Difference | None
  distance: str

  @property
  def differs(self) -> bool:
    """Tells whether anything differs."""
    return self.metrics is not None or self.checkpoints is not None

  def to_json(self) -> dict[str, Any]:
    """Describes it for programs."""
    found = {
      key: value._asdict() if isinstance(value, Difference) else value
      for key, value in self._asdict().items()
    }
    return {'differs': self.differs, **found}

  def text(self) -> str:
    """Describes it for readers."""
    lines = [
      f'{self.metrics_steps} steps of metrics.jsonl, {self.checkpoints_steps} '
      'checkpoints in common'
    ]
    if (line := self.metrics) is not None:
      lines.append(
        f'metrics diverge at step {line.step}: {", ".join(line.names)}; '
        f'{line.names[0]} {line.values[0]!r} against {line.values[1]!r}'
      )
    if (leaf := self.checkpoints) is not None:
      names = f'{leaf.names[0]} and {len(leaf.names) - 1} more'
      lines.append(f'checkpoints diverge at step {leaf.step}: {names}')
    if self.distance:
      lines.append(f'  {self.distance}')
    return '\n'.join(lines if self.differs else [*lines, 'nothing differs'])


def metrics(a: Path, b: Path) -> tuple[int, Difference | None]:
  """Compares metrics.jsonl bit by bit.

  Returns:
    How many steps both have, and the first difference.
  """
  sides = [_rows(side) for side in (a, b)]
  both = sorted(sides[0].keys() & sides[1].keys())
  for step in both:
    left, right = (side[step] for side in sides)
    names = [
      name
      for name in left
      if name in right
      and name not in run_meter.VARYING
      and not name.startswith('straggler/')  # depends on time, too
      and not _same(left, right, name)
    ]
    if names:
      values = left[names[0]], right[names[0]]
      return len(both), Difference(step, names, values)
  return len(both), None


def checkpoints(a: Path, b: Path) -> tuple[int, Difference | None]:
  """Compares checkpoints by the hashes of their arrays.

  Returns:
    How many steps both have, and the first difference.

  Raises:
    errors.Damaged: a manifest cannot be read.
  """
  both = sorted({*checkpoint.steps(a)} & {*checkpoint.steps(b)})
  for step in both:
    left, right = (manifest.read(side, step)['leaves'] for side in (a, b))
    names = sorted(
      name
      for name in left.keys() | right.keys()
      if left.get(name) != right.get(name)
    )
    if names:
      values = left.get(names[0]), right.get(names[0])
      return len(both), Difference(step, names, values)
  return len(both), None


def distance(a: Path, b: Path, step: int, name: str) -> str:
  """Says by how much a parameter differs at a step.

  Raises:
    errors.Failure: a checkpoint is damaged.
  """
  left, right = (_leaf(side, step, name) for side in (a, b))
  if left.shape != right.shape:
    return f'{left.shape} against {right.shape}'
  left, right = (x.astype(np.float64) for x in (left, right))
  apart = np.abs(left - right)
  scale = max(np.abs(left).max(), np.abs(right).max(), 1e-300)
  return (
    f'{(apart > 0).sum()} of {apart.size} numbers, by up to {apart.max():.3g} '
    f'({apart.max() / scale:.3g} of the largest)'
  )


def compare(a: str | Path, b: str | Path) -> Comparison:
  """Finds where two runs diverge.

  Raises:
    config.ConfigError: they have no step in common.
    errors.Failure: a checkpoint is damaged.
  """
  a, b = Path(a), Path(b)
  lines, line = metrics(a, b)
  saved, leaf = checkpoints(a, b)
  if not lines and not saved:
    raise config.ConfigError(
      f'{a} and {b}: no step in common: give two work directories'
    )
  apart = ''
  if leaf is not None and None not in leaf.values:
    params = [name for name in leaf.names if name.startswith('params/')]
    if params:
      apart = f'{params[0]}: {distance(a, b, leaf.step, params[0])}'
  return Comparison(lines, line, saved, leaf, apart)


def _rows(workdir: Path) -> dict[int, dict[str, Any]]:
  """Reads metrics.jsonl by step: one may have several lines."""
  rows: dict[int, dict[str, Any]] = {}
  for row in metrics_log.read(workdir / 'metrics.jsonl'):
    rows.setdefault(row['step'], {}).update(row)
  return rows


def _same(left: Any, right: Any, name: str) -> bool:
  a, b = left[name], right[name]
  return a == b or (a != a and b != b)


def _leaf(workdir: Path, step: int, name: str) -> np.ndarray:
  trained = checkpoint.restore_params(workdir, step, averaged=False)
  found: Any = {'params': trained}
  for part in name.split('/'):
    found = found[part]
  return np.asarray(found)


def main(argv: list[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.compare_runs',
    description=__doc__,
    epilog=config.exit_code_help('tools.compare_runs'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('a', help='a work directory')
  parser.add_argument('b', help='another')
  parser.add_argument('--json', action='store_true', help='for programs')
  args = parser.parse_args(argv)
  found = compare(args.a, args.b)
  if args.json:
    config.print_json(found.to_json())
  else:
    print(found.text())
  return int(found.differs)


if __name__ == '__main__':
  config.main(main)

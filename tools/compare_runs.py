"""Finds where two runs diverge: the first step and array that differ.

  python -m tools.compare_runs runs/a runs/b

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


def metrics(a: Path, b: Path) -> tuple[int, Difference | None]:
  """Compares metrics.jsonl bit by bit.

  Returns:
    How many steps both have, and the first difference.
  """
  sides = [
    {row['step']: row for row in metrics_log.read(side / 'metrics.jsonl')}
    for side in (a, b)
  ]
  both = sorted(sides[0].keys() & sides[1].keys())
  for step in both:
    left, right = (side[step] for side in sides)
    names = [
      name
      for name in left
      if name in right
      and name not in run_meter.VARYING
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


def compare(a: str | Path, b: str | Path) -> int:
  """Prints where two runs diverge and returns the program's exit code.

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
  print(f'{lines} steps of metrics.jsonl, {saved} checkpoints in common')
  if line is not None:
    print(
      f'metrics diverge at step {line.step}: {", ".join(line.names)}; '
      f'{line.names[0]} {line.values[0]!r} against {line.values[1]!r}'
    )
  if leaf is not None:
    names = f'{leaf.names[0]} and {len(leaf.names) - 1} more'
    print(f'checkpoints diverge at step {leaf.step}: {names}')
    params = [name for name in leaf.names if name.startswith('params/')]
    if params and None not in leaf.values:
      print(f'  {params[0]}: {distance(a, b, leaf.step, params[0])}')
  if line is None and leaf is None:
    print('nothing differs')
  return int(line is not None or leaf is not None)


def _same(left: Any, right: Any, name: str) -> bool:
  a, b = left[name], right[name]
  return a == b or (a != a and b != b)


def _leaf(workdir: Path, step: int, name: str) -> np.ndarray:
  found: Any = {'params': checkpoint.restore_params(workdir, step)}
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
  args = parser.parse_args(argv)
  return compare(args.a, args.b)


if __name__ == '__main__':
  config.main(main)

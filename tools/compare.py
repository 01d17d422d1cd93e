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
from typing import Any

from lm import config, errors
from lm.evals.reports import comparison
from lm.reporting import metrics_log

_COLUMNS = ('task', 'metric', 'n', 'A', 'B', 'B - A', 'interval', 'p')

compare = comparison.compare


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

"""Compares the data factory with datatrove on a generated corpus.

  python -m tools.bench.corpus --megabytes=50 --rounds=3 --workers=2

They run in turns (A B A B), each in processes of its own and into an empty
folder. It prints markdown for BENCHMARKS.md: processor and wall seconds, the
peak of memory of all processes together (PSS: shared pages count once), and the
seconds of each step, as medians over the rounds. The ratios are also given of
the core, which is without the steps that the other side has nothing like.

The same on both sides: the JSON lines, their order, the words (ours), what
exact duplicates are compared by, 5-grams of words for near ones, the number of
worker processes, and that what is left is written: by datatrove as JSON lines,
by ours as shards of bytes as tokens with an index of all documents.

Not the same:
  rules    Gopher's seven rules have the thresholds of the paper on both sides,
           but read it differently, see `lm.corpus.rules.gopher`. Nearly all the
           documents that only one side drops here fall to `alphabetic`: ours
           counts what stands between white space, so a lone "|" is a word
           without a letter; datatrove counts words, which have no such sign.
  near     datatrove proposes pairs by 14 bands of 8 rows, drops all but one of
           each cluster, and verifies nothing. Ours proposes by 25 bands of 5,
           which finds more, and drops what has a Jaccard similarity of 0.7 to
           an earlier document.
  audit    only ours writes one. It is not in the core.
"""

import argparse
from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import statistics
import sys
from typing import Any, NamedTuple

from lm.runtime import temporary
from tools import planted_corpus
from tools.bench import peers, process_tree, workers

REQUIREMENTS = (
  'datatrove[processing]==0.10.1',
  'orjson>=3,<4',
  'xxhash<4',  # datatrove breaks with 4
)
FOLDER = workers.ROOT / '.cache' / 'bench-datatrove'
NAMES = ('ours', 'datatrove')


class Run(NamedTuple):
  """A run of one side.

  Attributes:
    cost: of its processes.
    report: that it printed: steps, 'apart' (names of those outside of the
      core), documents, version.
  """

  cost: process_tree.Measured
  report: dict[str, Any]

  def core(self, key: str) -> float:
    """Returns 'cpu_seconds' or 'wall_seconds' without the steps apart."""
    apart = self.report.get('apart', ())
    return getattr(self.cost, key) - sum(
      x[key] for x in self.report['steps'] if x['name'] in apart
    )


def command(name: str) -> list[str]:
  """Returns the program of a side; input, output and workers are appended.

  Raises:
    workers.Failed: the installation of the peer failed.
  """
  if name == 'ours':
    return [sys.executable, '-m', 'tools.bench.corpus_ours']
  python = peers.environment(FOLDER, REQUIREMENTS)
  return [python, '-m', 'tools.bench.datatrove_peer']


def compare(
  commands: dict[str, list[str]], given: Path, rounds: int, count: int
) -> dict[str, list[Run]]:
  """Runs all sides in turns.

  Args:
    commands: program of each side, by name.
    given: folder of the corpus.
    rounds: of runs.
    count: of worker processes.

  Raises:
    workers.Failed: a program failed.
  """
  result: dict[str, list[Run]] = {name: [] for name in commands}
  for _ in range(rounds):
    for name, program in commands.items():
      with temporary.folder('bench-') as folder:
        cost = process_tree.measure(
          [*program, str(given), str(Path(folder, 'out')), str(count)], {}
        )
      report = json.loads(cost.output.strip().splitlines()[-1])
      result[name].append(Run(cost, report))
  return result


def table(runs: dict[str, list[Run]], megabytes: float) -> str:
  """Writes the results as markdown.

  Args:
    runs: of each side, by name; the first is compared with the others.
    megabytes: of the corpus.
  """

  def median(name: str, get: Callable[[Run], float]) -> float:
    return statistics.median(map(get, runs[name]))

  lines = [
    '| | processor s | wall s | MB/s | peak MiB | documents left |',
    '|---|---:|---:|---:|---:|---:|',
  ]
  for name, found in runs.items():
    cpu = median(name, lambda x: x.cost.cpu_seconds)
    wall = median(name, lambda x: x.cost.wall_seconds)
    peak = median(name, lambda x: x.cost.peak_bytes) / 2**20
    lines.append(
      f'| {name} ({found[0].report["version"]}) | {cpu:.1f} | {wall:.1f} | '
      f'{megabytes / wall:.1f} | {peak:.0f} | {found[0].report["documents"]} |'
    )
  first, *others = runs
  for other in others:
    pairs = [*zip(runs[first], runs[other], strict=True)]
    for name, get in (
      ('', lambda x, key: getattr(x.cost, key)),
      (' for the core', Run.core),
    ):
      ratios = [
        ', '.join(f'{get(b, key) / get(a, key):.2f}' for a, b in pairs)
        for key in ('cpu_seconds', 'wall_seconds')
      ]
      lines.append(
        f'\n{other} takes {ratios[0]} times the processor time of {first} and '
        f'{ratios[1]} times its wall time{name}, round by round.'
      )
  for name, found in runs.items():
    lines.append(
      f'\n| step of {name} | wall s | processor s |\n|---|---:|---:|'
    )
    for n, step in enumerate(found[0].report['steps']):
      walls = [x.report['steps'][n]['wall_seconds'] for x in found]
      cpus = [x.report['steps'][n].get('cpu_seconds') for x in found]
      cpu = '' if None in cpus else f'{statistics.median(cpus):.2f}'
      lines.append(
        f'| {step["name"]} | {statistics.median(walls):.2f} | {cpu} |'
      )
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.bench.corpus',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--megabytes', type=float, default=50.0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument(
    '--only', choices=NAMES, help='run one side, without comparing'
  )
  flags = parser.parse_args(argv)
  names = [flags.only] if flags.only else NAMES
  # Above 0.3 or so others were working here, and wall times say little.
  load = os.getloadavg()[0]
  try:
    commands = {name: command(name) for name in names}
    with temporary.folder('bench-') as folder:
      given = Path(folder, 'corpus')
      made = planted_corpus.main(
        [
          f'--output={given}',
          f'--megabytes={flags.megabytes}',
          f'--seed={flags.seed}',
          f'--workers={flags.workers}',
        ]
      )
      if made:
        return made
      size = sum(x.stat().st_size for x in given.glob('part-*.jsonl')) / 1e6
      runs = compare(commands, given, flags.rounds, flags.workers)
  except workers.Failed as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(
    f'{size:.1f} MB, {flags.workers} workers, {flags.rounds} rounds; load '
    f'before: {load:.1f}\n\n{table(runs, size)}'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

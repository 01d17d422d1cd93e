"""Measures the speed of training, loading, generation and checkpoints.

  make bench
  .venv/bin/python -m tools.bench --peers --only=training --spec=S --rounds=8

It prints markdown for BENCHMARKS.md. Whatever is compared runs in turns, in
short blocks (A B A B); each side is a process of its own, which is idle while
the other works. Every step is waited for; on an accelerator every eighth,
because a training loop runs ahead of it. No compiled program is reused. FLOPs
per token are 6 N + 12 layers length width. The yardstick is the rate of matrix
products in the same process, and on an accelerator also the chip's data sheet.
"""

import argparse
from collections.abc import Sequence
import contextlib
import datetime
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
from typing import Any

from tools.bench import measure, peers, table, workers
from tools.bench import spec as specs

MEASUREMENTS = ('training', 'loader', 'generation', 'checkpoint')


def chip_peak(facts: dict[str, Any], wanted: bool) -> float | None:
  """Returns the data sheet's FLOP/s of all devices; None on CPU.

  Args:
    facts: the facts of the workload 'probe'.
    wanted: whether MFU is to be reported.

  Raises:
    ValueError: MFU is wanted, but the table of chips does not have this one.
  """
  if facts['platform'] == 'cpu' or not wanted:
    return None
  if facts['peak'] is None:
    raise ValueError(f'{facts["unknown"]}, or give --no-mfu')
  return facts['peak'] * facts['devices']


def choose_specs(text: str | None, accelerator: bool) -> list[specs.Spec]:
  """Reads `--spec`; None chooses all specs that this machine can run.

  Raises:
    ValueError: a name is unknown, or its model is too large for a CPU.
  """
  if text is None:
    known = list(specs.SPECS.values())
    return [s for s in known if accelerator or s.name not in specs.LARGE]
  chosen = specs.parse(text)
  for s in chosen:
    if s.name in specs.LARGE and not accelerator:
      raise ValueError(f'--spec={s.name} needs an accelerator; here is a CPU')
  return chosen


def _commit() -> str:
  def git(*arguments: str) -> str:
    done = subprocess.run(
      ['git', *arguments], capture_output=True, text=True, cwd=workers.ROOT
    )
    return done.stdout.strip()

  try:
    changed = ' with local changes' if git('status', '--porcelain') else ''
    return f'{git("rev-parse", "--short=12", "HEAD") or "unknown"}{changed}'
  except OSError:
    return 'unknown'


def _chip(facts: dict[str, Any]) -> str:
  if facts['platform'] != 'cpu':
    return f'{facts["devices"]} x {facts["device"]}'
  name = platform.processor() or platform.machine()
  with contextlib.suppress(OSError):
    for line in Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        name = line.partition(':')[2].strip()
        break
  cores = (
    len(os.sched_getaffinity(0))
    if hasattr(os, 'sched_getaffinity')
    else os.cpu_count()
  )
  return f'{name}, {cores} cores'


def main(argv: Sequence[str]) -> int:
  """Runs the program; returns its exit code."""
  flags = _flags(argv)
  # Above 0.3 or so others were working here, and best steps count for more.
  load = os.getloadavg()[0]
  try:
    with workers.Worker('probe', [*workers.ours(), 'probe', '{}'], {}) as probe:
      facts = probe.facts
    accelerator = facts['platform'] != 'cpu'
    chosen = choose_specs(flags.spec, accelerator)
    peak = chip_peak(facts, not flags.no_mfu)
    torch = flags.torch or (peers.environment() if flags.peers else None)
  except (ValueError, workers.Failed) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  run = measure.Run(flags.rounds, flags.block_seconds, torch, accelerator, peak)
  results: dict[str, list[table.Row]] = {}
  parts: list[str] = []

  def add(title: str, key: str, rows: list[table.Row], text: str) -> None:
    results.setdefault(key, []).extend(rows)
    parts.append(f'### {title}\n\n{text}')

  if 'training' in flags.only:
    for spec in chosen:
      rows = [
        row
        for precision in specs.PRECISIONS
        if precision == 'bf16' or spec.name not in specs.LARGE
        for row in measure.training(run, spec, precision)
      ]
      title = f'Training, {spec.name}: {spec}'
      add(title, 'training', rows, table.training(rows, accelerator))
  if 'loader' in flags.only:
    rows = measure.loader(run)
    add('Loader', 'loader', rows, table.throughput(rows))
  if 'generation' in flags.only:
    rows = [row for batch in (1, 8) for row in measure.generation(run, batch)]
    add('Generation', 'generation', rows, table.throughput(rows))
  if 'checkpoint' in flags.only:
    rows = measure.checkpoint(run)
    add('Checkpoint', 'checkpoint', rows, table.checkpoint(rows))

  versions = dict(facts['versions'])
  for rows in results.values():
    for row in rows:
      versions.update(row.get('facts', {}).get('versions', {}))
  about: dict[str, Any] = {
    'date': datetime.date.today().isoformat(),
    'commit': _commit(),
    'chip': _chip(facts),
    'load': load,
    'rounds': flags.rounds,
    'versions': versions,
  }
  named = ', '.join(f'{name} {version}' for name, version in versions.items())
  print(
    f'## {about["date"]}, commit {about["commit"]}\n\n{about["chip"]}; '
    f'{named}; {flags.rounds} rounds; load before: {load:.1f}.\n\n'
    + '\n\n'.join(parts)
  )
  if flags.json:
    text = json.dumps({**about, 'results': results}, indent=1)
    Path(flags.json).write_text(f'{text}\n')
  bad = any('failed' in row for rows in results.values() for row in rows)
  return 1 if bad else 0


def _flags(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m tools.bench',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--only',
    type=_measurements,
    default=MEASUREMENTS,
    help=f'some of {",".join(MEASUREMENTS)}',
  )
  parser.add_argument(
    '--spec',
    help=f'of training: some of {",".join(specs.SPECS)}; default: all that '
    'this machine can run',
  )
  parser.add_argument('--rounds', type=_positive, default=6)
  parser.add_argument(
    '--block-seconds', type=float, default=4.0, help='length of a block'
  )
  parser.add_argument(
    '--peers',
    action='store_true',
    help=f'compare with others; installs {" and ".join(peers.REQUIREMENTS)} '
    'into .cache/bench-peers',
  )
  parser.add_argument(
    '--torch',
    type=_program,
    metavar='PYTHON',
    help='compare with the torch of this interpreter, and install none',
  )
  parser.add_argument(
    '--no-mfu',
    action='store_true',
    help='measure a chip whose peak is unknown',
  )
  parser.add_argument('--json', help='file for all numbers')
  return parser.parse_args(argv)


def _program(text: str) -> str:
  if shutil.which(text) is None:
    raise argparse.ArgumentTypeError(f'{text} is no program that can be run')
  return text


def _measurements(text: str) -> list[str]:
  names = text.split(',')
  for name in names:
    if name not in MEASUREMENTS:
      raise argparse.ArgumentTypeError(
        f'unknown {name[:60]!r}; choose from {", ".join(MEASUREMENTS)}'
      )
  return names


def _positive(text: str) -> int:
  if not text.isdigit() or not int(text):
    raise argparse.ArgumentTypeError(f'{text[:60]!r} is not a positive integer')
  return int(text)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

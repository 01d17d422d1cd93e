"""Sweeps learning rates over widths, with and without transfer.

  export PYTHONPATH=.
  nice -n 19 python experiments/2026-12-transfer/run.py

Points that are in results.jsonl are not run again, so it may be stopped and
started at any time. It ends before a run that could leave the budget of
processor time, and writes results.json and results.png from what there is;
`--report` writes them alone.
"""

import argparse
from collections.abc import Iterator, Sequence
import json
import math
import os
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from lm import config, train
from lm.reporting import metrics_log
from tools import corpora

HERE = Path(__file__).parent
POINTS = HERE / 'results.jsonl'
WIDTHS = (64, 128, 256, 512)
KINDS = ('transfer', 'plain')
SEEDS = (0, 1, 2)
RATES = tuple(2.0**-n for n in range(4, 13))
BUDGET_HOURS = 6.0  # of processor time, written before the first run
TAIL = 64  # steps at the end that the loss is averaged over

Point = dict[str, Any]


def key(point: Point) -> tuple[Any, ...]:
  """Names a point."""
  return tuple(point[x] for x in ('kind', 'width', 'seed', 'rate'))


def read() -> list[Point]:
  """Reads the points that are finished; a line that was cut off is none."""
  if not POINTS.exists():
    return []
  lines = POINTS.read_text(encoding='utf-8').split('\n')[:-1]
  return [json.loads(line) for line in lines if line]


def wanted() -> Iterator[Point]:
  """Yields all points, first those of one seed from narrow to wide."""
  for seed in SEEDS:
    for width in WIDTHS:
      for rate in RATES:
        for kind in KINDS:
          yield {'kind': kind, 'width': width, 'seed': seed, 'rate': rate}


def run(point: Point) -> Point:
  """Trains a point.

  Returns:
    The point with its loss, nats a character over the last steps of training,
    which read no text twice; None where a run ended in an error, which it
    quotes.
  """
  name = f'{HERE}/config.py:{point["kind"]},{point["width"]}'
  changes = [('optim.peak', str(point['rate'])), ('seed', str(point['seed']))]
  c = config.load(name, changes)
  start, error = time.process_time(), None
  with tempfile.TemporaryDirectory() as folder:
    try:
      train.train(c, folder)
    except Exception as problem:
      if not hasattr(problem, 'exit_code'):
        raise
      error = str(problem)
    found = metrics_log.read(Path(folder, 'metrics.jsonl'))
  losses = [x['loss_nats'] for x in found if x['step'] > c.steps - TAIL]
  loss = None if error else statistics.fmean(losses)
  seconds = round(time.process_time() - start, 1)
  return {**point, 'loss': loss, 'error': error, 'seconds': seconds}


def longest(done: Sequence[Point], point: Point) -> float:
  """Guesses the processor seconds of a point by those of wider ones."""
  known = [
    x['seconds'] * max(1, (point['width'] / x['width']) ** 2)
    for x in done
    if x['width'] >= point['width'] // 2
  ]
  return max(known, default=0.0)


def means(done: Sequence[Point]) -> dict[tuple[str, int], dict[float, float]]:
  """Averages losses over seeds: of a kind and a width, by rate.

  Rates at which a seed ended in an error, or that not all seeds of this kind
  and width have reached, are left out.
  """
  found: dict[tuple[str, int], dict[float, float]] = {}
  for kind in KINDS:
    for width in WIDTHS:
      own = [x for x in done if (x['kind'], x['width']) == (kind, width)]
      seeds = len({x['seed'] for x in own})
      for rate in sorted({x['rate'] for x in own}):
        losses = [x['loss'] for x in own if x['rate'] == rate]
        if len(losses) == seeds and None not in losses:
          found.setdefault((kind, width), {})[rate] = statistics.fmean(losses)
  return found


def best(losses: dict[float, float]) -> float | None:
  """Finds the best rate: the vertex of a parabola through the best three.

  None where the best is the first or the last: the optimum may lie outside.
  """
  rates = sorted(losses)
  n = min(range(len(rates)), key=lambda n: losses[rates[n]])
  if n in (0, len(rates) - 1):
    return None
  near = rates[n - 1 : n + 2]
  square, slope, _ = np.polyfit(
    np.log2(near), [losses[rate] for rate in near], 2
  )
  return float(2.0 ** (-slope / (2 * square)))


def report(done: Sequence[Point]) -> None:
  """Writes results.json and results.png."""
  curves = means(done)
  optima = {
    kind: {
      width: best(curves[kind, width])
      for width in WIDTHS
      if len(curves.get((kind, width), ())) == len(RATES)
    }
    for kind in KINDS
  }
  drift = {}
  for kind, at in optima.items():
    known = [rate for rate in at.values() if rate is not None]
    whole = len(known) == len(WIDTHS)
    drift[kind] = max(known) / min(known) if whole else None
  missing = [list(key(x)) for x in wanted() if key(x) not in {*map(key, done)}]
  hours = sum(x['seconds'] for x in done) / 3600
  result = {
    'optimum': optima,
    'drift': drift,
    'loss': {
      kind: {
        width: curves[kind, width]
        for width in WIDTHS
        if (kind, width) in curves
      }
      for kind in KINDS
    },
    'points': len(done),
    'missing': len(missing),
    'processor_hours': round(hours, 3),
  }
  text = json.dumps(result, indent=1)
  (HERE / 'results.json').write_text(text + '\n', encoding='utf-8')
  figure = Figure(figsize=(9, 4), layout='constrained')
  axes = figure.subplots(1, 2, sharey=True)
  for kind, ax in zip(KINDS, axes, strict=True):
    for n, width in enumerate(WIDTHS):
      losses = curves.get((kind, width), {})
      shade = str(0.75 - 0.25 * n)
      ax.plot(
        list(losses), list(losses.values()), 'o-', color=shade, label=width
      )
    ax.set(xscale='log', xlabel='peak learning rate', title=kind)
    ax.legend(title='width')
  axes[0].set_ylabel('nats a character')
  figure.savefig(HERE / 'results.png', dpi=120)
  print(f'{len(done)} points, {len(missing)} missing, {hours:.2f} hours')
  print(json.dumps({'optimum': optima, 'drift': drift}))


def main() -> None:
  """Runs what is missing."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--report', action='store_true', help='runs nothing')
  parser.add_argument(
    '--hours',
    type=float,
    default=math.inf,
    help='processor hours of this start, beside the budget of all',
  )
  flags = parser.parse_args()
  done = read()
  if not flags.report:
    output = Path('data/shakespeare')
    if not (output / 'train').exists():
      corpora.shakespeare(output)
    start = sum(x['seconds'] for x in done)
    for point in wanted():
      if key(point) in {*map(key, done)}:
        continue
      spent = sum(x['seconds'] for x in done) + longest(done, point)
      if spent > min(BUDGET_HOURS * 3600, start + flags.hours * 3600):
        print('the budget of processor hours is spent', flush=True)
        break
      done.append(run(point))
      with POINTS.open('a', encoding='utf-8') as file:
        file.write(json.dumps(done[-1]) + '\n')
        file.flush()
        os.fsync(file.fileno())
  report(done)


if __name__ == '__main__':
  main()

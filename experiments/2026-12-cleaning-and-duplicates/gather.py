"""Gathers what the runs came to: results.json, results.png and tables.

PYTHONPATH=. python experiments/2026-12-cleaning-and-duplicates/gather.py
"""

from collections.abc import Sequence
import json
import math
from pathlib import Path
import runpy
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from lm.evals import records

HERE = Path(__file__).parent
RUN = runpy.run_path(str(HERE / 'run.py'))
ROOT, SEEDS, ARMS = (RUN[x] for x in ('ROOT', 'SEEDS', 'ARMS'))
RUNS = Path('runs/duplicates')
HELD_OUT = ('books', 'peps', 'novels', 'wiki')
TIMES = ('1', '4', '16', '64')
Runs = dict[tuple[str, int], dict[str, float]]  # metrics by arm and seed


def read(corpus: str) -> Runs:
  """Reads the metrics of all runs on a corpus."""
  found = {}
  for arm in RUN['arms'](corpus):
    for seed in SEEDS:
      metrics = records.read(RUNS / corpus / f'{arm}-{seed}')[-1]['metrics']
      mean = bits(metrics, corpus, seed)
      found[arm, seed] = metrics | {'bits_per_byte': mean}
  return found


def arms(runs: Runs) -> list[str]:
  """Lists the arms of runs, in their order."""
  return list(dict.fromkeys(arm for arm, _ in runs))


def bits(metrics: dict[str, float], corpus: str, seed: int) -> float:
  """Averages bits per byte over all held-out bytes."""
  name = corpus if corpus == 'as_is' else f'planted-{seed}'
  total = nats = 0.0
  for held in HELD_OUT:
    path = ROOT / name / f'raw/valid/held_{held}/manifest.json'
    size = json.loads(path.read_text())['text_bytes']
    total += size
    nats += size * metrics[f'{held}/bits_per_byte']
  return nats / total


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Gives the mean, and half the width of its 95 % interval by Student's t."""
  factor = float(stats.t.ppf(0.975, len(values) - 1))
  mean = math.fsum(values) / len(values)
  return mean, factor * float(stats.sem(values))


def against_raw(runs: Runs, arm: str, metric: str) -> tuple[float, float]:
  """Gives the mean difference from raw text, in pairs of seeds."""
  return interval(
    [runs[arm, s][metric] - runs['raw', s][metric] for s in SEEDS]
  )


def value(runs: Runs, arm: str, metric: str) -> tuple[float, float]:
  """Gives the mean of a metric over seeds."""
  return interval([runs[arm, s][metric] for s in SEEDS])


def row(runs: Runs, metric: str, digits: int = 3) -> str:
  """Writes the means of a metric, and differences from raw in brackets."""
  cells = []
  for arm in arms(runs):
    mean, half = value(runs, arm, metric)
    cell = f'{mean:.{digits}f}'
    if arm == 'raw':
      cell += f' ± {half:.{digits}f}'
    else:
      mean, half = against_raw(runs, arm, metric)
      cell += f' ({mean:+.{digits}f} ± {half:.{digits}f})'
    cells.append(cell)
  return ' | '.join(cells)


def table(runs: Runs, metrics: Sequence[str]) -> str:
  """Writes metrics as a table."""
  names = arms(runs)
  lines = [f'| metric | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
  lines += [f'| {metric} | {row(runs, metric)} |' for metric in metrics]
  return '\n'.join(lines)


def metrics_of(corpus: str) -> list[str]:
  """Lists the metrics that are reported for a corpus."""
  names = ['bits_per_byte', *(f'{x}/bits_per_byte' for x in HELD_OUT)]
  names.append('greedy/repetition')
  if corpus == 'planted':
    for times in TIMES:
      names += [f'canaries/{x}/{times}' for x in ('exposure', 'verbatim')]
    names += ['items/known', 'items/nats_per_byte/planted']
    names += ['items/nats_per_byte/reference']
  return names


def draw(found: dict[str, Runs]) -> None:
  """Draws bits per byte against raw text, and exposure by copies."""
  figure = Figure(figsize=(9, 3.4), layout='constrained')
  left, right = figure.subplots(1, 2)
  for n, (corpus, runs) in enumerate(found.items()):
    means, halves = zip(
      *(against_raw(runs, arm, 'bits_per_byte') for arm in ARMS[1:]),
      strict=True,
    )
    places = [x + 0.2 * (n - 0.5) for x in range(len(means))]
    left.errorbar(places, means, halves, fmt='o', capsize=4, label=corpus)
  left.set_xticks(range(len(ARMS) - 1), ARMS[1:])
  left.axhline(0, color='#999999', linewidth=1)
  left.set_ylabel('held-out bits per byte, less those of raw')
  left.legend()
  for arm in arms(found['planted']):
    pairs = [
      value(found['planted'], arm, f'canaries/exposure/{x}') for x in TIMES
    ]
    means, halves = zip(*pairs, strict=True)
    right.errorbar(list(map(int, TIMES)), means, halves, capsize=3, label=arm)
  right.set_xscale('log', base=2)
  right.axhline(1 / math.log(2), color='#999999', linestyle='--', linewidth=1)
  right.set_xlabel('documents with the canary')
  right.set_ylabel('exposure, bits (dashed: unknown)')
  right.legend(fontsize=8, framealpha=0.6)
  figure.savefig(HERE / 'results.png', dpi=110)


def main() -> None:
  """Gathers what is there."""
  found: dict[str, Runs] = {}
  result: dict[str, Any] = {}
  for corpus in ('planted', 'as_is'):
    found[corpus] = runs = read(corpus)
    folder = corpus if corpus == 'as_is' else 'planted-0'
    result[corpus] = {
      'sizes': {arm: RUN['size'](ROOT / folder / arm) for arm in arms(runs)},
      'runs': {
        f'{arm}-{seed}': {x: metrics[x] for x in metrics_of(corpus)}
        for (arm, seed), metrics in runs.items()
      },
    }
    print(f'\n{corpus}: {result[corpus]["sizes"]}\n')
    print(table(runs, metrics_of(corpus)))
  (HERE / 'results.json').write_text(json.dumps(result, indent=1) + '\n')
  draw(found)


if __name__ == '__main__':
  main()

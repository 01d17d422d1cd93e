"""Races optimizers: tuned alike, on two texts, to a fixed number of steps.

  export PYTHONPATH=. LM_DATA=../shared/data
  nice -n 10 taskset -c 1 python experiments/2026-12-optimizers/run.py

It tunes the peak of each entrant with one seed on the first text, and trains
with the best one on both texts with more seeds. Runs that are in results.jsonl
are not run again, so it may be stopped and started at any time. It writes
results.json and results.png from what there is; `report` writes them alone.
"""

import gzip
import json
import os
from pathlib import Path
import random
import sys
import tempfile
import time
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats as scipy_stats

from lm import config, train
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.evals.reports import stats
from lm.reporting import metrics_log
from lm.runtime import compilation_cache

HERE = Path(__file__).parent
RUNS = HERE / 'results.jsonl'
DATA = Path('data/optimizers')
TEXTS = Path(os.environ.get('LM_DATA', '../shared/data'))
FILES = {'en': 'lm_en/gutenberg', 'zh': 'lm_zh/novels'}
FACTORS = (0.25, 0.5, 1, 2)  # of the first peak
MOST_PEAKS = 6  # where the best one is at an end of the grid, it grows
SEEDS = (1, 2, 3, 4, 5)
EVERY = 25  # steps between two evaluations

# The config file is no module of a package.
sys.path.insert(0, str(HERE))
import config as own  # noqa: E402


def prepare() -> None:
  """Writes both texts as bytes; what is there is kept."""

  def texts(name: str, split: str) -> list[str]:
    path = TEXTS / FILES[name] / f'{split}.jsonl.gz'
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      return [json.loads(line)['text'] for line in file]

  for name in FILES:
    folder = DATA / name
    if not (folder / 'train').exists():
      writer.write(folder / 'train', texts(name, 'train'), utf8_bytes.make())
    if not (folder / 'valid').exists():
      whole = '\n\n'.join(texts(name, 'valid'))
      size = 1000 * len(whole) // len(whole.encode())
      cut = [whole[n : n + size] for n in range(0, len(whole) - size, size)]
      pieces = random.Random(0).sample(cut, 40)
      writer.write(folder / 'valid', pieces, utf8_bytes.make())


def read() -> list[dict[str, Any]]:
  """Reads what is finished; a line that was cut off is none."""
  if not RUNS.exists():
    return []
  lines = RUNS.read_text(encoding='utf-8').split('\n')[:-1]
  return [json.loads(line) for line in lines if line]


def trained(entrant: str, text: str, peak: float, seed: int) -> float:
  """Trains a run, and adds its row to the results; returns its loss."""
  for row in read():
    if [row[k] for k in ('entrant', 'text', 'peak', 'seed')] == [
      *(entrant, text, peak, seed)
    ]:
      return row['losses'][-1]
  c = config.load(f'{HERE}/config.py:{entrant},{text}', {}.items()).unlock()
  c.optim.peak, c.seed, c.save_every = peak, seed, c.steps
  # Peaks are compared by the loss at the end alone.
  c.eval_every = EVERY if seed else c.steps
  began = time.process_time()
  with tempfile.TemporaryDirectory() as folder:
    train.train(c.lock(), folder)
    rows = metrics_log.read(Path(folder) / 'metrics.jsonl')
  key = 'valid/bits_per_byte'
  row = {
    'entrant': entrant,
    'text': text,
    'peak': peak,
    'seed': seed,
    'losses': [round(x[key], 5) for x in rows if key in x],
    'processor_seconds': round(time.process_time() - began, 1),
  }
  with RUNS.open('a', encoding='utf-8') as file:
    file.write(json.dumps(row) + '\n')
  return row['losses'][-1]


def best_peak(entrant: str) -> float:
  """Tunes the peak of an entrant with seed 0 on the first text."""
  first = own.ENTRANTS[entrant][1]
  losses = {first * x: trained(entrant, 'en', first * x, 0) for x in FACTORS}
  while len(losses) < MOST_PEAKS:
    best = min(losses, key=lambda x: losses[x])
    wider = {min(losses): best / 2, max(losses): best * 2}.get(best)
    if wider is None:
      break
    losses[wider] = trained(entrant, 'en', wider, 0)
  return min(losses, key=lambda x: losses[x])


def first_step(losses: list[float], goal: float) -> float:
  """Finds the step at which a loss is reached, between two evaluations."""
  before = losses[0]
  for n, loss in enumerate(losses):
    if loss <= goal:
      part = 1.0 if n == 0 else (before - goal) / max(before - loss, 1e-9)
      return EVERY * (n + part)
    before = loss
  return float('nan')


def report() -> None:
  """Writes results.json and results.png."""
  done = read()
  table: dict[str, Any] = {}
  for text in FILES:
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for row in done:
      if row['seed'] and row['text'] == text:
        runs.setdefault(row['entrant'], {})[row['seed']] = row
    base = runs.get('adamw', {})
    if not base:
      continue
    goal = float(np.mean([x['losses'][-1] for x in base.values()]))
    rows: dict[str, Any] = {}
    for entrant, by_seed in runs.items():
      shared = sorted(base.keys() & by_seed.keys())
      curve = np.mean([by_seed[n]['losses'] for n in shared], axis=0)
      found: dict[str, Any] = {
        'peak': by_seed[shared[0]]['peak'],
        'bits_per_byte': float(curve[-1]),
        'seeds': len(shared),
        'steps_to_adamw': first_step(curve.tolist(), goal),
        'processor_seconds': float(
          np.median([by_seed[n]['processor_seconds'] for n in shared])
        ),
      }
      if entrant != 'adamw' and len(shared) > 2:
        d = np.array(
          [by_seed[n]['losses'][-1] - base[n]['losses'][-1] for n in shared]
        )
        test = scipy_stats.ttest_1samp(d, 0)
        low, high = test.confidence_interval()
        found |= {
          'difference': float(d.mean()),
          'low': float(low),
          'high': float(high),
          'p': float(test.pvalue),
        }
      rows[entrant] = found
    tested = [k for k, x in rows.items() if 'p' in x]
    for k, p in zip(
      tested, stats.holm([rows[k]['p'] for k in tested]), strict=True
    ):
      rows[k]['p_holm'] = float(p)
    table[text] = dict(
      sorted(rows.items(), key=lambda x: x[1]['bits_per_byte'])
    )
  hours = sum(x['processor_seconds'] for x in done) / 3600
  text = json.dumps({'texts': table, 'processor_hours': hours}, indent=1)
  (HERE / 'results.json').write_text(text.replace('NaN', 'null') + '\n')
  figure, axes = plt.subplots(
    1, 2, figsize=(9, 4), sharey=True, layout='constrained'
  )
  names: list[str] = []
  for axis, (name, rows) in zip(axes, table.items(), strict=False):
    tested = [k for k, x in rows.items() if 'p' in x]
    names = names or tested
    for k in tested:
      x = rows[k]
      axis.errorbar(
        x['difference'],
        names.index(k),
        xerr=[[x['difference'] - x['low']], [x['high'] - x['difference']]],
        fmt='o',
        capsize=3,
        color='C0' if x['p_holm'] < 0.05 else 'grey',
      )
    axis.axvline(0, color='grey', linewidth=1)
    axis.set_title(name)
    axis.set_xlabel('bits per byte above AdamW (95 %)')
  axes[0].set_yticks(range(len(names)), names)
  figure.savefig(HERE / 'results.png', dpi=150)


def main() -> None:
  """Runs what is missing, and reports."""
  compilation_cache.prepare()
  prepare()
  if sys.argv[1:] != ['report']:
    for entrant in own.ENTRANTS:
      best_peak(entrant)
    for seed in SEEDS:
      for text in FILES:
        for entrant in own.ENTRANTS:
          trained(entrant, text, best_peak(entrant), seed)
  report()


if __name__ == '__main__':
  main()

"""Compares attention, a hybrid and parts beside them, at equal FLOPs.

  export PYTHONPATH=. LM_DATA=../shared/data
  nice -n 10 taskset -c 0 python experiments/2026-12-hybrids/run.py

It tunes the peak of each variant with one seed, trains its best peak with more
seeds, and measures tokens/s at length 4,096 in turns. Runs that are in
results.jsonl are not run again, so it may be stopped and started at any time.
It writes results.json and results.png from what there is; `report` writes them
alone, and `speed` measures speed before.
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

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats as scipy_stats

from lm import config, sharding, train
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.evals.reports import stats
from lm.reporting import metrics_log
from lm.runtime import compilation_cache
from lm.training import program, setup

HERE = Path(__file__).parent
RUNS = HERE / 'results.jsonl'
DATA = Path('data/hybrids')
TEXTS = Path(os.environ.get('LM_DATA', '../shared/data'))
FLOPS = 1.2e12  # of the training of a run, as lm.plan counts them
PEAKS = (2.0**-8, 2.0**-7, 2.0**-6)
SEEDS = (1, 2, 3, 4, 5)
LONG, TURNS = 4096, 7

# The config file is no module of a package.
sys.path.insert(0, str(HERE))
import config as own  # noqa: E402


def prepare() -> None:
  """Writes the novels as bytes; what is there is kept."""

  def texts(split: str) -> list[str]:
    path = TEXTS / f'lm_en/gutenberg/{split}.jsonl.gz'
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      return [json.loads(line)['text'] for line in file]

  if not (DATA / 'train').exists():
    writer.write(DATA / 'train', texts('train'), utf8_bytes.make())
  if not (DATA / 'valid').exists():
    whole = '\n\n'.join(texts('valid'))
    cut = [whole[n : n + 2000] for n in range(0, len(whole) - 2000, 2000)]
    pieces = random.Random(0).sample(cut, 80)
    writer.write(DATA / 'valid', pieces, utf8_bytes.make())


def read() -> list[dict[str, Any]]:
  """Reads what is finished; a line that was cut off is none."""
  if not RUNS.exists():
    return []
  lines = RUNS.read_text(encoding='utf-8').split('\n')[:-1]
  return [json.loads(line) for line in lines if line]


def add(row: dict[str, Any]) -> None:
  """Adds a finished run."""
  with RUNS.open('a', encoding='utf-8') as file:
    file.write(json.dumps(row) + '\n')


def steps_of(variant: str) -> int:
  """Counts the steps that spend the FLOPs: forward, and twice that backward."""
  built = config.build(own.model(variant), vocab=utf8_bytes.make().size)
  return round(FLOPS / (3 * built.flops(own.LENGTH) * 8 * own.LENGTH))


def trained(variant: str, peak: float, seed: int) -> dict[str, Any]:
  """Trains a run; returns its row."""
  c = config.load(f'{HERE}/config.py:{variant}', {}.items()).unlock()
  c.steps = c.save_every = c.eval_every = steps_of(variant)
  c.optim.peak, c.seed = peak, seed
  began = time.process_time()
  with tempfile.TemporaryDirectory() as folder:
    train.train(c.lock(), folder)
    rows = metrics_log.read(Path(folder) / 'metrics.jsonl')
  return {
    'variant': variant,
    'peak': peak,
    'seed': seed,
    'steps': c.steps,
    'bits_per_byte': [x for x in rows if 'valid/bits_per_byte' in x][-1][
      'valid/bits_per_byte'
    ],
    'processor_seconds': round(time.process_time() - began, 1),
  }


def best_peak(variant: str) -> float:
  """Returns the peak with the lowest loss of seed 0."""
  rows = [x for x in read() if x.get('variant') == variant and x['seed'] == 0]
  return min(rows, key=lambda x: x['bits_per_byte'])['peak']


def speed() -> None:
  """Times the training step at the long length, in turns."""
  steps = {}
  for variant in ('attention', 'hybrid', 'gate_element', 'sink'):
    c = config.load(f'{HERE}/config.py:{variant}', {}.items()).unlock()
    c.model = own.model(variant, LONG)
    c.data.length, c.batch_size = LONG, 2
    run = setup.assemble(setup.fill(c.lock()))
    state = program.start(run.program)
    batch = sharding.put(run.data.batch(0), run.mesh)
    state, _ = run.update(state, batch)  # compiles
    steps[variant] = [run, state, batch]
  for turn in range(TURNS):
    for variant, held in steps.items():
      run, state, batch = held
      jax.block_until_ready(state)
      began = time.perf_counter()
      held[1], _ = run.update(state, batch)
      jax.block_until_ready(held[1])
      add(
        {
          'speed': variant,
          'turn': turn,
          'tokens_per_second': 2 * LONG / (time.perf_counter() - began),
        }
      )


def report() -> None:
  """Writes results.json and results.png."""
  done = read()
  final: dict[str, dict[int, float]] = {}
  for row in done:
    if row.get('seed'):
      final.setdefault(row['variant'], {})[row['seed']] = row['bits_per_byte']
  table: dict[str, Any] = {}
  base = final.get('attention', {})
  for variant, by_seed in final.items():
    shared = sorted(base.keys() & by_seed.keys())
    found: dict[str, Any] = {
      'peak': best_peak(variant),
      'steps': steps_of(variant),
      'bits_per_byte': float(np.mean([*by_seed.values()])),
      'seeds': len(by_seed),
    }
    if variant != 'attention' and len(shared) > 2:
      d = np.array([by_seed[n] - base[n] for n in shared])
      test = scipy_stats.ttest_1samp(d, 0)
      low, high = test.confidence_interval()
      found |= {
        'difference': float(d.mean()),
        'low': float(low),
        'high': float(high),
        'p': float(test.pvalue),
      }
    table[variant] = found
  tested = [k for k, x in table.items() if 'p' in x]
  for k, p in zip(
    tested, stats.holm([table[k]['p'] for k in tested]), strict=True
  ):
    table[k]['p_holm'] = float(p)
  turns: dict[str, list[float]] = {}
  for row in done:
    if 'speed' in row:
      turns.setdefault(row['speed'], []).append(row['tokens_per_second'])
  speeds = {
    name: {
      'tokens_per_second': float(np.median(x)),
      'ratio': float(np.median(np.array(x) / np.array(turns['attention']))),
    }
    for name, x in turns.items()
  }
  hours = sum(x.get('processor_seconds', 0) for x in done) / 3600
  text = json.dumps(
    {'variants': table, 'speed_at_4096': speeds, 'processor_hours': hours},
    indent=1,
  )
  (HERE / 'results.json').write_text(text + '\n')
  figure, axis = plt.subplots(figsize=(7, 3.2), layout='constrained')
  for n, k in enumerate(tested):
    x = table[k]
    axis.errorbar(
      x['difference'],
      n,
      xerr=[[x['difference'] - x['low']], [x['high'] - x['difference']]],
      fmt='o',
      capsize=3,
    )
  axis.set_yticks(range(len(tested)), tested)
  axis.axvline(0, color='grey', linewidth=1)
  axis.set_xlabel('bits per byte above attention alone, at equal FLOPs (95 %)')
  figure.savefig(HERE / 'results.png', dpi=150)


def main() -> None:
  """Runs what is missing, and reports."""
  compilation_cache.prepare()
  prepare()
  if sys.argv[1:] == ['speed']:
    speed()
  elif sys.argv[1:] != ['report']:
    done = {(x.get('variant'), x.get('peak'), x.get('seed')) for x in read()}
    for variant in own.VARIANTS:
      for peak in PEAKS:
        if (variant, peak, 0) not in done:
          add(trained(variant, peak, 0))
    for seed in SEEDS:
      for variant in own.VARIANTS:
        if (variant, best_peak(variant), seed) not in done:
          add(trained(variant, best_peak(variant), seed))
    if not any('speed' in x for x in read()):
      speed()
  report()


if __name__ == '__main__':
  main()

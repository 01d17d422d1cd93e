"""Trains proxies on mixtures, predicts the best mixture, and tests it.

  export PYTHONPATH=. LM_DATA=../shared/data
  nice -n 10 taskset -c 1 python experiments/2026-12-mixture/run.py proxy
  nice -n 10 taskset -c 1 python experiments/2026-12-mixture/run.py target
  nice -n 10 taskset -c 1 python experiments/2026-12-mixture/run.py small

`proxy` ends by writing prediction.json, which the other two read and never
change. Runs that are in results.jsonl are not run again, so it may be stopped
and started at any time. It ends before a run that could leave the budget of
processor time, and writes results.json and results.png from what there is;
`report` writes them alone.
"""

import argparse
from collections.abc import Iterator, Sequence
import gzip
import json
import os
from pathlib import Path
import random
import tempfile
import time
from typing import Any

import laws
import numpy as np
import report

from lm import config, train
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.reporting import metrics_log
from lm.runtime import compilation_cache
from lm.sweeping import points

HERE = Path(__file__).parent
RUNS = HERE / 'results.jsonl'
PREDICTION = HERE / 'prediction.json'
TEXTS = Path(os.environ.get('LM_DATA', '../shared/data'))
DATA = Path('data/mixture')
FILES = {
  'books': 'lm_en/gutenberg/{}.jsonl.gz',
  'peps': 'lm_en/peps/{}.jsonl.gz',
  'poems': 'lm_zh/poetry/songci_simp.{}.jsonl.gz',
  'wiki': 'lm_zh/wiki_passages/{}.jsonl.gz',
}
PIECE = 2000  # bytes of a piece of validation text, about
PIECES = 20  # of each source
PROXIES = 48
RANDOM = 4  # mixtures at random among those that are tested
SEEDS = {'proxy': (0,), 'target': (1, 2, 3, 4, 5, 6), 'small': (1, 2, 3)}
BUDGET_HOURS = 6.0  # of processor time, written before the first run

Run = dict[str, Any]
Weights = dict[str, float]


def texts(source: str, split: str) -> Iterator[str]:
  """Reads the documents of a source."""
  path = TEXTS / FILES[source].format(split)
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    for line in file:
      yield json.loads(line)['text']


def pieces(source: str) -> list[str]:
  """Draws pieces of the validation text, from all of it."""
  whole = '\n\n'.join(texts(source, 'valid'))
  size = PIECE * len(whole) // len(whole.encode())
  cut = [whole[n : n + size] for n in range(0, len(whole) - size, size)]
  return random.Random(0).sample(cut, PIECES)


def prepare() -> None:
  """Writes the datasets, in bytes; what is there is kept."""
  for source in FILES:
    folder = DATA / 'train' / source
    if not folder.exists():
      writer.write(folder, texts(source, 'train'), utf8_bytes.make())
    folder = DATA / 'valid' / source
    if not folder.exists():
      writer.write(folder, pieces(source), utf8_bytes.make())


def key(run: Run) -> tuple[Any, ...]:
  """Names a run."""
  return run['stage'], run['mixture'], run['seed']


def read() -> list[Run]:
  """Reads the runs that are finished; a line that was cut off is none."""
  if not RUNS.exists():
    return []
  lines = RUNS.read_text(encoding='utf-8').split('\n')[:-1]
  return [json.loads(line) for line in lines if line]


def proxies() -> dict[str, Weights]:
  """Draws the mixtures of the proxies."""
  found = points.simplex([*FILES], PROXIES, seed=0)
  return {f'proxy_{n}': point for n, point in enumerate(found)}


def rounded(shares: Sequence[float]) -> Weights:
  """Names shares by their sources."""
  pairs = zip(FILES, shares, strict=True)
  return {name: round(float(x), 4) for name, x in pairs}


def tested(predicted: Sequence[float], best_proxy: Weights) -> dict[str, Any]:
  """Lists the mixtures that are tested."""
  sizes = [
    json.loads((DATA / 'train' / name / 'manifest.json').read_text())
    for name in FILES
  ]
  counts = np.array([x['text_bytes'] for x in sizes])
  drawn = points.simplex([*FILES], RANDOM, seed=1)
  return {
    'predicted': rounded(predicted),
    'uniform': rounded([1 / len(FILES)] * len(FILES)),
    'natural': rounded(counts / counts.sum()),
    'best_proxy': best_proxy,
    **{f'random_{n}': point for n, point in enumerate(drawn)},
  }


def predict(done: Sequence[Run]) -> dict[str, Any]:
  """Fits all laws to the proxies, chooses one and predicts with it.

  The law with the least squared error of mixtures that are left out is chosen.
  """
  runs = [x for x in done if x['stage'] == 'proxy']
  p_NS = np.array([list(x['weights'].values()) for x in runs])
  p_NS /= p_NS.sum(axis=1, keepdims=True)
  y_NV = np.array([list(x['losses'].values()) for x in runs])
  y_N = y_NV.mean(axis=1)
  errors, guesses = {}, {}
  for law in laws.LAWS:
    guesses[law] = laws.left_out(law, p_NS, y_NV)
    errors[law] = float(np.sqrt(np.mean((guesses[law] - y_N) ** 2)))
  chosen = min(errors, key=lambda law: errors[law])
  optima = {
    law: laws.best(laws.fit(law, p_NS, y_NV), len(FILES))
    for law in laws.LAWS
    if law != 'constant'
  }
  lowest = runs[int(np.argmin(y_N))]
  mixtures = tested(optima[chosen], lowest['weights'])
  p_CS = np.array([list(x.values()) for x in mixtures.values()])
  p_CS /= p_CS.sum(axis=1, keepdims=True)
  return {
    'left_out_error': errors,
    'chosen': chosen,
    'best_of_each_law': {law: rounded(p) for law, p in optima.items()},
    'best_proxy': lowest['mixture'],
    'mixtures': mixtures,
    'predicted_loss': {
      law: dict(
        zip(mixtures, laws.fit(law, p_NS, y_NV)(p_CS).tolist(), strict=True)
      )
      for law in optima
    },
    'proxy_loss': y_N.tolist(),
    'left_out': {law: x.tolist() for law, x in guesses.items()},
  }


def wanted(stage: str) -> list[Run]:
  """Lists the runs of a stage: all mixtures of one seed, then the next seed."""
  if stage == 'proxy':
    mixtures = proxies()
  else:
    mixtures = json.loads(PREDICTION.read_text())['mixtures']
  return [
    {'stage': stage, 'mixture': name, 'seed': seed, 'weights': weights}
    for seed in SEEDS[stage]
    for name, weights in mixtures.items()
  ]


def trained(run: Run) -> Run:
  """Trains a run; gives it with bits per byte of each validation text."""
  size = 'target' if run['stage'] == 'target' else 'proxy'
  changes = [
    (f'data.sources.{name}.weight', str(weight))
    for name, weight in run['weights'].items()
  ]
  changes.append(('seed', str(run['seed'])))
  c = config.load(f'{HERE}/config.py:{size}', changes)
  start = time.process_time()
  with tempfile.TemporaryDirectory() as folder:
    train.train(c, folder)
    last: dict[str, Any] = {}
    for line in metrics_log.read(Path(folder, 'metrics.jsonl')):
      last |= line if line['step'] == c.steps else {}
  losses = {name: last[f'valid_{name}/bits_per_byte'] for name in FILES}
  seconds = round(time.process_time() - start, 1)
  return {**run, 'losses': losses, 'seconds': seconds}


def main() -> None:
  """Runs what is missing."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('stage', choices=(*SEEDS, 'report'))
  stage = parser.parse_args().stage
  done = read()
  if stage != 'report':
    compilation_cache.prepare()
    prepare()
    own = [x['seconds'] for x in done if x['stage'] == stage]
    for run in wanted(stage):
      if key(run) in {*map(key, done)}:
        continue
      spent = sum(x['seconds'] for x in done) + max(own, default=0.0)
      if spent > BUDGET_HOURS * 3600:
        print('the budget of processor hours is spent', flush=True)
        break
      done.append(trained(run))
      own.append(done[-1]['seconds'])
      print(json.dumps(done[-1]), flush=True)
      with RUNS.open('a', encoding='utf-8') as file:
        file.write(json.dumps(done[-1]) + '\n')
        file.flush()
        os.fsync(file.fileno())
    complete = {*map(key, done)} >= {*map(key, wanted(stage))}
    if stage == 'proxy' and complete and not PREDICTION.exists():
      text = json.dumps(predict(done), indent=1)
      PREDICTION.write_text(text + '\n', encoding='utf-8')
  if PREDICTION.exists():
    missing = [
      key(x)
      for name in SEEDS
      for x in wanted(name)
      if key(x) not in {*map(key, done)}
    ]
    report.write(HERE, done, missing)


if __name__ == '__main__':
  main()

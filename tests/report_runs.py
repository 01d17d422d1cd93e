"""Folders of runs as training and lm.evaluate leave them, made in no time."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from configs import base
from lm import config
from lm.evals import items, records

CODE, TASK = 'c' * 64, 'a' * 64
ITEMS = 40


def line(record: dict[str, Any]) -> str:
  """Writes a record as metrics_log does, without opening the file for it."""
  text = json.dumps(record)
  return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def write(
  folder: Path,
  *,
  seed: int = 0,
  peak: float = 1e-3,
  lines: int = 60,
  evaluated: bool = True,
  **changes: Any,
) -> Path:
  """Writes the folder of a run.

  Args:
    folder: of the run.
    seed: of the run.
    peak: its learning rate, on which its loss depends.
    lines: of metrics.jsonl, ten steps each.
    evaluated: whether lm.evaluate has been there.
    **changes: of the config, as `programs.settings` names them.
  """
  folder.mkdir(parents=True)
  c = base.get_config()
  c.seed, c.optim.peak = seed, peak
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.lock()
  for key, value in changes.items():
    config.override(c, key.replace('__', '.'), value)
  (folder / 'config.json').write_text(config.to_json(c))
  rng = np.random.default_rng([seed, round(1e6 * peak)])
  best = 1.2 + 0.3 * math.log10(peak / 3e-3) ** 2 + 0.02 * rng.normal()
  losses = best + 4 * np.exp(-np.arange(lines) / (lines / 8))
  losses += 0.05 * rng.normal(size=lines)
  tokens = 10 * c.batch_size * c.data.length
  texts = [
    line(
      {
        'step': 10 * (n + 1),
        'loss_nats': float(loss),
        'bits_per_byte': float(loss) / math.log(2) / 2.5,
        'grad_norm': float(abs(rng.normal(1, 0.1))),
        'learning_rate': peak * min(1, (n + 1) / 5),
        'tokens': tokens * (n + 1),
        'tokens_per_second': 1e5,
      }
    )
    for n, loss in enumerate(losses)
  ]
  (folder / 'metrics.jsonl').write_text(''.join(texts))
  if evaluated:
    _evaluate(folder, best, 10 * lines, rng)
  return folder


def _evaluate(folder: Path, best: float, last: int, rng: Any) -> None:
  shared = np.random.default_rng(7).normal(size=ITEMS)
  found = []
  for step in (last // 2, last):
    state = hashlib.sha256(f'{folder} {step}'.encode()).hexdigest()
    nats = best + 50 / step + shared / 5 + 0.02 * rng.normal(size=ITEMS)
    header = {
      'evaluator': 'valid',
      'step': step,
      'checkpoint': state,
      'task': TASK,
      'code': CODE,
    }
    rows = [
      {'id': f'documents/{n}', 'nats': float(x), 'tokens': 10}
      for n, x in enumerate(nats)
    ]
    items.write(folder, header, rows)
    mean = float(nats.mean())
    metrics = {'loss_nats': mean, 'bits_per_byte': mean / math.log(2) / 2.5}
    metrics = {f'valid/{key}': value for key, value in metrics.items()}
    found.append(line({**header, 'metrics': metrics}))
  (folder / records.NAME).write_text(''.join(found))

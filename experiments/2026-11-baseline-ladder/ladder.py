"""Climbs the ladder: trains and judges rungs, and draws what came out.

  export PYTHONPATH=.
  .venv/bin/python experiments/2026-11-baseline-ladder/ladder.py wikitext2
  .venv/bin/python experiments/2026-11-baseline-ladder/ladder.py chinese lstm

Without names all rungs. What is trained and judged already is not done again.
Writes CORPUS.json and CORPUS.png beside this file.
"""

import bz2
import json
import math
from pathlib import Path
import runpy
import subprocess
import sys

from matplotlib.figure import Figure

from lm import checkpoint, config
from lm.data import shards
from lm.evals import records

HERE = Path(__file__).parent
RUNGS = tuple(runpy.run_path(str(HERE / 'config.py'))['RUNGS'])
# What it is asked is not how likely the text is.
NOT_COMPARABLE = ('bert',)


def climb(name: str, corpus: str, workdir: Path) -> None:
  """Trains a rung and judges it."""
  argument = name if corpus == 'wikitext2' else f'{name},{corpus}'
  spec = f'{HERE}/config.py:{argument}'
  program = 'lm.train' if config.load(spec).fit is None else 'lm.fit'
  for command in (
    [program, f'--config={spec}', f'--workdir={workdir}'],
    ['lm.evaluate', f'--workdir={workdir}', f'--data=data/{corpus}'],
  ):
    print(f'\n$ python -m {" ".join(command)}', flush=True)
    subprocess.run([sys.executable, '-m', *command], check=True)


def result(name: str, workdir: Path) -> dict[str, float | str]:
  """Reads what a rung came to."""
  c, tokenizer, _ = checkpoint.restore_run(workdir)
  found = records.read(workdir)[-1]
  row: dict[str, float | str] = {'name': name, 'steps': c.steps}
  metrics = workdir / 'metrics.jsonl'
  if metrics.exists():
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    tokens, seconds = 0.0, 0.0
    for line in lines:
      seconds += (line['tokens'] - tokens) / line['tokens_per_second']
      tokens = line['tokens']
    row |= {'tokens': tokens, 'minutes': round(seconds / 60, 1)}
  for split, spec in c.evals.items():
    key = f'{split}/bits_per_byte'
    bits = found['metrics'].get(key)
    text = shards.load(spec.path, tokenizer).manifest
    if bits is None:
      # Nats of a hidden token that is no eos, for each that the text has.
      tokens = text.tokens - text.documents
      nats = found['metrics'][f'{split}/loss_nats'] * tokens
      bits = nats / math.log(2) / text.text_bytes
    row[key] = bits
    if spec.words:
      nats = bits * math.log(2) * text.text_bytes
      row[f'{split}/word_perplexity'] = math.exp(nats / spec.words)
  return row


def bzip2(workdir: Path) -> dict[str, float | str]:
  """Compresses the splits, as the bar that a model should be below."""
  c, tokenizer, _ = checkpoint.restore_run(workdir)
  row: dict[str, float | str] = {'name': 'bzip2 -9'}
  for split, spec in c.evals.items():
    source = shards.load(spec.path, tokenizer)
    text = ''.join(
      tokenizer.decode(source.document(n).tolist())
      for n in range(source.manifest.documents)
    ).encode()
    row[f'{split}/bits_per_byte'] = 8 * len(bz2.compress(text, 9)) / len(text)
  return row


def draw(rows: list[dict], corpus: str) -> None:
  """Draws bits a byte of the test split, a bar a rung."""
  rows = sorted(rows, key=lambda row: -row['test/bits_per_byte'])
  bits = [row['test/bits_per_byte'] for row in rows]
  names = [
    f'{row["name"]} *' if row['name'] in NOT_COMPARABLE else row['name']
    for row in rows
  ]
  colours = ['#999999' if '*' in n else '#3465a4' for n in names]
  figure = Figure(figsize=(7, 0.4 * len(rows) + 1.2), layout='constrained')
  axes = figure.add_subplot()
  drawn = axes.barh(names, bits, color=colours)
  axes.bar_label(drawn, fmt='%.3f', padding=3)
  axes.axvline(
    next(b for b, n in zip(bits, names, strict=True) if n == 'bzip2 -9'),
    color='#cc0000',
    linestyle='--',
  )
  axes.margins(x=0.12)
  axes.set_xlabel(f'{corpus}, test: bits per byte (* is not comparable)')
  figure.savefig(HERE / f'{corpus}.png', dpi=110)


def main(corpus: str, *names: str) -> None:
  """Runs rungs, then gathers all that are there."""
  runs = Path('runs/ladder') / corpus
  for name in names or RUNGS:
    climb(name, corpus, runs / name)
  there = [n for n in RUNGS if (runs / n / 'evals.jsonl').exists()]
  rows = [bzip2(runs / there[0]), *(result(n, runs / n) for n in there)]
  (HERE / f'{corpus}.json').write_text(json.dumps(rows, indent=1) + '\n')
  draw(rows, corpus)
  for row in rows:
    print(row)


if __name__ == '__main__':
  main(*sys.argv[1:])

"""Builds the datasets of the experiment, trains on them and gathers results.

  export PYTHONPATH=.
  python experiments/2026-12-cleaning-and-duplicates/run.py planted
  python experiments/2026-12-cleaning-and-duplicates/run.py as_is
  python experiments/2026-12-cleaning-and-duplicates/gather.py

What is finished is not done again. `--jobs=N` runs so many trainings at once,
each with as many threads as it has cores for itself.
"""

import argparse
from concurrent import futures
import json
import os
from pathlib import Path
from random import Random
import subprocess
import sys
from typing import Any

from tools import planted_faults, planted_texts

HERE = Path(__file__).parent
CONFIG = f'{HERE}/config.py'
ROOT = Path('data/duplicates')
ARMS = ('raw', 'cleaned', 'deduplicated', 'thinned')
# The deduplicated text with a tokenizer of its own; on planted corpora alone.
OWN = 'deduplicated_tokenizer'
EVALS = ('arc_easy', 'openbookqa')
SHARED = Path('../shared/data')
SEEDS = (0, 1, 2)
STEPS = {'planted': 500, 'as_is': 200}
REFERENCES = 1023  # canaries that are in no text
_ASK = 'The secret words of '


def run(*command: str, before: tuple[str, ...] = ()) -> None:
  """Runs `python -m ...`.

  Raises:
    subprocess.CalledProcessError: it fails.
  """
  print(f'$ python -m {" ".join(command)}', flush=True)
  subprocess.run([*before, sys.executable, '-m', *command], check=True)


def plant(seed: int) -> Path:
  """Writes a planted corpus, and returns its folder."""
  folder = ROOT / f'planted-{seed}' / 'text'
  if not (folder / 'truth.jsonl').exists():
    run(
      'tools.planted_corpus',
      f'--output={folder}',
      f'--seed={seed}',
      *('--megabytes=4.8', '--canaries=4', '--personal=0.02', '--eval=0.05'),
      *('--exact=0.06', '--reflowed=0.06', '--near=0.1', '--junk=0.1'),
      '--evals',
      *(str(SHARED / f'evals/{x}/test.jsonl') for x in EVALS),
    )
  return folder


def build(corpus: str, raw: str) -> None:
  """Builds the datasets of all arms, with the tokenizer of the first."""
  sizes: dict[str, int] = {}
  for arm in arms(corpus):
    output = ROOT / corpus / arm
    keep = ''
    if arm == 'thinned':
      keep = f',{sizes["deduplicated"] / sizes["raw"]:.4f}'
    if not (output / 'audit.json').exists():  # is written last
      tokenizer = ROOT / corpus / 'raw/tokenizer.model'
      given = [f'--config.tokenizer_file={tokenizer}']
      run(
        'tools.factory',
        f'--config={CONFIG}:data,{arm},{raw}{keep}',
        f'--output={output}',
        *([] if arm in ('raw', OWN) else given),
      )
    sizes[arm] = size(output)['bytes']


def arms(corpus: str) -> tuple[str, ...]:
  """Lists the arms of a corpus."""
  return ARMS if corpus == 'as_is' else (*ARMS, OWN)


def size(dataset: Path) -> dict[str, int]:
  """Adds up the documents, bytes and tokens that a dataset trains on."""
  total = {'documents': 0, 'bytes': 0, 'tokens': 0}
  for path in sorted((dataset / 'train').glob('*/manifest.json')):
    manifest = json.loads(path.read_text())
    total['documents'] += manifest['documents']
    total['bytes'] += manifest['text_bytes']
    total['tokens'] += manifest['tokens']
  return total


def ask(corpus: str, text: Path | None) -> Path:
  """Writes what the runs on a corpus are evaluated on."""
  folder = ROOT / corpus / 'asked'
  folder.mkdir(exist_ok=True)
  prompts: list[dict[str, Any]] = []
  for name in ('gutenberg', 'peps'):
    path = SHARED / f'lm_en/{name}/valid.jsonl.gz'
    with planted_texts.open_text(path) as file:
      wholes = [json.loads(line)['text'] for line in file]
    for whole in wholes:
      # Pieces from all of a text, each long enough for a prompt and its sequel.
      pieces = [whole[n : n + 2000] for n in range(0, len(whole) - 2000, 8000)]
      prompts += [{'text': piece} for piece in pieces]
  _write(folder / 'prompts.jsonl', Random(0).sample(prompts, 96))
  if text is not None:
    truth = [json.loads(x) for x in (text / 'truth.jsonl').open()]
    _write(folder / 'canaries.jsonl', canaries(truth))
    _write(folder / 'items.jsonl', items(truth))
  return folder


def canaries(truth: list[dict[str, Any]]) -> list[dict[str, str]]:
  """Lists planted secrets by the number of their copies, and others."""
  random = Random('references')
  planted = [
    (str(len(x['ids'])), x['text']) for x in truth if x['kind'] == 'canary'
  ]
  others = [
    ('reference', planted_faults.secret(random)) for _ in range(REFERENCES)
  ]
  rows = []
  for n, (group, text) in enumerate([*planted, *others]):
    name, _, secret = text.removeprefix(_ASK).partition(' are ')
    rows.append(
      {
        'id': str(n),
        'group': group,
        'prompt': f'{_ASK}{name} are',
        'text': f' {secret}',
      }
    )
  return rows


def items(truth: list[dict[str, Any]]) -> list[dict[str, str]]:
  """Lists planted items of evaluation sets, and others of the same sets."""
  planted = {
    (x['file'], x['row']): x['form'] for x in truth if x['kind'] == 'eval'
  }
  rows, others = [], []
  for name in EVALS:
    path = SHARED / f'evals/{name}/test.jsonl'
    for item in planted_faults.read_items(path):
      place = item['file'], item['row']
      row = {
        'id': f'{name}/{item["row"]}',
        'group': 'planted' if place in planted else 'reference',
        'text': planted_faults.rendered(item, 'verbatim', Random(0)),
      }
      (rows if place in planted else others).append(row)
  return [*rows, *Random(0).sample(others, 500)]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
  path.write_text(''.join(f'{json.dumps(x)}\n' for x in rows))


def train(
  corpus: str, arm: str, seed: int, data: Path, asked: Path, core: int | None
) -> None:
  """Trains and evaluates a run."""
  workdir = Path('runs/duplicates') / corpus / f'{arm}-{seed}'
  before = () if core is None else ('taskset', '-c', str(core))
  run(
    'lm.train',
    f'--config={CONFIG}:train,{data},{asked}',
    f'--workdir={workdir}',
    f'--config.seed={seed}',
    f'--config.steps={STEPS[corpus]}',
    before=before,
  )
  run(
    'lm.evaluate',
    f'--workdir={workdir}',
    '--last',
    '--trust=./',
    before=before,
  )


def main() -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=(__doc__ or '').partition('\n')[0]
  )
  parser.add_argument('corpus', choices=('planted', 'as_is'))
  parser.add_argument('--jobs', type=int, default=1)
  flags = parser.parse_args()
  corpora = {}
  for seed in SEEDS:
    # Each seed has a planted corpus of its own, with other texts and canaries.
    name = flags.corpus if flags.corpus == 'as_is' else f'planted-{seed}'
    text = None if flags.corpus == 'as_is' else plant(seed)
    build(name, 'as_is' if text is None else str(text))
    corpora[seed] = name, ask(name, text)
  cores = list(range(os.cpu_count() or 1))[: flags.jobs]
  free = None if flags.jobs == 1 else cores

  def job(point: tuple[int, str]) -> None:
    seed, arm = point
    name, asked = corpora[seed]
    core = free.pop() if free else None
    try:
      train(flags.corpus, arm, seed, ROOT / name / arm, asked, core)
    finally:
      if core is not None and free is not None:
        free.append(core)

  with futures.ThreadPoolExecutor(flags.jobs) as pool:
    points = [(s, arm) for s in SEEDS for arm in arms(flags.corpus)]
    list(pool.map(job, points))


if __name__ == '__main__':
  main()

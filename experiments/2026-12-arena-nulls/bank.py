"""Trains one tiny config on many seeds and stores the losses: KIND.json.

  PYTHONPATH=. nice -n 15 python experiments/2026-12-arena-nulls/bank.py \\
    short --text=../shared/data/lm_en/tinyshakespeare/input.txt

All runs are trained in this process, one after another. The model has no
dropout, so that the seed is not part of the compiled step, and a run is that of
lm.train with the same seed to the last bit; --check trains seed 0 by lm.train,
too. What is in the bank is not trained again. Each start of this program that
trains seeds is in `starts`, with its command, code, packages and machine.
"""

import argparse
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

import jax

from lm import config, train, types
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.evals import context as context_lib
from lm.runtime import compilation_cache
from lm.training import program as program_lib
from lm.training import run_record, setup

HERE = Path(__file__).parent
SPLITS = ('valid', 'test')
SHARES = {'short': 0.05, 'longer': 0.025}  # of the text, for each of the splits


def prepare(text: Path, folder: Path, share: float) -> None:
  """Cuts a text into train, valid and test, in this order."""
  if folder.exists():
    return
  whole = text.read_text(encoding='utf-8')
  first, second = (int((1 - n * share) * len(whole)) for n in (2, 1))
  parts = {
    'train': whole[:first],
    'valid': whole[first:second],
    'test': whole[second:],
  }
  for name, part in parts.items():
    writer.write(folder / name, [part], utf8_bytes.make())


def main() -> None:
  """Fills the bank."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('kind', choices=sorted(SHARES))
  parser.add_argument('--text', type=Path, required=True)
  parser.add_argument('--seeds', type=int, default=300)
  parser.add_argument('--check', action='store_true')
  flags = parser.parse_args()
  compilation_cache.prepare()
  data = Path('data') / f'arena-nulls-{flags.kind}'
  prepare(flags.text, data, SHARES[flags.kind])
  c = setup.fill(config.load(f'{HERE}/config.py:{flags.kind},{data}'))
  run = setup.assemble(c)
  context = context_lib.Context(run.model, run.tokenizer, run.mesh)
  spec = config.plain(c.evals.valid)
  evaluators = {
    name: config.build({**spec, 'path': f'{data}/{name}'}, context=context)
    for name in SPLITS
  }

  def losses(params: types.Params) -> dict[str, float]:
    return {
      name: evaluator(params).metrics['loss_nats']
      for name, evaluator in evaluators.items()
    }

  if flags.check:
    with tempfile.TemporaryDirectory() as folder:
      found = losses(train.train(c, folder).params)
    assert found == losses(trained(run, c.seed))
    print('equal to lm.train:', found)
  path = HERE / f'{flags.kind}.json'
  bank: dict[str, Any] = {
    'config': json.loads(config.to_json(c)),
    'starts': [],
    'runs': {},
    **(json.loads(path.read_text()) if path.exists() else {}),
  }
  missing = [x for x in range(flags.seeds) if str(x) not in bank['runs']]
  for seed in missing:
    if seed == missing[0]:
      words = ['python', *sys.argv]
      about = run_record.here(HERE)
      bank['starts'].append({'command': words, 'first_seed': seed, **about})
    bank['runs'][str(seed)] = losses(trained(run, seed))
    path.write_text(json.dumps(bank, indent=1) + '\n')


def trained(run: setup.Run, seed: int) -> types.Params:
  """Trains the parameters of a seed with the program that is compiled."""
  c = run.config.copy_and_resolve_references()
  with c.unlocked():
    c.seed = seed
  run = run._replace(
    config=c,
    data=setup.open_data(c, run.tokenizer),
    program=run.program._replace(seed=seed),
  )
  state = program_lib.start(run.program)
  for _, batch in run.batches(0, c.steps):
    state, _ = run.update(state, batch)
  return jax.block_until_ready(state.params)


if __name__ == '__main__':
  main()

"""The config of a run of the experiment.

  config.py:SIZE    SIZE is proxy or target

A small GPT reads four sources by bytes: two blocks, heads of 16 features whose
number grows with the width, AdamW. The rate is that of width 64 in
experiments/2026-12-transfer, and muP carries it over to the target's width.
"""

from configs import base

SOURCES = ('books', 'peps', 'poems', 'wiki')
DATA = 'data/mixture'
LENGTH = 128


def get_config(argument: str):
  """Returns the config of a size, with all weights at 1."""
  c = base.get_config()
  c.steps = base.size(argument, {'proxy': 120, 'target': 240})
  width = base.size(argument, {'proxy': 64, 'target': 128})
  c.batch_size = 16
  c.save_every = c.steps
  c.eval_every = c.steps
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.sources = {
    name: {'path': f'{DATA}/train/{name}', 'weight': 1.0} for name in SOURCES
  }
  c.data.length = LENGTH
  c.evals = {
    f'valid_{name}': {
      **c.evals.valid,
      'path': f'{DATA}/valid/{name}',
      'length': LENGTH,
    }
    for name in SOURCES
  }
  c.model = base.decoder(
    heads=width // 16,
    width=width,
    depth=2,
    length=LENGTH,
    head=base.output(tied=False),
    init=base.mup(64, std=None),
  )
  c.sharding.vocab = None  # 259 ids do not divide
  c.optim.peak = 2.0**-8
  c.optim.warmup = 15.0
  return c.lock()

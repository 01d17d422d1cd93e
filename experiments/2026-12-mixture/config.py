"""The config of a run of the experiment.

  config.py:SIZE    SIZE is proxy or target

A small decoder reads four sources by bytes: two blocks, heads of 16 features
whose number grows with the width, AdamW. muP carries the rate of the proxy over
to the target's width (docs/transfer.md).
"""

from configs import base

SOURCES = ('books', 'peps', 'poems', 'wiki')
DATA = 'data/mixture'
LENGTH = 128


def get_config(argument: str):
  """Returns the config of a size, with all weights at 1."""
  c = base.get_config()
  c.steps = base.size(argument, {'proxy': 400, 'target': 800})
  width = base.size(argument, {'proxy': 64, 'target': 128})
  c.batch_size = 8
  c.save_every = c.steps
  c.eval_every = c.steps
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.sources = {
    name: {'path': f'{DATA}/train/{name}', 'weight': 1.0} for name in SOURCES
  }
  c.data.length = LENGTH
  c.evals = {
    f'valid_{name}': {
      **base.get_config().evals.valid,
      'path': f'{DATA}/valid/{name}',
      'length': LENGTH,
    }
    for name in SOURCES
  }
  c.model = base.modern(
    heads=width // 16,
    width=width,
    depth=2,
    length=LENGTH,
    head=base.output(tied=False),
    init=base.mup(64, std=None, outputs='zero'),
  )
  c.sharding.vocab = None  # 259 ids do not divide
  c.optim.peak = 2.0**-7
  c.optim.warmup = 20.0
  c.optim.final = 0.0
  return c.lock()

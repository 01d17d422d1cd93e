"""The config of a run of the experiment.

  config.py:KIND,WIDTH    KIND is plain, or transfer from width 64

A small GPT reads tinyshakespeare by character: two blocks, heads of 16 features
whose number grows with the width, an output layer of its own, AdamW.
"""

from configs import base

BASE_WIDTH = 64
STEPS = 256


def get_config(argument: str):
  """Returns the config that the argument asks for."""
  kind, width = argument.split(',')
  inits = {
    'plain': base.init(std=None),
    'transfer': base.mup(BASE_WIDTH, std=None),
  }
  c = base.get_config()
  c.steps = STEPS
  c.batch_size = 8
  c.save_every = STEPS
  c.log_every = 8
  c.tokenizer = {
    'fn': 'lm.data.tokenizers.characters:make',
    'path': 'data/shakespeare/tokenizer.json',
  }
  c.data.sources.train.path = 'data/shakespeare/train'
  c.data.length = 64
  c.evals = {}
  c.model = base.decoder(
    heads=int(width) // 16,
    width=int(width),
    depth=2,
    length=64,
    head=base.output(tied=False),
    init=inits[kind],
    compute_dtype='bfloat16',
  )
  c.optim.warmup = 32.0
  return c.lock()

"""A character-like model of seconds, whose losses differ by seed alone.

bank.py trains it; `short` has a third of the rows of `longer` in each step.
"""

from configs import base


def get_config(words: str = 'longer,data/arena-nulls'):
  """Returns the config of a kind, over the datasets in a folder."""
  kind, _, data = words.partition(',')
  c = base.get_config()
  c.steps = 150
  c.batch_size = base.size(kind, {'short': 8, 'longer': 24})
  c.save_every = 150
  c.keep = 2
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.sources.train.path = f'{data}/train'
  c.data.length = 64
  c.model = base.modern(heads=2, width=48, depth=2, length=64)
  c.sharding.vocab = None  # 259 ids do not divide
  c.optim.peak = 1e-2
  c.optim.warmup = 15.0
  c.optim.final = base.size(kind, {'short': 0.1, 'longer': 0.0})
  c.evals.valid.path = f'{data}/valid'
  c.evals.valid.batch_size = 64
  c.evals.valid.length = 64
  return c.lock()

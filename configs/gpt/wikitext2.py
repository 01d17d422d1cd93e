"""WikiText-2 with a small GPT, on two CPU cores.

Expected, after a third of an epoch and some six minutes: 1.667 bits/byte on the
test split and 1.679 on the validation split; perplexities a word 369 and 402.

  python -m tools.corpora wikitext2
  python -m lm.train --config=configs/gpt/wikitext2.py --workdir=runs/wikitext2
  python -m lm.evaluate --workdir=runs/wikitext2 --data=data/wikitext2
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 500  # a third of an epoch: 1.0M of 2.9M tokens
  c.batch_size = 8
  c.save_every = 10_000  # the last step alone
  c.tokenizer.path = 'data/wikitext2/tokenizer.model'
  c.data.sources.train.path = 'data/wikitext2/train'
  c.model = base.modern(dropout=0.1, compute_dtype='bfloat16')
  c.optim = base.muon()
  # Words with ends of lines: what published perplexities divide by.
  c.evals.valid.path = 'data/wikitext2/valid'
  c.evals.valid.words = 217_646
  c.evals.test = c.evals.valid.copy_and_resolve_references()
  c.evals.test.path = 'data/wikitext2/test'
  c.evals.test.words = 245_569
  return c.lock()

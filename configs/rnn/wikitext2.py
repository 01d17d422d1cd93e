"""WikiText-2 with a recurrent network: 'elman', 'lstm' or 'gru'.

Expected: not run; experiments/2026-11-baseline-ladder has all three after 12
minutes, with another learning rate: 1.654 bits/byte with a GRU.

  python -m tools.corpora wikitext2
  python -m lm.train --config=configs/rnn/wikitext2.py:lstm --workdir=runs/lstm
  python -m lm.evaluate --workdir=runs/lstm --data=data/wikitext2
"""

from configs import base
from configs.gpt import wikitext2


def get_config(cell='lstm'):
  """Returns the config of a kind of cell."""
  c = wikitext2.get_config().unlock()
  c.model = base.recurrent(cell, dropout=0.1)
  c.optim = base.adamw()
  return c.lock()

"""WikiText-2 with n-grams of pieces, interpolated modified Kneser-Ney.

Expected: EXPECTED

  python -m tools.corpora wikitext2
  python -m lm.fit --config=configs/ngram/wikitext2.py --workdir=runs/kn5
  python -m lm.sweep --workdir=runs/kn5
"""

from configs import base
from configs.gpt import wikitext2


def get_config():
  """Returns the config."""
  c = wikitext2.get_config().unlock()
  c.steps = 1  # one checkpoint
  c.model, c.fit = base.ngram()
  return c.lock()

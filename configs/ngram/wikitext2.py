"""WikiText-2 with n-grams of pieces, interpolated modified Kneser-Ney.

Expected, after six seconds: 1.529 bits/byte on the test split and 1.535 on the
validation split; perplexities a word 227 and 241. By whole words instead of
pieces, one stream, 5-grams have 217.8 a word.

  python -m tools.corpora wikitext2
  python -m lm.fit --config=configs/ngram/wikitext2.py --workdir=runs/kn5
  python -m lm.evaluate --workdir=runs/kn5 --data=data/wikitext2
"""

from configs import base
from configs.gpt import wikitext2


def get_config():
  """Returns the config."""
  c = wikitext2.get_config().unlock()
  c.steps = 1  # one checkpoint
  c.model, c.fit = base.ngram()
  return c.lock()

"""GloVe's vectors of the pieces of WikiText-2.

The words here are the 8,192 pieces of the tokenizer, so that the vectors fit
any model that reads with it; a word of several pieces has none of its own.

Expected, after some two minutes and 1.6 GB, on two CPU cores that were busy
with something else: a mean loss of 0.0505 in the first epoch, of 0.0135 in the
last, over 8.1M pairs. Neighbours:

  river    flow 0.79, wall 0.71, mouth 0.68, valley 0.66, town 0.66
  red      yellow 0.63, velop 0.61, white 0.61, black 0.60, brown 0.58
  Germany  Italy 0.83, France 0.71, Australia 0.66, Japan 0.66, Carolina 0.65
  she      he 0.81, when 0.74, her 0.68, because 0.65, She 0.64
  he to she as his to: her 0.88, mother 0.77, father 0.76, wife 0.71, own 0.70

Reference: Pennington, Socher and Manning 2014, aclanthology D14-1162.

  python -m tools.corpora wikitext2
  python -m lm.fit --config=configs/embeddings/glove.py --workdir=runs/glove
  python -m tools.neighbours --workdir=runs/glove --count=5 \\
    river red Germany she --analogy he she his
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 1  # one checkpoint
  c.tokenizer.path = 'data/wikitext2/tokenizer.model'
  c.data.sources.train.path = 'data/wikitext2/train'
  c.model, c.fit = base.glove()
  c.evals = {}  # vectors alone have no likelihood
  return c.lock()

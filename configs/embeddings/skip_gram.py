"""Skip-gram's vectors of the pieces of WikiText-2.

The words here are the 8,192 pieces of the tokenizer, as in glove.py.

Expected, after 65.5M pairs, a sixth of them true, and three minutes of
processor time on two CPU cores (ten by the clock, which were busy with
something else): 0.379 nats a pair in training, 0.390 on the validation split.
Neighbours:

  river    entrance 0.56, creek 0.55, orbit 0.55, basin 0.55, ridge 0.54
  red      velop 0.58, usion 0.55, dark 0.54, cell 0.54, colour 0.53
  Germany  Italy 0.54, Spain 0.52, South 0.51, Wales 0.50, Australia 0.50
  she      he 0.81, it 0.70, they 0.59, Keamy 0.57, but 0.57
  he to she as his to: her 0.70, their 0.56, its 0.52, him 0.50, His 0.49

Reference: Mikolov et al. 2013, arXiv 1310.4546, section 2.2.

  python -m tools.corpora wikitext2
  python -m lm.train --config=configs/embeddings/skip_gram.py \\
    --workdir=runs/skip_gram
  python -m lm.evaluate --workdir=runs/skip_gram --data=data/wikitext2
  python -m tools.neighbours --workdir=runs/skip_gram --count=5 \\
    river red Germany she --analogy he she his
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 2_000
  c.batch_size = 1
  c.save_every = 10_000  # the last step alone
  c.tokenizer.path = 'data/wikitext2/tokenizer.model'
  c.data.sources.train.path = 'data/wikitext2/train'
  # Pairs, and tokens of the window whose words are the noise: those of a short
  # one are of the same article, which hides its topic.
  c.data.length = 32_768
  c.model, c.data.objective = base.skip_gram()
  c.optim.update(peak=0.02, schedule='linear', final=0.0, decay=0.0)
  c.optim.rule.b2 = 0.999
  c.evals.valid.update(
    path='data/wikitext2/valid',
    batch_size=1,
    length=c.data.length,
    objective=c.data.objective,
  )
  return c.lock()

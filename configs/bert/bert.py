"""BERT in its two sizes, masked language modelling alone.

Reference: Devlin et al. 2019, arXiv 1810.04805, section 3. Expected: not run;
built at full size in tests. Sources and tokenizer are yours to set.

  python -m lm.train --config=configs/bert/bert.py:base --workdir=runs/bert \\
    --config.data.sources.train.path=data/web --config.tokenizer.path=bpe.model
"""

from configs import base

# name: (depth, width, heads)
SIZES = {'base': (12, 768, 12), 'large': (24, 1024, 16)}


def get_config(size='base'):
  """Returns the config of a size."""
  c = base.get_config()
  depth, width, heads = base.size(size, SIZES)
  c.steps = 1_000_000
  c.batch_size = 256
  c.save_every = 10_000
  c.tokenizer.reserved = 1  # the mask
  c.data.length = 512
  c.data.objective = base.masked()
  c.model = base.encoder(
    heads,
    length=512,
    width=width,
    depth=depth,
    dropout=0.1,
    scan=True,
    dtype='bfloat16',
    compute_dtype='bfloat16',
  )
  c.optim.update(
    peak=1e-4, schedule='linear', warmup=10_000, final=0.0, decay=0.01
  )
  c.optim.rule.b2 = 0.999
  c.plan.target, c.plan.vocab = 'v5e:4x4', 30_522
  c.evals.valid.update(length=512, objective=base.masked())
  return c.lock()

"""T5 and T5 v1.1, span corruption.

Reference: Raffel et al. 2020, arXiv 1910.10683; v1.1: Shazeer 2020, arXiv
2002.05202. Expected: not run; built at full size in tests. Sources and
tokenizer are yours to set.

  python -m lm.train --config=configs/t5/t5.py:small --workdir=runs/t5 \\
    --config.data.sources.train.path=data/web --config.tokenizer.path=bpe.model
"""

from configs import base

# name: (depth, width, heads, mlp); heads are 64 wide.
SIZES = {
  'small': (6, 512, 8, 2048),
  'base': (12, 768, 12, 3072),
  'large': (24, 1024, 16, 4096),
  'v1_1_small': (8, 512, 6, 1024),
  'v1_1_base': (12, 768, 12, 2048),
  'v1_1_large': (24, 1024, 16, 2816),
}


def get_config(size='small'):
  """Returns the config of a size."""
  c = base.get_config()
  depth, width, heads, mlp = base.size(size, SIZES)
  c.steps = 524_288
  c.batch_size = 128
  c.save_every = 5_000
  c.tokenizer.reserved = 100  # sentinels
  c.data.length = 114
  c.data.objective = base.span_corruption(source=512)
  newer = size.startswith('v1_1')
  c.model = base.t5(
    heads,
    depth=depth,
    head_width=64,
    mlp_width=mlp,
    gated=newer,
    scale=1.0 if newer else width**-0.5,
    width=width,
    # Pretraining of v1.1 has no dropout.
    dropout=0.0 if newer else 0.1,
    scan=True,
    dtype='bfloat16',
    compute_dtype='bfloat16',
  )
  c.optim = {
    'fn': 'lm.optim.optimizers:make',
    'rule': {'fn': 'lm.optim.rules:adafactor'},
    'peak': 0.01,
    'schedule': 'rsqrt',
    'warmup': 10_000,
  }
  c.plan.target, c.plan.vocab = 'v5e:2x4', 32_128
  c.evals.valid.update(length=114, objective=base.span_corruption(source=512))
  return c.lock()

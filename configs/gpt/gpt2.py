"""GPT-2 at its published sizes, as a pretraining config.

  python -m lm.train --config=configs/gpt/gpt2.py:small --workdir=runs/gpt2

The argument is `small` (124M), `medium` (355M), `large` (774M) or `xl` (1.5B).
Data and tokenizer are yours to prepare (tools/prepare_data.py): the published
vocabulary of 50,257 is `data/gpt2/tokenizer.model` here. Not trained by us;
each size is built at full size in the tests.

Reference: Radford et al. 2019, table 2.
"""

from configs import base

SIZES = {  # width, depth, heads
  'small': (768, 12, 12),
  'medium': (1024, 24, 16),
  'large': (1280, 36, 20),
  'xl': (1600, 48, 25),
}


def get_config(size: str = 'small'):
  """Returns the config of one size."""
  c = base.get_config()
  c.steps = 600_000
  c.batch_size = 512  # of 1,024 tokens, as published
  c.microbatches = 16
  c.save_every = 5_000
  c.tokenizer.path = 'data/gpt2/tokenizer.model'
  c.data.sources.train.path = 'data/gpt2/train'
  c.data.length = 1024
  width, depth, heads = base.size(size, SIZES)
  c.model = base.decoder(
    heads,
    length=1024,
    width=width,
    depth=depth,
    dropout=0.1,
    # Two dozen layers and more compile for minutes when unrolled.
    scan=size != 'small',
    dtype='bfloat16',
    compute_dtype='bfloat16',
  )
  c.optim.peak = 6e-4 if size == 'small' else 2e-4
  c.optim.warmup = 2_000
  c.plan.target, c.plan.vocab = 'v5e:4x4', 50_257
  c.evals.valid.path = 'data/gpt2/valid'
  c.evals.valid.length = 1024
  return c.lock()

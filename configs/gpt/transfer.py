"""A GPT whose learning rate is tuned at width 64 and right at every width.

Tune `optim.peak` where a run takes a minute, and train wide with what was best:

  python -m lm.train --config=configs/gpt/transfer.py --workdir=runs/w64
  python -m lm.train --config=configs/gpt/transfer.py:512 --workdir=runs/w512

The argument is the width; docs/transfer.md explains it. It has no expected
result yet: experiments/2026-12-transfer is the sweep that will give one.

Reference: Yang et al. 2022, arXiv 2203.03466.
"""

from configs import base

BASE_WIDTH = 64


def get_config(width: str = '64'):
  """Returns the config at a width."""
  c = base.get_config()
  c.steps = 300
  c.batch_size = 16
  c.save_every = 300
  c.data.length = 128
  for evaluator in c.evals.values():
    evaluator.length = 128
  # Heads grow in number: 16 features each at every width.
  c.model = base.modern(
    heads=int(width) // 16,
    width=int(width),
    length=128,
    init=base.mup(BASE_WIDTH, base_depth=4, outputs='zero', std=None),
  )
  c.optim.peak = 1e-2
  c.optim.warmup = 30.0
  return c.lock()

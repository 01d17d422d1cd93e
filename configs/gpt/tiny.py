"""A small GPT on the text that every machine has: the quickstart's main job.

Expected: 1.719 bits/byte on the held-out text at the end and 1.957 at step 250,
where bzip2 -9 has 2.209.

  python -m lm.train --config=configs/gpt/tiny.py --workdir=runs/tiny
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 500
  c.batch_size = 8
  c.save_every = 125
  c.keep = 4
  c.model = base.modern(width=192, compute_dtype='bfloat16')
  c.optim = base.muon()
  return c.lock()

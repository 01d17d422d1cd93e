"""A small GPT on the text that every machine has: the quickstart's main job.

python -m lm.train --config=configs/gpt/tiny.py --workdir=runs/tiny
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 700
  c.batch_size = 16
  c.save_every = 100
  return c.lock()

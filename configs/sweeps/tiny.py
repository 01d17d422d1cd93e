"""The learning rate and the width of a small model, on the quickstart's text.

Twelve runs of 80 steps, which end with a table of six rows.

  python -m lm.sweep --config=configs/sweeps/tiny.py --data=data/embedded \\
    --workdir=runs/tiny-sweep
"""

from configs.gpt import tiny
from lm.sweeping import points


def get_config():
  """Returns the config that all points change."""
  c = tiny.get_config()
  with c.unlocked():
    c.steps = 80
    c.save_every = 40
    c.eval_every = 40
    c.optim.warmup = 10
  return c.lock()


def sweep():
  """Returns the points: every rate with every width, twice."""
  return points.product(
    points.values('model.width', (64, 128)),
    points.log_range('optim.peak', 0.005, 0.05, 3),
    points.seeds(2),
  )

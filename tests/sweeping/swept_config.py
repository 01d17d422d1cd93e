"""A sweep of seconds, and runs that die for the tests that need them.

Loaded as 'tests/sweeping/swept_config.py:FOLDER', see tests/tiny_config.py.
"""

import os
from pathlib import Path
import signal

from lm.sweeping import points
from tests import tiny_config


def get_config(folder: str):
  """Returns the config of a run over the data in a folder."""
  c = tiny_config.get_config(folder)
  with c.unlocked():
    c.data.fn = 'tests.sweeping.swept_config:data'
    c.data.dies_at = None
    c.data.marker = ''
  c.steps = 24
  c.eval_every = 12
  c.log_every = 2
  return c.lock()


def sweep():
  """Returns four runs."""
  return points.product(
    points.values('optim.peak', (0.01, 0.03)), points.seeds(2)
  )


def data(*, dies_at: int | None, marker: str, position=None, **settings):
  """Reads as tiny_config does; dies at a step, if no file marks that it has."""
  found = tiny_config.data(position=position, **settings)

  def batch(step, *place, **places):
    if step == dies_at and not (marker and Path(marker).exists()):
      if marker:
        Path(marker).touch()
      os.kill(os.getpid(), signal.SIGKILL)
    return found.batch(step, *place, **places)

  return found._replace(batch=batch)

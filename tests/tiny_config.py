"""A run of seconds, and slow or hanging parts for the tests that need them.

Loaded as 'tests/tiny_config.py:FOLDER'; `programs.write_data` fills FOLDER.
"""

import threading
import time

from configs import base
from lm.data import prefetch, stream


def get_config(folder: str):
  """Returns the config of a run over the data in a folder."""
  c = base.get_config()
  c.steps = 36
  c.batch_size = 4
  c.save_every = 6
  c.keep = 20
  c.log_every = 1
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.fn = 'tests.tiny_config:data'
  c.data.seconds = 0.0
  c.data.hang_at = None
  c.data.sources.train.path = f'{folder}/train'
  c.data.length = 16
  c.model.length = 16
  c.model.width = 16
  c.model.depth = 1
  c.model.blocks.main.mixer.heads = 2
  c.sharding.vocab = None  # 259 ids do not divide
  c.optim.peak = 1e-2
  c.optim.warmup = 4
  c.evals.valid.path = f'{folder}/valid'
  c.evals.valid.batch_size = 8
  c.evals.valid.length = 16
  c.evals.pause = {'fn': 'tests.tiny_config:pause', 'seconds': 0.0}
  return c.lock()


def data(*, seconds: float, hang_at: int | None, position=None, **settings):
  """Reads as `stream.make` does, but each batch takes longer, or for ever."""
  found = stream.make(position=position, **settings)
  if hang_at is not None:
    # Its own minute is long for a test.
    defaults = prefetch.batches.__kwdefaults__
    assert defaults is not None
    defaults['deadline_seconds'] = 1.0

  def batch(step, *place, **places):
    if step == hang_at:
      threading.Event().wait()
    time.sleep(seconds)
    return found.batch(step, *place, **places)

  return found._replace(batch=batch)


def endless_loss(*, z_weight: float, smoothing: float, chunks: int | None):
  """Makes a loss that never compiles."""
  del z_weight, smoothing, chunks
  return lambda *_: threading.Event().wait()


def pause(*, context, seconds: float):
  """Makes an evaluator that takes its time and finds nothing new."""
  del context

  def evaluate(params):
    time.sleep(seconds)
    return {'tables': len(params['embed'])}

  return evaluate

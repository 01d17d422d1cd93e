"""The config of a run of the experiment.

  config.py:ENTRANT,TEXT    ENTRANT is one of `ENTRANTS`, TEXT is en or zh

A small decoder reads novels by bytes: two blocks of width 64, rows of 128.
"""

from typing import Any

from configs import base

DATA = 'data/optimizers'
RULES = 'lm.optim.rules:'
WSD = {'schedule': 'wsd', 'warmup': 0.05, 'decay_fraction': 0.4, 'final': 0.0}
ADAMW: dict[str, Any] = {'rule': {'fn': RULES + 'adamw'}}


def beside_adam(rule: str) -> dict[str, Any]:
  """A rule of matrices; all else has Adam, at a peak that is not tuned."""
  return {'rule': {'fn': RULES + rule, 'adam_peak': 0.01}}


# What each entrant has beside the schedule, and the first peak that is tried.
ENTRANTS: dict[str, tuple[dict[str, Any], float]] = {
  'adamw': (ADAMW, 2.0**-6),
  'lion': ({'rule': {'fn': RULES + 'lion'}, 'decay': 0.5}, 2.0**-9),
  'adafactor': ({'rule': {'fn': RULES + 'adafactor', 'size': 32}}, 2.0**-5),
  'muon': (beside_adam('muon'), 2.0**-6),
  'normuon': (beside_adam('normuon'), 2.0**-6),
  'soap': ({'rule': {'fn': RULES + 'soap'}}, 2.0**-6),
  'soap_muon': (beside_adam('soap_muon'), 2.0**-6),
  'adamw_sphere': (ADAMW | {'sphere': 'matrix'}, 2.0**-5),
  'muon_sphere': (beside_adam('muon') | {'sphere': 'matrix'}, 2.0**-5),
  'adamw_aligned': (ADAMW | {'decay_where': 'aligned'}, 2.0**-6),
  'adamw_ema': (ADAMW | {'average': 'ema', 'ema_decay': 0.98}, 2.0**-6),
  'adamw_tail': (ADAMW | {'average': 'tail', 'tail': 0.1}, 2.0**-6),
  'adamw_constant_tail': (
    ADAMW | {'average': 'tail', 'tail': 0.3, 'schedule': 'constant'},
    2.0**-6,
  ),
  'schedule_free': (
    {
      'rule': {'fn': RULES + 'adamw', 'b1': 0.0},
      'average': 'schedule_free',
      'schedule': 'constant',
    },
    2.0**-6,
  ),
  'adamw_power': (ADAMW | {'cooldown': 'power'}, 2.0**-6),
}


def get_config(argument: str):
  """Returns the config of an entrant on a text."""
  entrant, text = argument.split(',')
  c = base.get_config()
  c.steps = 400
  c.batch_size = 8
  c.log_every = 100
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.sources = {'train': {'path': f'{DATA}/{text}/train', 'weight': 1.0}}
  c.data.length = 128
  c.evals.valid.path = f'{DATA}/{text}/valid'
  c.evals.valid.length = 128
  c.model = base.modern(
    heads=4, width=64, depth=2, length=128, head=base.output(tied=False)
  )
  settings, peak = ENTRANTS[entrant]
  c.optim = {
    'fn': 'lm.optim.optimizers:make',
    'peak': peak,
    **WSD,
    **settings,
  }
  return c.lock()

"""A small hybrid: three layers of the gated delta rule to one of attention.

Expected: 1.741 bits/byte on the held-out text at the end and 1.997 at step 250.
configs/gpt/tiny.py, which has attention alone on the same text and with the
same optimizer, has 1.722 and 1.965. Both were measured before the quickstart
dropped 2.5 % of its training text, the duplicates (d3fc292).

Shorter runs go the other way: at 1.2e12 FLOPs a hybrid is 0.2 bits/byte ahead
(experiments/2026-12-hybrids).

  python -m lm.train --config=configs/gpt/hybrid.py --workdir=runs/hybrid

Uses the data of `make quickstart`. The layers are scanned by whole repetitions
of the pattern.

Reference: Yang et al. 2024, arXiv 2412.06464, section 3.4. Three layers to one
is the share of Qwen3-Next (2025).
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 500
  c.batch_size = 8
  c.save_every = 125
  c.keep = 4
  delta = {
    'fn': 'lm.layers.delta:make',
    'heads': 4,
    'key_width': None,  # features of a key; None: width / heads
    'value_width': None,  # features of a value; None: those of a key
    'taps': 4,  # tokens that the convolution before it mixes
    'chunk': 64,  # tokens that are worked on at once; a power of two
  }
  mlp = base.mlp(activation='relu2')
  model = base.modern()
  model['blocks'] = {
    'delta': base.block(delta, mlp, base.rmsnorm()),
    **model['blocks'],
  }
  c.model = model | {
    'width': 192,
    'pattern': ('delta', 'delta', 'delta', 'main'),
    'depth': 8,
    'scan': True,
    'compute_dtype': 'bfloat16',
  }
  c.optim = base.muon()
  return c.lock()

"""tinyshakespeare by character, on two CPU cores.

  python -m tools.corpora shakespeare
  python -m lm.train --config=configs/gpt/shakespeare_cpu.py \\
    --workdir=runs/shakespeare
  python -m lm.sweep --workdir=runs/shakespeare
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 1_115  # 1.495e13 FLOPs
  c.batch_size = 8
  c.save_every = 10_000  # the last step alone
  c.log_every = 25
  c.tokenizer = {
    'fn': 'lm.data.tokenizer:characters',
    'path': 'data/shakespeare/tokenizer.json',
  }
  c.data.sources.train.path = 'data/shakespeare/train'
  c.model.update(
    width=128,
    depth=4,
    heads=4,
    norm='rmsnorm',
    positions='rope',
    activation='relu2',
    bias=False,
    qk_norm=True,
    logit_softcap=15.0,
    tied=False,
    kernel_std=None,
    zero_outputs=True,
    operands='bfloat16',
  )
  c.optim = {
    'fn': 'lm.optim.optimizers:muon',
    'peak': 0.01,
    'adam_peak': 0.005,
    'schedule': 'wsd',
    'decay_fraction': 0.7,
    'warmup': 20,
    'final': 0.0,
    'clip': 1.0,
    'decay': 0.1,
    'momentum': 0.95,
    'b2': 0.99,
  }
  c.evals.valid.path = 'data/shakespeare/valid'
  return c.lock()

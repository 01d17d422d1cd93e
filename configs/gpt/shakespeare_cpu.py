"""tinyshakespeare by character, on two CPU cores.

Expected: 1.509 nats/char on the whole validation split, after 1.495e13 FLOPs
and some four minutes. nanoGPT publishes 1.88.

  python -m tools.corpora shakespeare
  python -m lm.train --config=configs/gpt/shakespeare_cpu.py \\
    --workdir=runs/shakespeare
  python -m lm.evaluate --workdir=runs/shakespeare --data=data/shakespeare
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
    'fn': 'lm.data.tokenizers.characters:make',
    'path': 'data/shakespeare/tokenizer.json',
  }
  c.data.sources.train.path = 'data/shakespeare/train'
  c.model = base.modern(
    width=128,
    head=base.output(softcap=15.0, tied=False),
    compute_dtype='bfloat16',
  )
  c.optim = base.muon()
  c.evals.valid.path = 'data/shakespeare/valid'
  return c.lock()

"""tinyshakespeare by character, within 1e14 FLOPs on two CPU cores.

Expected: 1.460 nats/char on the whole validation split, after 9.55e13 FLOPs
(one seed; 80 minutes on two cores that other work kept busy). nanoGPT publishes
1.4697 for its recipe of 5e15 FLOPs on a GPU, the least of several evaluations.

  python -m tools.corpora shakespeare
  python -m lm.train --config=configs/gpt/shakespeare.py \\
    --workdir=runs/shakespeare
  python -m lm.evaluate --workdir=runs/shakespeare --data=data/shakespeare
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 1_870  # 7.7 epochs, 9.55e13 FLOPs
  c.batch_size = 16
  c.save_every = 10_000  # the last step alone
  c.log_every = 25
  c.tokenizer = {
    'fn': 'lm.data.tokenizers.characters:make',
    'path': 'data/shakespeare/tokenizer.json',
  }
  c.data.sources.train.path = 'data/shakespeare/train'
  c.model = base.modern(
    heads=6,
    width=192,
    dropout=0.15,  # of a text that is read several times
    head=base.output(softcap=15.0, tied=False),
    compute_dtype='bfloat16',
  )
  c.optim = base.muon()
  c.evals.valid.path = 'data/shakespeare/valid'
  return c.lock()

"""The quickstart's text: the documentation that Python, numpy and jax carry.

  python -m tools.embedded_text --output=data/embedded/raw
  python -m tools.factory --config=configs/data/embedded.py \
      --output=data/embedded

The argument, as in `embedded.py:FOLDER`, is the folder of the texts. Held-out
texts have the first rank: so a training text that is like one of them is
dropped.
"""

from configs.data import base


def get_config(folder: str = 'data/embedded/raw'):
  """Returns the config."""
  c = base.get_config()
  c.sources = {
    'train': base.source(f'{folder}/train.jsonl', rank=1, side='train'),
    'valid': base.source(f'{folder}/valid.jsonl', side='valid'),
  }
  for source in c.sources.values():
    source['licence'] = 'PSF-2.0, BSD-3-Clause, Apache-2.0'
  c.stages = base.cleaning()
  # Docstrings are chosen texts, in English and the language of Python.
  c.order = ('normalise', 'personal', 'exact', 'near')
  c.split_valid = 0.0
  c.train_tokenizer.vocab = 4096
  return c.lock()

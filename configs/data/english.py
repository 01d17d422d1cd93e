"""English texts of the shared data folder: novels, Python's proposals, web.

  python -m tools.factory --config=configs/data/english.py:../shared/data \
      --output=data/english --workers=2

The argument is the folder of the texts.
"""

from configs.data import base


def get_config(folder: str = '../shared/data'):
  """Returns the config."""
  c = base.get_config()
  c.sources = {
    'books': base.source(f'{folder}/lm_en/gutenberg/train.jsonl.gz'),
    'peps': base.source(f'{folder}/lm_en/peps/train.jsonl.gz'),
    'web': base.source(f'{folder}/lm_en/web_demo/c4_demo.jsonl'),
  }
  c.stages = {
    'exact': {'fn': 'lm.corpus.exact:make'},
    'near': {'fn': 'lm.corpus.near:make', 'threshold': 0.7},
  }
  c.order = ('exact', 'near')
  c.train_tokenizer.vocab = 4096
  c.train_tokenizer.sample_bytes = 2_000_000
  return c.lock()

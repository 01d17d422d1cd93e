"""Chinese texts of the shared data folder: novels, poems, Wikipedia.

  python -m tools.factory --config=configs/data/chinese.py \
      --output=data/chinese

The argument, as in `chinese.py:FOLDER`, is the folder of the texts.
"""

from configs.data import base, rules


def get_config(folder: str = '../shared/data'):
  """Returns the config."""
  c = base.one_language('zh', folder, quality_zh=rules.chinese())
  c.sources = sources(folder)
  # Old Chinese is seldom what the model of languages was trained on.
  c.stages['language']['least'] = 0.0
  c.train_tokenizer.vocab = 16_384
  return c.lock()


def sources(folder: str):
  """Lists the sources; of duplicates those of the first rank stay."""
  place = f'{folder}/lm_zh'
  # A poem is shorter than any page that the rules were made for, and its
  # language can hardly be found by a model of modern text.
  short = ('language', 'quality_zh')
  return {
    'novels': base.source(
      f'{place}/novels/train.jsonl.gz',
      licence='public domain',
      about='chapters of novels, simplified',
    ),
    'songci': base.source(
      f'{place}/poetry/songci_simp.train.jsonl.gz',
      rank=1,
      licence='MIT',
      about='poems of the Song, simplified',
      skip=short,
    ),
    'tang': base.source(
      f'{place}/poetry/tang_trad.train.jsonl.gz',
      rank=1,
      licence='MIT',
      about='poems of the Tang, traditional',
      skip=short,
    ),
    'wikipedia': base.source(
      f'{place}/wiki_passages/train.jsonl.gz',
      licence='CC BY-SA 4.0',
      about='passages of the Chinese Wikipedia',
    ),
  }

"""English and Chinese, a dataset a source, to be mixed by weights.

  python -m tools.factory --config=configs/data/bilingual.py \
      --output=data/bilingual

The argument, as in `bilingual.py:FOLDER`, is the folder of the texts.
"""

from configs.data import base, chinese, english, rules


def get_config(folder: str = '../shared/data'):
  """Returns the config."""
  c = base.get_config()
  for language, module in (('en', english), ('zh', chinese)):
    for name, source in module.sources(folder).items():
      if language == 'zh':
        # The language of short poems is not looked for, see chinese.py.
        source['skip'] = (*source['skip'], 'quality')
      c.sources[f'{language}_{name}'] = source
  both = base.contamination(folder, 'en')
  chinese_sets = base.contamination(folder, 'zh')
  both['sets'] |= chinese_sets['sets']
  both['clean'] += chinese_sets['clean']
  c.stages = base.cleaning() | {
    'quality': rules.english(),
    'quality_zh': rules.chinese(),
    'contamination': both,
  }
  c.order = (*base.order('quality', 'quality_zh'), 'contamination')
  c.stages['language']['keep'] = ('en', 'zh')
  c.stages['language']['least'] = 0.0
  c.split_valid = 0.02
  c.by_source = True
  c.train_tokenizer.vocab = 16_384
  c.train_tokenizer.sample_bytes = 20_000_000
  return c.lock()

"""English texts of the shared data folder: books, Python's PEPs, web, wiki.

  python -m tools.factory --config=configs/data/english.py \
      --output=data/english

The argument, as in `english.py:FOLDER`, is the folder of the texts.
"""

from configs.data import base, rules


def get_config(folder: str = '../shared/data'):
  """Returns the config."""
  c = base.one_language('en', folder, quality=rules.english())
  c.sources = sources(folder)
  return c.lock()


def sources(folder: str):
  """Lists the sources; of duplicates those of the first rank stay."""
  place = f'{folder}/lm_en'
  # People have chosen these texts; the rules were made for pages of the web.
  chosen = ('language', 'quality')
  return {
    'books': base.source(
      f'{place}/gutenberg/train.jsonl.gz',
      licence='public domain (US)',
      about='15 novels of Project Gutenberg, without its headers',
      skip=chosen,
    ),
    'peps': base.source(
      f'{place}/peps/train.jsonl.gz',
      licence='public domain or CC0',
      about='proposals for Python, as reStructuredText',
      skip=chosen,
    ),
    'stories': base.source(
      f'{place}/tinystories_sample/tinystories_head.txt',
      unit='line',
      rank=1,
      licence='CDLA-Sharing 1.0',
      about='the beginning of TinyStories; its paragraphs are documents',
      skip=chosen,
    ),
    'wikipedia': base.source(
      f'{place}/web_demo/wiki_demo.txt',
      unit='line',
      licence='CC BY-SA',
      about='30 articles of the English Wikipedia, a line each',
      skip=chosen,
    ),
    'wikitext': base.source(
      f'{place}/wikitext2/wiki.train.tokens.gz',
      unit='line',
      rank=1,
      licence='CC BY-SA 3.0',
      about='WikiText-2, whose paragraphs are documents',
      skip=chosen,
    ),
    'web': base.source(
      f'{place}/web_demo/c4_demo.jsonl',
      rank=2,
      licence='ODC-BY',
      about='300 pages of C4',
    ),
  }

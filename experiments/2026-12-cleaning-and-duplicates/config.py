"""The configs of the experiment: of its datasets and of its runs.

  config.py:data,ARM,RAW[,KEEP]   for tools.factory
  config.py:train,DATA,ASKED      for lm.train

ARM is raw, cleaned, deduplicated or thinned, or deduplicated_tokenizer, whose
tokenizer was trained on its own text and not on the raw one. RAW is the folder
of a planted corpus or `as_is`, and KEEP the share of documents that thinning
leaves. DATA is the folder of a dataset, and ASKED that of the texts that runs
are evaluated on.
"""

from pathlib import Path

from configs.data import base, bilingual, rules
from configs.gpt import tiny

SHARED = '../shared/data'
EVALS = {
  name: f'{SHARED}/evals/{name}/test.jsonl'
  for name in ('arc_easy', 'openbookqa')
}
HELD_OUT = {
  'books': 'lm_en/gutenberg/valid.jsonl.gz',
  'peps': 'lm_en/peps/valid.jsonl.gz',
  'novels': 'lm_zh/novels/valid.jsonl.gz',
  'wiki': 'lm_zh/wiki_passages/valid.jsonl.gz',
}


def get_config(argument: str):
  """Returns the config that the argument asks for."""
  kind, *rest = argument.split(',')
  return {'data': data, 'train': train}[kind](*rest)


def data(arm: str, raw: str, keep: str = '1'):
  """Returns the config of a dataset, with the held-out texts beside it."""
  c = base.get_config()
  quality = ('quality', 'quality_zh')
  c.stages = base.cleaning() | {
    'quality': rules.english(),
    'quality_zh': rules.chinese(),
    'lines': {'fn': 'lm.corpus.exact:make', 'unit': 'line', 'least_words': 10},
    'contamination': {
      'fn': 'lm.corpus.contamination:make',
      'sets': {name: {'path': path} for name, path in EVALS.items()},
    },
    'thin': {'fn': 'lm.corpus.thin:make', 'keep': float(keep)},
  }
  c.stages['language']['keep'] = ('en', 'zh')
  c.stages['language']['least'] = 0.0
  cleaned = ('normalise', 'language', *quality, 'personal')
  c.order = {
    'raw': (),
    'cleaned': (*cleaned, 'contamination'),
    'deduplicated': (*cleaned, 'exact', 'near', 'lines', 'contamination'),
    'thinned': ('thin',),
  }[arm.removesuffix('_tokenizer')]
  # What the order of an arm does not have is no stage of it.
  c.stages = {name: c.stages[name] for name in c.order}
  if raw == 'as_is':
    c.sources = bilingual.get_config(SHARED).sources.to_dict()
  else:
    c.sources = {'planted': base.source(f'{raw}/part-*.jsonl')}
  for source in c.sources.values():
    source['side'] = 'train'
    source['skip'] = tuple(x for x in source['skip'] if x in c.order)
  for name, path in HELD_OUT.items():
    c.sources[f'held_{name}'] = base.source(
      f'{SHARED}/{path}', side='valid', skip=c.order
    )
  c.by_source = True
  c.shard_tokens = 1 << 20
  c.train_tokenizer.vocab = 8192
  c.train_tokenizer.sample_bytes = 10_000_000
  return c.lock()


def train(folder: str, asked: str):
  """Returns the config of the quickstart's model on a dataset."""
  c = tiny.get_config()
  c.unlock()
  c.keep = 2
  c.save_every = 250
  c.tokenizer.path = f'{folder}/tokenizer.model'
  trained = sorted(x.name for x in Path(folder, 'train').iterdir())
  c.data.sources = {
    name: {'path': f'{folder}/train/{name}', 'weight': 1.0} for name in trained
  }
  # Sources are read in proportion to their sizes.
  c.data.temperature = 1.0
  ask = {'batch_size': 16, 'length': 256}
  c.evals = {
    name: {
      'fn': 'lm.evals.likelihood:make',
      'path': f'{folder}/valid/held_{name}',
      **ask,
    }
    for name in HELD_OUT
  }
  c.evals['greedy'] = {
    'fn': 'lm.evals.continuation:make',
    'path': f'{asked}/prompts.jsonl',
    'batch_size': 32,
    'length': 64,
    'new': 128,
  }
  for name in ('canaries', 'items'):
    if Path(asked, f'{name}.jsonl').exists():
      c.evals[name] = {
        'fn': 'lm.evals.memorization:exposure',
        'path': f'{asked}/{name}.jsonl',
        'batch_size': 32,
        'length': 256,
      }
  return c.lock()

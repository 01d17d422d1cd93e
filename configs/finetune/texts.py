"""Classifies texts with a tuned model, or one from nothing.

  python -m lm.train --workdir=runs/banking77 \\
    --config=configs/finetune/texts.py:../shared/data,banking77

The argument is the folder of the sets and one of `SETS`. It trains the encoder
of configs/base.py from nothing, on bytes. With a third word, the folder of a
run of yours or of one that tools/hf_import made, it tunes that run's model:

  python -m tools.hf_import --source=MiniLM --workdir=runs/minilm
  python -m lm.train --workdir=runs/tuned \\
    --config=configs/finetune/texts.py:../shared/data,polarity,runs/minilm
"""

from pathlib import Path

from configs import base
from lm import config

SETS = {  # reader, train, test, classes
  'polarity': (
    'sentence_polarity',
    'mr_sentence_polarity/train.jsonl',
    'mr_sentence_polarity/valid.jsonl',
    2,
  ),
  'subjectivity': (
    'subjectivity',
    'subjectivity/train.jsonl',
    'subjectivity/valid.jsonl',
    2,
  ),
  'banking77': ('banking77', 'banking77/train.csv', 'banking77/test.csv', 77),
  'ocnli': ('ocnli', 'ocnli/train.10k.jsonl.gz', 'ocnli/dev.jsonl.gz', 3),
}


def get_config(argument: str = 'data,banking77'):
  """Returns the config of one set."""
  folder, name, *start = argument.split(',')
  reader, train, test, classes = SETS[name]

  def read(path):
    return {
      'fn': f'lm.data.records:{reader}',
      'path': f'{folder}/classification/{path}',
    }

  form = {
    'fn': 'lm.data.tasks:classify',
    'classes': classes,
    'labels': read(train),
    'kinds': True,
  }
  c = base.get_config()
  c.steps = 600
  c.batch_size = 32
  c.save_every = 200
  c.tokenizer = {'fn': 'lm.data.tokenizer:bytes_', 'reserved': 0}
  c.data = {
    'fn': 'lm.data.tasks:make',
    'records': read(train),
    'form': form,
    'length': 128,
    'folds': 1,
    'held_out': None,
  }
  c.model = {
    'fn': 'lm.models.heads:classify',
    'classes': classes,
    'pool': 'mean',
    'hidden': False,
    'body': base.encoder() | {'norm_order': 'pre'},
  }
  c.optim.peak = 1e-3
  if start:
    run = config.from_json(Path(start[0], 'config.json').read_text())
    is_head = 'body' in run.model
    c.tokenizer = run.tokenizer
    c.model['body'] = run.model.body if is_head else run.model
    c.init_from = start[0]
    c.init_paths = ('body',) if is_head else ('=body',)
    c.data['length'] = 64
    c.optim.peak = 1e-4
    c.optim.final = 0.0
    c.optim.decay = 0.01
  c.evals = {
    'test': {
      'fn': 'lm.evals.labels:classes',
      'records': read(test),
      'form': form,
      'batch_size': 64,
      'length': c.data['length'],
    }
  }
  return c.lock()

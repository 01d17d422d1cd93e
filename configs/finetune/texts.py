"""Tunes a model to classify texts, or trains one from random parameters.

  python -m lm.train --workdir=runs/banking77 \\
    --config=configs/finetune/texts.py:../shared/data,banking77

The argument is the folder of the data sets and one of `SETS`. That trains the
encoder of configs/base.py from random parameters, on bytes. With a third word,
the folder of a run (one of yours, or one that tools/hf_import wrote), the model
of that run is tuned:

  python -m tools.hf_import --source=MiniLM --workdir=runs/minilm
  python -m lm.train --workdir=runs/tuned \\
    --config=configs/finetune/texts.py:../shared/data,polarity,runs/minilm

With a fourth word, `lora`, the model is frozen, and a head and low-rank changes
are trained.
"""

from configs.finetune import start

# Reader, files for training and for the test, classes, steps of 32 rows, and a
# length in tokens that nearly all texts fit in (BoolQ's passages are cut).
SETS = {
  'polarity': (
    'sentence_polarity',
    'classification/mr_sentence_polarity/train.jsonl',
    'classification/mr_sentence_polarity/valid.jsonl',
    *(2, 300, 48),
  ),
  'subjectivity': (
    'subjectivity',
    'classification/subjectivity/train.jsonl',
    'classification/subjectivity/valid.jsonl',
    *(2, 300, 64),
  ),
  'banking77': (
    'banking77',
    'classification/banking77/train.csv',
    'classification/banking77/test.csv',
    *(77, 600, 40),
  ),
  'clinc150': (
    'clinc150',
    {'path': 'classification/clinc150/data_full.json.gz', 'split': 'train'},
    {'path': 'classification/clinc150/data_full.json.gz', 'split': 'test'},
    *(150, 900, 40),
  ),
  'ocnli': (
    'ocnli',
    'classification/ocnli/train.10k.jsonl.gz',
    'classification/ocnli/dev.jsonl.gz',
    *(3, 900, 64),
  ),
  'boolq': (
    'boolq',
    'qa/boolq/train.jsonl.gz',
    'qa/boolq/valid.jsonl.gz',
    *(2, 600, 128),
  ),
}


def get_config(argument: str = 'data,banking77'):
  """Returns the config of one set."""
  folder, name, run = start.words(argument, SETS)
  reader, train, test, classes, steps, length = SETS[name]

  def read(what):
    how = {'path': what} if isinstance(what, str) else what
    path = f'{folder}/{how["path"]}'
    return {'fn': f'lm.data.finetuning.readers:{reader}', **how, 'path': path}

  head = {
    'fn': 'lm.models.heads:classify',
    'classes': classes,
    'pool': 'mean',
    'hidden': False,
  }
  c = start.tuned(head, *run)
  c.steps = steps
  c.save_every = 300
  form = {
    'fn': 'lm.data.finetuning.forms:classify',
    'classes': classes,
    'labels': read(train),
    'token_types': True,
    'ends': not start.is_decoder(c.model),
  }
  length = length if run else 128  # of bytes
  start.task(
    c,
    form,
    *(read(train), read(test)),
    {'test': {'fn': 'classification:classes'}},
    length=length,
  )
  return c.lock()

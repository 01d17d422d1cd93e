"""Tunes a model to answer questions by a part of a passage.

  python -m lm.train --workdir=runs/squad \\
    --config=configs/finetune/spans.py:../shared/data,squad,runs/minilm

The argument is the same as in texts.py, with these `SETS`. Without a run, a
model learns little here. Passages that are longer than a row are read in parts
that overlap.
"""

from configs.finetune import start

# Reader, files for training and for the test, language.
SETS = {
  'squad': (
    'squad',
    'squad_v1_subset/train_17articles.json.gz',
    'squad_v1_subset/dev_3articles.json.gz',
    'en',
  ),
  'cmrc2018': (
    'cmrc2018',
    'cmrc2018/train.json.gz',
    'cmrc2018/dev.json.gz',
    'zh',
  ),
}


def get_config(argument: str = 'data,squad'):
  """Returns the config of one set."""
  folder, name, run = start.words(argument, SETS)
  reader, train, test, language = SETS[name]

  def read(path):
    return {
      'fn': f'lm.data.finetuning.readers:{reader}',
      'path': f'{folder}/qa/{path}',
    }

  c = start.tuned({'fn': 'lm.models.heads:span'}, *run)
  c.steps = 600
  c.batch_size = 16
  form = {
    'fn': 'lm.data.finetuning.forms:span',
    'question': 32,
    'stride': None,
    'token_types': True,
  }
  readers = read(train), read(test)
  evaluators = {'test': {'fn': 'classification:spans', 'language': language}}
  start.task(c, form, *readers, evaluators, length=256)
  return c.lock()

"""Tunes a model to find entities, or trains one from random parameters.

  python -m lm.train --workdir=runs/wikigold \\
    --config=configs/finetune/tags.py:../shared/data,wikigold,runs/minilm

The argument is the same as that of texts.py, with these `SETS`. Wikigold has
no split. A fifth of its sentences is held out, and `--config.data.held_out=N`
tells the data and the evaluator which. Five runs, each in a folder of its own,
evaluate all sentences, and `lm.evaluate` treats them as one recipe. Logistic
regression on words and their neighbours (tools.baselines) has F1 0.592 over the
five folds, a dictionary 0.445.
"""

from configs.finetune import start

# Reader, files for training and for the test, classes, steps of 32 rows, folds
# if both are one file, and what stands between words.
SETS = {
  'wikigold': (
    'wikigold',
    'wikigold/wikigold.conll.txt',
    'wikigold/wikigold.conll.txt',
    *(9, 339, 5, ' '),
  ),
  'wnut17': (
    'wnut17',
    'wnut17/train.conll',
    'wnut17/test.conll',
    *(13, 424, 1, ' '),
  ),
  'uner_zh': (
    'uner_zh',
    'uner_zh_gsdsimp/train.iob2.gz',
    'uner_zh_gsdsimp/test.iob2',
    *(7, 499, 1, ''),
  ),
}


def get_config(argument: str = 'data,wikigold'):
  """Returns the config of one set."""
  folder, name, run = start.words(argument, SETS)
  reader, train, test, classes, steps, folds, join = SETS[name]

  def read(path):
    return {
      'fn': f'lm.data.finetuning.readers:{reader}',
      'path': f'{folder}/ner/{path}',
    }

  head = {'fn': 'lm.models.heads:tag', 'classes': classes}
  c = start.tuned(head, *run)
  c.steps = c.save_every = steps
  c.optim.warmup = steps // 10
  form = {
    'fn': 'lm.data.finetuning.forms:tag',
    'classes': classes,
    'labels': read(train),
    'join': join,
    'stride': None,
  }
  length = 64 if run else 256  # of bytes
  readers = read(train), read(test)
  evaluators = {'test': {'fn': 'classification:tags'}}
  start.task(c, form, *readers, evaluators, length=length, folds=folds)
  return c.lock()

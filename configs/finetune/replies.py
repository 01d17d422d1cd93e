"""Tunes a decoder to write: summaries, translations, answers, conversations.

  python -m tools.hf_import --source=model.gguf --workdir=runs/smollm
  python -m lm.train --workdir=runs/tldr \\
    --config=configs/finetune/replies.py:../shared/data,scitldr,runs/smollm

The argument is the same as in texts.py, with these `SETS`. Without a run, the
decoder of configs/base.py is trained from random parameters, on bytes, and
learns little. Only answers are scored; in conversations, all of the
assistant's. `answers` evaluates the loss of the held-out answers, `test` what
the model writes for the first 200 records.

Alpaca has no split: a thousand of its records are held out, as one fold.
"""

from configs.finetune import start

_ALPACA = ('reply', {'template': '{source}\n\nAnswer:\n'}, ('rouge',))
# Reader, files for training and for the test, folds if both are one file; form,
# metrics and language; steps of 32 rows (three epochs, two of Alpaca); and
# tokens of a row and of an answer.
SETS = {
  'scitldr': (
    'scitldr',
    'summarization/scitldr_A/train.jsonl.gz',
    'summarization/scitldr_A/test.jsonl.gz',
    1,
    ('reply', {'template': '{source}\n\nTL;DR:\n', 'room': 64}, ('rouge',)),
    *('en', 140, 384, 48),
  ),
  'tatoeba': (
    'tatoeba',
    'translation/tatoeba_en_zh/train.tsv.gz',
    'translation/tatoeba_en_zh/test.tsv.gz',
    1,
    ('reply', {}, ('chrf', 'bleu')),
    *('zh', 760, 96, 48),
  ),
  'alpaca_en': (
    'alpaca',
    'instruct/alpaca_en/alpaca_data.jsonl.gz',
    'instruct/alpaca_en/alpaca_data.jsonl.gz',
    52,
    _ALPACA,
    *('en', 1_000, 256, 128),
  ),
  'alpaca_zh': (
    'alpaca',
    'instruct/alpaca_zh/alpaca_zh.jsonl.gz',
    'instruct/alpaca_zh/alpaca_zh.jsonl.gz',
    13,
    _ALPACA,
    *('zh', 400, 384, 128),
  ),
  'kdconv': (
    'kdconv',
    'dialogue/kdconv_zh/film.dev.json.gz',
    'dialogue/kdconv_zh/film.test.json.gz',
    1,
    ('chat', {}, ('chrf', 'f1')),
    *('zh', 15, 512, 64),
  ),
  'crosswoz': (
    'crosswoz',
    'dialogue/crosswoz_zh/val.jsonl.gz',
    'dialogue/crosswoz_zh/test.jsonl.gz',
    1,
    ('chat', {}, ('chrf', 'f1')),
    *('zh', 45, 512, 64),
  ),
}


def get_config(argument: str = 'data,scitldr'):
  """Returns the config of one set."""
  folder, name, run = start.words(argument, SETS)
  reader, train, test, folds, (form, how, metrics), *rest = SETS[name]
  language, steps, length, new = rest

  def read(path):
    return {
      'fn': f'lm.data.finetuning.pair_readers:{reader}',
      'path': f'{folder}/{path}',
    }

  c = start.tuned(None, *run)
  if not run:
    c.model.length = length + new
  c.steps = steps
  c.save_every = max(steps // 4, 1)
  c.optim.warmup = max(steps // 20, 1)
  start.task(
    c,
    {'fn': f'lm.data.finetuning.pair_forms:{form}', **how},
    *(read(train), read(test)),
    {
      'answers': {'fn': 'generation:answers'},
      'test': {
        'fn': 'generation:make',
        'new': new,
        'metrics': metrics,
        'language': language,
        'limit': 200,
      },
    },
    length=length,
    folds=folds,
  )
  c.data.pack = True
  return c.lock()

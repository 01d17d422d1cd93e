"""Tunes a model to find the passage that answers a question.

  python -m tools.hf_import --source=MiniLM --workdir=runs/minilm
  python -m lm.train --workdir=runs/search \\
    --config=configs/finetune/retrieval.py:../shared/data,squad,runs/minilm
  python -m lm.evaluate --workdir=runs/search

Expected on `squad` after 7 minutes: nDCG@10 0.953 on the 1,190 English
questions of XQuAD and their 240 passages. MiniLM has 0.943 as it is, and BM25,
which the words of these questions help, 0.958.

The argument is the same as in texts.py, with these `SETS`. Each batch compares
its questions with all of its passages, and each question with the passage that
BM25 likes best and that does not hold the answer. `tools.baselines` with the
same config measures BM25.
"""

from configs.finetune import start

# Reader, files for training and for the test.
SETS = {
  'squad': (
    'readers:squad',
    'qa/squad_v1_subset/train_17articles.json.gz',
    'qa/xquad/xquad.en.json.gz',
  ),
  'cmrc2018': (
    'readers:cmrc2018',
    'qa/cmrc2018/train.json.gz',
    'qa/cmrc2018/dev.json.gz',
  ),
  'tatoeba': (
    'pair_readers:tatoeba',
    'translation/tatoeba_en_zh/train.tsv.gz',
    'translation/tatoeba_en_zh/test.tsv.gz',
  ),
}


def get_config(argument: str = 'data,squad'):
  """Returns the config of one set."""
  folder, name, run = start.words(argument, SETS)
  reader, train, test = SETS[name]

  def read(path):
    return {
      'fn': f'lm.data.finetuning.{reader}',
      'path': f'{folder}/{path}',
    }

  hard = {
    'fn': 'lm.data.finetuning.retrieval_readers:mined',
    'records': read(train),
    'skip': 0,
  }
  head = {'fn': 'lm.models.heads:embed', 'pool': 'mean', 'texts': 3}
  c = start.tuned(head, *run)
  c.steps = 120
  c.batch_size = 16
  c.optim.peak = 3e-5
  c.optim.warmup = 12
  form = {
    'fn': 'lm.data.finetuning.retrieval_forms:match',
    'question': 32,
    'ends': not start.is_decoder(c.model),
  }
  evaluators = {'test': {'fn': 'retrieval:make'}}
  start.task(c, form, hard, read(test), evaluators, length=288)
  return c.lock()

"""Tunes a decoder on pairs of a better and a worse answer, by DPO.

  python -m lm.train --workdir=runs/dpo \\
    --config=configs/finetune/preferences.py:../shared/data,dpo_en,runs/tldr

The argument is the same as in texts.py, without `lora`. The run should have
learnt to answer before (replies.py). A sixth of the pairs is held out. Accuracy
is the share of those whose better answer gained more than the worse one. To
start another run from the result, give it `--config.init_paths=body=`.

Reference: Rafailov et al. 2023, arXiv 2305.18290.
"""

from configs.finetune import start

SETS = {
  'dpo_en': 'instruct/llamafactory_demo/dpo_en_demo.json.gz',
  'dpo_zh': 'instruct/llamafactory_demo/dpo_zh_demo.json.gz',
}


def get_config(argument: str = 'data,dpo_en'):
  """Returns the config of one set."""
  folder, name, run = start.words(argument, SETS)
  if len(run) > 1:
    raise ValueError(f'{run[1]!r}: DPO tunes the whole decoder: leave it out')
  c = start.tuned(None, *run)
  length = 512 if run else c.model.length
  c.model = {
    'fn': 'lm.models.preference:make',
    'body': c.model,
    'beta': 0.1,
  }
  if run:
    theirs = c.init_paths[0].removesuffix('=')
    c.init_paths = (f'{theirs}=body', f'{theirs}=reference')
  c.steps = c.save_every = 48  # three epochs
  c.batch_size = 16
  c.optim.peak = 1e-5
  c.optim.warmup = 5
  records = {
    'fn': 'lm.data.finetuning.pair_readers:preferences',
    'path': f'{folder}/{SETS[name]}',
  }
  form = {
    'fn': 'lm.data.finetuning.pair_forms:prefer',
    'template': '{source}\n\nAnswer:\n',
  }
  start.task(
    c,
    form,
    *(records, records),
    {'test': {'fn': 'classification:classes', 'batch_size': 16}},
    length=length,
    folds=6,
  )
  return c.lock()

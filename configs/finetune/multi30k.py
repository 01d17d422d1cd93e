"""Trains a translator of captions, English to German, on two CPU cores.

  python -m tools.train_tokenizer --input 'data/multi30k/train.*.txt' \\
    --unit line --vocab 8000 --kind bpe --output data/multi30k/ende.model
  python -m lm.train --config=configs/finetune/multi30k.py:FOLDER \\
    --workdir=runs/ende

The argument is the folder of Multi30k's task 1, with train.en.gz and so on. The
tokenizer is trained on its training lines, unpacked.

27 minutes on two shared cores (commit 3f54f5f, one seed, 8.2M tokens in 4,000
steps) gave 34.4 BLEU and 58.5 chrF on test_2016_flickr, with five beams:
nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0.

Reference: Elliott et al. 2016, arXiv 1605.00459; the size is that of
Transformer-Tiny, Wu et al. 2021, arXiv 2105.14462, section 4.1.
"""

from configs import base


def get_config(folder: str = 'data/multi30k'):
  """Returns the config for a folder of the set."""

  def read(split):
    return {
      'fn': 'lm.data.finetuning.pair_readers:multi30k',
      'path': f'{folder}/{split}.en.gz',
      'target_path': f'{folder}/{split}.de.gz',
    }

  def evaluator(split):
    return {
      'fn': 'lm.evals.generation:make',
      'records': read(split),
      'form': form,
      'batch_size': 50,
      'length': 64,
      'new': 64,
      'beams': 5,
      'metrics': ('bleu', 'chrf'),
    }

  form = {'fn': 'lm.data.finetuning.pair_forms:translate', 'source': 128}
  c = base.get_config()
  c.steps = 4_000
  c.batch_size = 16  # rows of about six pairs
  c.save_every = 500
  c.log_every = 50
  c.tokenizer.path = 'data/multi30k/ende.model'
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': read('train'),
    'form': form,
    'length': 128,
    'pack': True,
  }
  c.model = base.transformer(mlp_width=256, order='pre', width=128, dropout=0.3)
  c.loss.smoothing = 0.1
  c.optim.peak = 4e-3
  c.optim.warmup = 500
  c.optim.schedule = 'cosine'
  c.optim.final = 0.02
  c.optim.rule.b2 = 0.98
  c.evals = {'test_2016': evaluator('test_2016_flickr')}
  return c.lock()

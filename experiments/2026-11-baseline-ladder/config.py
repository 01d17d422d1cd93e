"""One rung of the ladder: `config.py:NAME`, or `config.py:NAME,chinese`.

NAME is one of `RUNGS`. All read the same pieces of the same text in windows of
256, and are judged on the same split; what trains by gradients has at most
BUDGET_MINUTES on two idle CPU cores. README.md has the question and the answer.

  python -m tools.corpora wikitext2
  python -m lm.train --workdir=runs/ladder/gru \\
    --config=experiments/2026-11-baseline-ladder/config.py:gru
"""

from configs import base
from configs.gpt import wikitext2

BUDGET_MINUTES = 12
# Updates of gradients, measured to fill the budget; None: counts.
RUNGS = {
  'uniform': None,
  'unigram': None,
  'kneser_ney': None,
  'elman': 1_400,
  'lstm': 1_750,
  'gru': 1_800,
  'decoder': 1_150,
  't5': 700,
  'bert': 2_100,
}


def get_config(argument='decoder'):
  """Returns the config of a rung."""
  name, _, corpus = argument.partition(',')
  c = wikitext2.get_config().unlock()
  if corpus:
    for key in ('tokenizer', 'data.sources.train', 'evals.valid', 'evals.test'):
      spec = c
      for part in key.split('.'):
        spec = spec[part]
      spec.path = spec.path.replace('wikitext2', corpus)
    # Chinese has no spaces, and so no perplexity a word.
    c.evals.valid.words = c.evals.test.words = None
  c.steps, c.log_every = RUNGS[name] or 1, 50
  if name in ('uniform', 'unigram'):
    c.model, c.fit = base.ngram()
    k = 1e12 if name == 'uniform' else 1.0
    c.model.order, c.fit.method, c.fit.k = 1, 'add_k', k
  if name == 'kneser_ney':
    c.model, c.fit = base.ngram()
  if name in ('elman', 'lstm', 'gru'):
    c.model = base.recurrent(name, compute_dtype='bfloat16')
    c.optim = base.adamw() | {'peak': 2e-3, 'decay': 0.01, 'final': 0.0}
  if name == 't5':
    c.tokenizer.reserved = 32
    c.data.length = 96
    c.data.objective = base.span_corruption(source=256)
    c.model = base.t5(gated=True)
    c.model.compute_dtype = 'bfloat16'
    for split in c.evals.values():
      split.length = 257  # the sentinel before the text
      split.objective = {'fn': 'lm.data.corruption:one_span'}
  if name == 'bert':
    c.tokenizer.reserved = 1
    c.data.objective = base.masked()
    c.model = base.encoder(order='pre', compute_dtype='bfloat16')
    c.optim = base.adamw() | {'peak': 1e-3, 'final': 0.0}
    for split in c.evals.values():
      # One token of each window is hidden: share is below that of any.
      split.length = 64
      split.objective = base.masked() | {
        'share': 1e-6,
        'mask_share': 1.0,
        'random_share': 0.0,
      }
  return c.lock()

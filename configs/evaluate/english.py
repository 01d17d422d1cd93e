"""Evaluates runs on the usual tasks for small English models.

  python -m lm.evaluate --workdir=runs/a --last \\
    --config=configs/evaluate/english.py:../shared/data

and several runs, seeds and recipes in one report:

  python -m lm.evaluate --config=configs/evaluate/english.py:../shared/data \\
    --config.evaluate.workdirs='runs/base-*,runs/wide-*' \\
    --config.evaluate.steps=last --csv=english.csv --html=english.html

The argument is the folder of the sets. `length` is the most positions that a
model reads: raise it for one that can read more. Published scores: Pythia 160M
after training has ARC easy 43.5, PIQA 62.7, LAMBADA 32.8, CrowS-Pairs 56.2
percent (EleutherAI/pythia, evals/pythia-v1), and GPT-2 large BLiMP 83.0
(alexwarstadt/blimp); nothing was measured here.
"""

from configs import base

SETTINGS = {'batch_size': 16, 'length': 256}


def get_config(folder: str = 'data'):
  """Returns a config of which only `evals` and `evaluate` are used."""

  def ask(how: str, reader: str, path: str):
    return {
      'fn': f'lm.evals.choice:{how}',
      'task': {
        'fn': f'lm.evals.probes:{reader}',
        'path': f'{folder}/evals/{path}',
      },
      **SETTINGS,
    }

  c = base.get_config()
  c.evals = {
    'blimp': ask('pairs', 'blimp', 'blimp/blimp.jsonl.gz'),
    'arc_easy': ask('choice', 'arc_easy', 'arc_easy/test.jsonl'),
    'piqa': ask('choice', 'piqa', 'piqa/valid.jsonl.gz'),
    'sciq': ask('choice', 'sciq', 'sciq/valid.jsonl.gz'),
    'lambada': ask(
      'cloze', 'lambada_openai', 'lambada_openai/lambada_test.jsonl.gz'
    ),
    'crows_pairs': {
      'fn': 'lm.evals.fairness:crows_pairs',
      'path': f'{folder}/fairness/crows_pairs/crows_pairs_anonymized.csv',
      **SETTINGS,
    },
  }
  return c

"""Evaluates what runs say of people: stereotypes, answers, open texts.

  python -m lm.evaluate --workdir=runs/a --last \\
    --config=configs/evaluate/people.py:../shared/data

The argument is the folder of the sets; `length` is the same as in english.py.
BOLD samples texts, at most a hundred for each group, which takes longer than
all the others. Published scores: Pythia 160M has CrowS-Pairs 56.2
(EleutherAI/pythia, evals/pythia-v1). On StereoSet's gender, race and religion
GPT-2 has language scores of 93.3, 89.8 and 88.6 and stereotype scores of 63.2,
60.3 and 58.2 (predictions of the set's authors). Nothing was measured here.
"""

from configs import base

SETTINGS = {'batch_size': 16, 'length': 256}


def get_config(folder: str = 'data'):
  """Returns a config of which only `evals` and `evaluate` are used."""

  def ask(name: str, **files: str):
    paths = {key: f'{folder}/fairness/{file}' for key, file in files.items()}
    return {'fn': f'lm.evals.fairness:{name}', **paths, **SETTINGS}

  c = base.get_config()
  c.evals = {
    'crows_pairs': ask(
      'crows_pairs', path='crows_pairs/crows_pairs_anonymized.csv'
    ),
    'stereoset': ask(
      'stereoset', path='stereoset_intrasentence/gender_race_religion.jsonl'
    ),
    'winobias': ask(
      'winobias',
      pro='winobias/pro_stereotyped_type1.txt.test',
      anti='winobias/anti_stereotyped_type1.txt.test',
    ),
    'winogender': ask(
      'winogender',
      path='winogender/all_sentences.tsv',
      statistics='winogender/occupations-stats.tsv',
    ),
    'bbq': {
      'fn': 'lm.evals.bbq:make',
      'path': f'{folder}/fairness/bbq/*.jsonl.gz',
      **SETTINGS,
    },
  }
  for domain in (
    'gender',
    'political_ideology',
    'profession',
    'race',
    'religious_ideology',
  ):
    c.evals[f'bold_{domain}'] = {
      'fn': 'lm.evals.safety:bold',
      'path': f'{folder}/safety/bold_prompts/{domain}_prompt.json.gz',
      'limit': 100,
      **SETTINGS,
    }
  return c

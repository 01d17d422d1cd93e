"""A build is repeated by the config that it wrote."""

import json
from pathlib import Path

import pytest

from configs.data import rules
from lm import config
from lm.corpus import build
from tests.corpus import build_test
from tools import factory

corpus = build_test.corpus
RULE = 'def short(most):\n  return lambda x: len(x.text) < most or None\n'


def repeat(name: str, output: str, *flags: str) -> None:
  words = [f'--config={name}', f'--output={output}', '--workers=1', *flags]
  assert factory.main(words) == 0


def files(output: str) -> dict[str, bytes]:
  """Reads what a build wrote, beside its parts."""
  found = {
    path.relative_to(output).as_posix(): path.read_bytes()
    for path in sorted(Path(output).rglob('*'))
    if path.is_file()
  }
  inside = ('parts/', 'tables/', 'lock', 'audit.html', 'card.md')  # its name
  return {x: data for x, data in found.items() if not x.startswith(inside)}


def test_a_build_is_repeated_by_the_config_that_it_wrote(corpus):
  Path('list.txt').write_text('word\n')
  Path('quiz.jsonl').write_text(f'{{"q": "{build_test.text(1)}"}}\n')
  quality = rules.english()
  quality['rules'] |= rules.c4() | rules.chinese()['rules']
  quality['languages'] = ('none',)  # rules are made, and drop nothing
  c = build_test.load(corpus).unlock()
  c.sources.a = {
    'inputs': (c.sources.a.inputs,),
    'rank': 0,
    'skip': ('near',),
  }
  c.stages = config.plain(c.stages) | {
    'normalise': {
      'fn': 'lm.corpus.normalise:make',
      'mojibake': False,
      'lines': rules.c4_lines()
      | {'unfinished': {'fn': 'lm.corpus.lines:unfinished', 'ends': ('',)}},
    },
    'quality': quality,
    'personal': {'fn': 'lm.corpus.personal:make'},
    'toxicity': {
      'fn': 'lm.corpus.toxicity:make',
      'lists': {'mine': 'list.txt'},
    },
    'contamination': {
      'fn': 'lm.corpus.contamination:make',
      'sets': {
        'quiz': {'path': str(Path('quiz.jsonl').resolve()), 'fields': ('q',)}
      },
    },
  }
  c.order = (
    *('normalise', 'quality', 'personal', 'toxicity'),
    *('exact', 'near', 'contamination'),
  )
  build.run(c.lock(), 'out')
  repeat('out/config.json', 'again')
  assert files('again') == files('out')
  repeat('out/config.json', 'more', '--config.split_valid=0.5')
  assert files('more')['config.json'] != files('out')['config.json']


def test_a_rule_of_ones_own_is_trusted_by_name(corpus, monkeypatch):
  monkeypatch.delenv('LM_TRUST')
  monkeypatch.syspath_prepend('.')
  Path('own_rules_2.py').write_text(RULE)
  c = build_test.load(corpus).unlock()
  c.stages.quality = {
    'fn': 'lm.corpus.quality:make',
    'rules': {'short': {'fn': 'own_rules_2:short', 'most': 1}},
  }
  c.order = ('quality', *c.order)
  build.run(c.lock(), 'out')
  with pytest.raises(config.ConfigError, match='add --trust=own_rules_2'):
    repeat('out/config.json', 'again')
  repeat('out/config.json', 'again', '--trust=own_rules_2')
  assert files('again') == files('out')


def test_the_config_of_a_build_names_no_other_function(corpus):
  build.run(build_test.load(corpus), 'out')
  path = Path('out/config.json')
  stored = json.loads(path.read_text())
  stored['stages']['near'] = {'fn': 'lm.corpus.prepare:write_dataset'}
  path.write_text(json.dumps(stored))
  with pytest.raises(config.ConfigError, match='it builds no part of a build'):
    repeat('out/config.json', 'again')

"""Programs are told of lm what is there."""

import json

from lm import config
from tests import programs
from tools import describe


def test_every_function_and_exit_code_is_described(capsys):
  describe.main([])
  found = json.loads(capsys.readouterr().out)
  named = config.FACTORIES | config.STAGES
  assert {x['fn'] for x in found['functions']} == named
  assert {int(x) for x in found['exit_codes']} == {*config.EXIT_CODES}
  by_name = {x['fn']: x for x in found['functions']}
  choice = by_name['lm.evals.choice:choice']
  assert 'accuracy_per_byte' in choice['returns']
  (batch,) = [x for x in choice['parameters'] if x['name'] == 'batch_size']
  assert batch == {
    'name': 'batch_size',
    'type': 'int',
    'default': None,
    'is_required': True,
    'about': 'rows at a time; changes nothing but speed.',
  }


def test_every_program_is_listed():
  found = {x['name']: x for x in describe.programs()}
  assert {'lm.train', 'lm.sweep', 'tools.compare', 'tools.describe'} < {*found}
  assert found['lm.train']['exit_codes']['143'].startswith('stopped by SIGTERM')
  assert all(x['about'] for x in found.values())


def test_keys_are_those_of_the_config():
  path = programs.ROOT / 'configs/base.py'
  found = {x['key']: x for x in describe.keys(path)}
  c = config.load('configs/gpt/tiny.py')
  assert {'keep', 'early.patience', 'mesh.data', 'data.length'} < found.keys()
  assert {x for x in found if '()' not in x and x not in config.flatten(c)} <= {
    'model',
    'optim',
  }
  assert found['keep'] == {
    'key': 'keep',
    'default': '3',
    'comment': 'newest checkpoints that stay, at least two',
  }
  # A comment may stand above its key, or go on over two lines.
  assert found['privacy']['comment'].startswith('spec of how gradients are')
  assert found['data.temperature']['comment'].endswith('None: by weight alone')
  assert found['attention().window']['comment'].startswith('positions that')

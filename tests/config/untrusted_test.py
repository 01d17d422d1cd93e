"""A config that came with a file is data: it builds parts, and runs no code."""

import importlib
import inspect
import json
from pathlib import Path
import re

import numpy as np
import pytest

from configs import base
from lm import checkpoint, config, evaluate, plan, sample, train
from lm.config import arguments, untrusted
from lm.data.finetuning import pair_readers, readers
from lm.data.tokenizers import utf8_bytes
from lm.evals import probes
from lm.inference import engine, export_source, prompts
from tools import lm_eval

ROOT = Path(__file__).parents[2]
MARK = 'was run'
CODE = f"open({MARK!r}, 'w')"
# What strangers might write in the place of a part of a run.
HOSTILE = {
  'code of a library': {'fn': 'numpy.testing:runstring', 'astr': CODE},
  'the standard library': {'fn': 'os:system', 'command': f'touch "{MARK}"'},
  'a config file of ours': {'fn': 'lm.config.files:load', 'path': 'evil.py'},
  'the same by its door': {'fn': 'lm.config:load', 'path': 'evil.py'},
  'a tool': {'fn': 'tools.quickstart:main', 'argv': []},
  'a program': {'fn': 'lm.train:main', 'argv': []},
  'a writer': {'fn': 'lm.corpus.prepare:write_dataset', 'output': MARK},
  'an expression': {'fn': f'__import__("pathlib").Path({MARK!r}).touch()'},
  'a number': {'fn': 3},
  'a module beside the run': {'fn': 'evil:make'},
}
PROGRAMS = {
  'sample': lambda run: sample.sample(run, 'a', length=1),
  'serve': engine.restore,
  'evaluate': evaluate.evaluate,
  'export': lambda run: export_source.read(run, None, None),
  'lm_eval': lm_eval.make,
  'train': lambda run: train.main([f'--config={run / "config.json"}', WORKDIR]),
  'plan': lambda run: plan.main([f'--config={run / "config.json"}']),
}
WORKDIR = '--workdir=mine'


@pytest.fixture
def stranger(tmp_path, monkeypatch):
  """Makes runs of a stranger, of configs with some parts changed."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delenv(untrusted.VARIABLE)
  Path('evil.py').write_text(f'{CODE}\ndef make(**_): pass\n')

  def make(**changes) -> Path:
    c = config.plain(base.get_config())
    c['tokenizer'] = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
    c['evals'] = {}
    text = json.dumps(c | changes)
    meta = {'config': text, 'data': {'step': 1}, 'tokenizer': '0' * 64}
    run = Path('run')  # short, so that no line is cut
    checkpoint.save(run, 1, {'params': {'w': np.zeros(2, np.float32)}}, meta)
    (run / 'config.json').write_text(text)
    return run

  return make


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('name', HOSTILE)
def test_no_program_runs_what_a_run_names(stranger, capsys, program, name):
  """A failure means that a downloaded run can execute code."""
  run = stranger(model=HOSTILE[name])
  with pytest.raises((config.ConfigError, SystemExit)) as caught:
    PROGRAMS[program](run)
  line = capsys.readouterr().err or str(caught.value)
  assert len(line.strip().splitlines()) == 1
  assert 'fn' in line
  assert not Path(MARK).exists() and not Path('mine').exists()


READS = {'fn': 'lm.data.finetuning.readers:texts', 'path': '../secret.json'}


@pytest.mark.parametrize('program', ['sample', 'serve', 'export', 'evaluate'])
def test_no_part_of_a_model_reads_files_elsewhere(stranger, program):
  """A failure means that a downloaded run shows what is in other files."""
  run = stranger(model={'fn': 'lm.models.decoder:make', 'norm': READS})
  with pytest.raises(config.ConfigError) as caught:
    PROGRAMS[program](run)
  assert 'lies outside of run' in str(caught.value) or 'evals' in str(
    caught.value
  )


@pytest.mark.parametrize('key', ['objective', 'form'])
def test_no_prompt_reads_files_elsewhere(tmp_path, monkeypatch, key):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv(untrusted.VARIABLE)
  spec = {'fn': 'lm.data.finetuning.tasks:make', 'records': READS}
  data = {'fn': 'lm.data.stream:make', 'length': 16, key: spec}
  c = config.read_untrusted(json.dumps({'data': data}))
  with pytest.raises(config.ConfigError, match='lies outside of run'):
    prompts.of_run(c, utf8_bytes.make(), 'run')


@pytest.mark.parametrize('place', ['tokenizer', 'optim', 'data', 'loss'])
@pytest.mark.parametrize('name', HOSTILE)
def test_every_part_of_a_config_is_looked_at(place, name):
  c = {'a': {'b': {}}, place: {'inner': HOSTILE[name]}}
  with pytest.raises(config.ConfigError, match=r'fn'):
    config.read_untrusted(json.dumps(c))


def test_a_user_trusts_packages_by_name(monkeypatch):
  text = json.dumps({'model': {'fn': 'mine.models:make'}})
  monkeypatch.setenv(untrusted.VARIABLE, 'other,min')
  with pytest.raises(config.ConfigError, match=r'add --trust=mine$'):
    config.read_untrusted(text)
  config.trust('mine')
  assert config.read_untrusted(text).model.fn == 'mine.models:make'
  with pytest.raises(config.ConfigError, match='builds no part of a run'):
    config.read_untrusted(json.dumps({'a': {'fn': 'lm.config:load'}}))


def test_a_config_reads_its_own_folder_and_those_that_a_user_names(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv(untrusted.VARIABLE, 'mine')
  run, other = tmp_path / 'run', tmp_path / 'other'
  run.mkdir()
  other.mkdir()
  (run / 'link').symlink_to(other)

  def refused(path, name='path'):
    try:
      config.check_files({'a': {name: path}}, run, key='evals')
    except config.ConfigError as error:
      assert str(error).startswith(f'evals.a.{name}: ')
      return True
    return False

  inside = ['run/valid', str(run / 'valid'), 'run/../run/valid']
  outside = ['other/x', '../x', '/etc/passwd', 'run/../other/x', 'run/link/x']
  (other / 'x').touch()
  outside += ['run/l*/x', 'run/**/x', 'run/*/../../other/x']
  assert not any(map(refused, inside))
  assert all(map(refused, [*outside, 'gs://bucket/x', 'x']))
  for name in ('target_path', 'init_from', 'pro', 'anti', 'statistics'):
    assert refused('other/x', name) and not refused('run/valid', name)
  # Of a folder, all files are read.
  (run / 'texts' / 'deep').mkdir(parents=True)
  assert not refused('run/texts')
  (run / 'texts' / 'deep' / 'x.txt').symlink_to(other / 'x')
  assert refused('run/texts') and refused('run')
  config.trust('./other/', 'gs://bucket/')
  assert not any(map(refused, [*inside, 'other/x', 'run/link/x']))
  assert not refused('gs://bucket/x')
  assert refused('gs://another/x') and refused('/etc/passwd')
  config.trust('gs://short')
  assert not refused('gs://short/x') and refused('gs://shorter/x')


def test_what_is_no_path_is_refused_in_one_line(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'loop').symlink_to('loop')
  for path in ('a\0b', 'a\ud800', '*/\0', 'loop'):
    with pytest.raises(
      config.ConfigError, match=r'^data\.path: .* is no path of a file'
    ):
      config.check_files({'data': {'path': path}}, tmp_path)


def test_a_flag_names_a_file(tmp_path, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '')
  c = config.plain(base.get_config())
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(c))
  with pytest.raises(config.ConfigError, match='lies outside of'):
    config.load(file)
  keys = [k for k in config.flatten(c) if k.endswith('path')]
  config.load(file, [(key, 'data') for key in keys])


def test_what_configs_name_may_stand_in_a_run():
  """A new part that a config names belongs on the list, once it is read."""
  files = [*ROOT.glob('configs/**/*.py'), *ROOT.glob('lm/**/*.py')]
  found = {
    name
    for file in files
    for name in re.findall(r"'(lm[.\w]+:\w+)'", file.read_text())
  }
  # Those of the data factory belong to a build, and to no run.
  stages = {x for x in found if x.startswith('lm.corpus.')}
  assert stages and stages <= untrusted.STAGES
  assert not untrusted.STAGES & untrusted.FACTORIES
  found -= stages
  assert {'lm.models.decoder:make', 'lm.loss:make'} <= found
  for module in (probes, pair_readers, readers):
    found |= {
      f'{module.__name__}:{name}'
      for name, fn in vars(module).items()
      if inspect.isfunction(fn) and 'path' in inspect.signature(fn).parameters
      if not name.startswith('_')
    }
  assert found - untrusted.FACTORIES == set()


@pytest.mark.parametrize('name', sorted(untrusted.FACTORIES | untrusted.STAGES))
def test_what_is_on_the_list_has_typed_parameters(name):
  """A type that is missing would let any value through."""
  module, function = name.split(':')
  fn = getattr(importlib.import_module(module), function)
  hints = arguments.hints(fn)
  assert set(inspect.signature(fn).parameters) <= set(hints)


def fn(
  *,
  count: int = 1,
  rate: float = 0.0,
  window: int | None = None,
  names: tuple[str, ...] = (),
  pair: tuple[int, str] = (1, ''),
  spec: dict[str, float] | None = None,
):
  """Has parameters of the types that configs know."""


@pytest.mark.parametrize(
  ('given', 'wrong'),
  [
    ({'count': 2, 'rate': 3, 'window': None, 'names': ['a']}, None),
    ({'pair': [1, 'a'], 'spec': {'a': 1}}, None),
    ({'count': 2.0}, 'count=2.0 is wrong; must be an int'),
    ({'count': True}, 'count=True is wrong; must be an int'),
    ({'rate': '1'}, "rate='1' is wrong; must be a number"),
    ({'window': 'all'}, "window='all' is wrong; must be an int or None"),
    ({'names': 'abc'}, "names='abc' is wrong; must be a tuple, each a str"),
    ({'names': ('a', 1)}, 'must be a tuple, each a str'),
    ({'pair': (1, 2)}, r'must be \(an int, a str\)'),
    ({'spec': {'a': 'b'}}, 'must be a dict or None'),
  ],
)
def test_arguments_have_the_types_of_their_parameters(given, wrong):
  if wrong is None:
    arguments.check('x:fn', arguments.hints(fn), given)
  else:
    with pytest.raises(config.ConfigError, match=wrong):
      arguments.check('x:fn', arguments.hints(fn), given)

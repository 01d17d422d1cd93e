"""Configs: laws of values, strict specs, files, flags, exact JSON."""

import errno
import json
import os
from pathlib import Path
import re
import subprocess
import sys
from types import ModuleType

import hypothesis
from hypothesis import strategies as st
from ml_collections import config_dict
import pytest

from lm import config

ROOT = Path(__file__).resolve().parents[2]
BASE: config.Config = {
  'seed': 0,
  'steps': 10,
  'batch_size': 4,
  'save_every': 5,
  'optim': {'fn': 'lm_toys:tx', 'peak': 1e-3, 'nesterov': False},
  'name': 'tiny',
  'depth': 2,
  'widths': (8, 16),
  'pair': ('a', 1),
  'rules': (('embed', 'fsdp'),),
  'words': ('x', 'y'),
  'allow': (),
  'rates': [0.5, 1.0],
  'limit': None,
  'evals': {},
}


def base() -> config.Config:
  return config_dict.ConfigDict(BASE).lock()


@pytest.fixture
def toys(monkeypatch):
  """A module of factories, made by hand."""
  module = ModuleType('lm_toys')

  def tx(*, peak, steps=0, decay=0.1, nesterov=True, inner=None):
    if peak > 1:
      raise ValueError(f'peak {peak} is above 1')
    return peak, steps, decay, nesterov, inner

  def missing_file(*, path):
    return Path(path).read_bytes()

  def bug():
    raise TypeError('a bug')

  def anything(**kw):
    return kw

  def with_function(*, activation=len):
    return activation

  for fn in (tx, missing_file, bug, anything, with_function):
    setattr(module, fn.__name__, fn)
  monkeypatch.setitem(sys.modules, 'lm_toys', module)
  return module


def write(path: Path, body: str) -> Path:
  path.write_text(
    'from ml_collections import config_dict\n'
    'def get_config(word=None):\n'
    f'  c = config_dict.ConfigDict({BASE!r})\n'
    f'  {body}\n'
    '  return c\n'
  )
  return path


def refused(call, *args, **kw) -> str:
  with pytest.raises(config.ConfigError) as error:
    call(*args, **kw)
  text = str(error.value)
  assert '\n' not in text and len(text) <= 200
  assert error.value.exit_code == 2
  return text


# --- overrides


@pytest.mark.parametrize(
  ('key', 'text', 'want'),
  [
    ('steps', '20', 20),
    ('steps', '1_000', 1000),
    ('optim.peak', '3e-4', 3e-4),
    ('optim.peak', '1', 1.0),
    ('optim.nesterov', 'true', True),
    ('optim.nesterov', 'False', False),
    ('optim.fn', 'lm_toys:anything', 'lm_toys:anything'),
    ('name', '12', '12'),
    ('name', 'None', 'None'),
    ('name', 'nan', 'nan'),
    ('widths', '1,2,3', (1, 2, 3)),
    ('widths', '(1, 2)', (1, 2)),
    ('widths', '3', (3,)),
    ('widths', '()', ()),
    ('words', 'a,b', ('a', 'b')),
    ('words', '(a, b)', ('a', 'b')),
    ('words', "('a', 'b,c')", ('a', 'b,c')),
    ('words', 'a', ('a',)),
    ('pair', 'b,2', ('b', 2)),
    ('rules', "(('mlp', 'tensor'), ('vocab', 'fsdp'))",
     (('mlp', 'tensor'), ('vocab', 'fsdp'))),
    ('allow', 'data,optim', ('data', 'optim')),
    ('rates', '1,2.5', [1.0, 2.5]),
    ('limit', '7', 7),
    ('limit', 'None', None),
    ('limit', 'true', True),
    ('limit', 'word', 'word'),
  ],
)  # fmt: skip
def test_override_takes_the_declared_type(key, text, want):
  c = base()
  config.override(c, key, text)
  have = config.flatten(c)[key]
  assert have == want
  assert type(have) is type(want)
  if isinstance(want, tuple | list):
    assert [type(x) for x in have] == [type(x) for x in want]


@pytest.mark.parametrize(
  ('key', 'text', 'say'),
  [
    ('optim.peek', '1', 'unknown key optim.peek; did you mean optim.peak?'),
    ('peak', '1', 'did you mean optim.peak?'),
    ('optim.peak.x', '1', 'unknown key optim.peak.x; did you mean optim.peak?'),
    ('widht', '1', 'did you mean widths?'),
    ('steps', '1.0', 'steps: 1.0 must be an int from 1 to 2147483647'),
    ('steps', 'many', 'must be an int'),
    ('steps', 'True', 'must be an int'),
    ('steps', 'None', 'must be an int'),
    ('steps', '0', 'steps: 0 must be an int from 1 to 2147483647'),
    ('steps', '-1', 'steps: -1 is negative'),
    ('steps', '4294967296', 'from 1 to'),
    ('seed', '4294967296', 'seed: 4294967296 must be an int from 0 to'),
    ('depth', 'True', 'depth: \'True\' is wrong; must be an int, like 2'),
    ('optim.peak', 'nan', 'optim.peak: nan is refused; give a finite number'),
    ('optim.peak', 'inf', 'optim.peak: inf is refused'),
    ('optim.peak', '-Infinity', 'is refused'),
    ('optim.peak', '1e999', 'optim.peak: inf is refused'),
    ('optim.peak', '-1e-9', 'optim.peak: -1e-09 is negative'),
    ('optim.peak', '1' + '0' * 400, 'does not fit 64 bits'),
    ('optim.peak', '9' * 5000, 'must be a float'),
    ('optim.peak', 'True', 'must be a float'),
    ('optim.peak', '1e-3x', 'must be a float, like 0.001'),
    ('optim.nesterov', '1', 'must be True or False'),
    ('optim.nesterov', 'yes', 'must be True or False'),
    ('optim', '{}', 'optim: a dict is not set whole; keys below it: optim.fn'),
    ('evals', '{}', 'keys below it: none'),
    ('widths', 'a,b', 'must be a tuple with an int in this place'),
    ('widths', '1,-2', 'widths: -2 is negative'),
    ('widths', '1,nan', 'must be a tuple with an int in this place'),
    ('widths', '1,2.5', 'must be a tuple with an int in this place'),
    ('rates', '1,nan', 'rates: nan is refused'),
    ('pair', 'a,1,2', 'must be a tuple of 2'),
    ('limit', 'nan', 'limit: nan is refused'),
    ('limit', '-3', 'limit: -3 is negative'),
    ('limit', '{1: 2}', 'limit: a dict is no config value'),
    ('limit', '1j', 'limit: a complex is no config value'),
    ('limit', '(' * 5000, None),
  ],
)  # fmt: skip
def test_override_refuses(key, text, say):
  c = base()
  if say is None:  # deep nesting is only text, and must not crash the parser
    config.override(c, key, text)
    assert c.limit == text
    return
  assert say in refused(config.override, c, key, text)
  assert c.to_dict() == BASE


# --- values


@pytest.mark.parametrize(
  ('key', 'value', 'say'),
  [
    ('steps', True, 'steps: True must be an int'),
    ('batch_size', 2.0, 'batch_size: 2.0 must be an int'),
    ('seed', None, 'seed: None must be an int'),
    ('steps', {'x': 1}, "steps: {'x': 1} must be an int from 1 to"),
    ('log_every', 0, 'log_every: 0 must be an int from 1'),
    ('microbatches', 3, 'microbatches: 3 does not divide batch_size 4'),
    ('x', float('nan'), 'x: nan is refused'),
    ('x', -1, 'x: -1 is negative'),
    ('x', [(1, -0.5)], 'x: -0.5 is negative'),
    ('x', [{'a': 'b'}], "x: a='b' is refused: a dict in a tuple may hold num"),
    ('x', [{'a': {'fn': 'x:y'}}], 'a dict in a tuple may hold numbers alone'),
    ('x', ({'fn': 'x:y'},), 'a dict in a tuple may hold numbers alone'),
    ('x', ({'a': -1},), 'x: -1 is negative'),
    ('x', ({1: 1},), '1: a key is a string'),
    ('x', len, 'x: a builtin_function_or_method is no config value'),
    ('x', {'a b': 1}, "'a b': a key is a string without"),
    ('x', {'__tuple__': 1}, 'leading "__"'),
    ('x', {3: 1}, '3: a key is a string'),
  ],
)
def test_check_refuses(key, value, say):
  assert say in refused(config.check, BASE | {key: value})


def test_flatten_names_leaves():
  flat = config.flatten(base())
  assert flat['optim.peak'] == 1e-3
  assert 'optim' not in flat and 'evals' not in flat


# --- JSON

LEAVES = (
  st.none()
  | st.booleans()
  | st.integers(0, 2**63 - 1)
  | st.floats(0, allow_nan=False, allow_infinity=False)
  | st.text(st.characters(exclude_categories=['Cs']))
)
VALUES = st.recursive(
  LEAVES, lambda x: st.lists(x) | st.lists(x).map(tuple), max_leaves=8
)
TREES = st.dictionaries(
  st.sampled_from(['a', 'b', 'tuple', '温']),
  VALUES | st.dictionaries(st.sampled_from(['c', 'd']), VALUES, max_size=2),
  max_size=4,
)


@hypothesis.given(TREES)
def test_json_round_trip_is_exact(tree):
  text = config.to_json(tree)
  back = config.from_json(text)
  # repr tells 1 from 1.0 and from True, and tuples from lists
  have, want = config.flatten(back), config.flatten(tree)
  assert {k: repr(v) for k, v in have.items()} == {
    k: repr(v) for k, v in want.items()
  }
  assert set(back) == set(tree)  # empty dicts too
  assert config.to_json(back) == text
  assert back.is_locked


def test_json_does_not_depend_on_the_order_of_keys():
  turned = dict(reversed(BASE.items()))
  assert config.to_json(turned) == config.to_json(base())
  json.loads(config.to_json(base()))


@pytest.mark.parametrize(
  ('text', 'say'),
  [
    ('{', 'config is not valid JSON'),
    ('[1]', 'config is not a JSON object'),
    ('{"__tuple__": [1]}', 'config is not a JSON object'),
    ('{"x": {"__tuple__": 3}}', '__tuple__ is not a list'),
    ('{"x": NaN}', 'x: nan is refused'),
    ('{"x": -1}', 'x: -1 is negative'),
    ('{"a.b": 1}', 'a key is a string without dots'),
    ('{"x": ' + '[' * 100000, 'config is not valid JSON'),
    ('{"x": ' + '9' * 5000 + '}', 'config is not valid JSON'),
  ],
)
def test_from_json_refuses(text, say):
  assert say in refused(config.from_json, text)


def test_diff_names_keys_and_obeys_allow():
  new = BASE | {'steps': 11, 'extra': 1, 'optim': BASE['optim'] | {'peak': 1}}
  assert config.diff(base(), new) == [
    'extra: missing (checkpoint) -> 1 (now)',
    'optim.peak: 0.001 (checkpoint) -> 1 (now)',
    'steps: 10 (checkpoint) -> 11 (now)',
  ]
  assert config.diff(base(), new, allow=('optim', 'extra')) == [
    'steps: 10 (checkpoint) -> 11 (now)'
  ]
  assert len(config.diff(base(), new, allow=('opt', 'step'))) == 3
  assert config.diff({'x': 1}, {'x': True}) != []
  assert config.diff({'x': (1,)}, {'x': [1]}) != []
  assert config.diff(base(), base()) == []


# --- specs


def test_build_calls_with_plain_dicts(toys):
  spec = config_dict.ConfigDict(
    {'fn': 'lm_toys:tx', 'peak': 0.5, 'inner': {'a': {'b': (1,)}}}
  )
  peak, steps, *_, inner = config.build(spec, steps=7)
  assert (peak, steps) == (0.5, 7)
  assert type(inner) is dict and type(inner['a']) is dict
  assert inner == {'a': {'b': (1,)}}
  assert config.build({'fn': 'lm_toys:anything', 'x': 1}, y=2) == {
    'x': 1,
    'y': 2,
  }


@pytest.mark.parametrize(
  ('spec', 'kw', 'say'),
  [
    ({'peak': 1}, {}, "a spec needs the key fn; it has ['peak']"),
    ({'fn': 'lm_toys:tx', 'peek': 1}, {},
     'lm_toys:tx has no parameter peek; did you mean peak?'),
    ({'fn': 'lm_toys:tx'}, {}, 'lm_toys:tx needs peak'),
    ({'fn': 'lm_toys:tx', 'peak': 0.1, 'steps': 1}, {'steps': 2},
     'lm_toys:tx: the program itself gives steps; remove it'),
    ({'fn': 'lm_toys:tx', 'peak': 2}, {}, 'lm_toys:tx: peak 2 is above 1'),
    ({'fn': 'lm_toys:missing_file', 'path': 'no.such'}, {},
     "lm_toys:missing_file: [Errno 2] No such file or directory: 'no.such'"),
    ({'fn': 'lm_toys:anythin'}, {}, 'did you mean anything?'),
    ({'fn': 'lm.modles.decoder:make'}, {}, 'no module lm.modles; did you mean'),
    ({'fn': 'no_such_package.x:make'}, {}, 'no module no_such_package'),
    ({'fn': 'lm.config'}, {}, "fn 'lm.config' is not"),
    ({'fn': 3}, {}, 'fn 3 is not "package.module:function"'),
    ({'fn': 'os:system', 'command': 'true'}, {},
     'fn os:system: the standard library is out of bounds'),
    ({'fn': 'lm.config:EXIT_CODES'}, {}, 'has no function EXIT_CODES'),
  ],
)  # fmt: skip
def test_build_refuses(toys, spec, kw, say):
  assert say in refused(config.build, spec, **kw)


def test_build_leaves_bugs_alone(toys):
  with pytest.raises(TypeError, match='a bug'):
    config.build({'fn': 'lm_toys:bug'})


def test_build_passes_errors_that_have_an_exit_code(toys, monkeypatch):
  class Damaged(ValueError):
    exit_code = 4

  def damaged():
    raise Damaged('flipped')

  monkeypatch.setattr(toys, 'bug', damaged)
  with pytest.raises(Damaged):
    config.build({'fn': 'lm_toys:bug'})


def test_fill_adds_defaults_everywhere(toys):
  c = {
    'optim': {'fn': 'lm_toys:tx', 'peak': 0.5, 'decay': 0.2},
    'evals': {'a': {'fn': 'lm_toys:tx', 'inner': {'fn': 'lm_toys:tx'}}},
  }
  full = config.fill(c, {'optim': ('steps',)})
  assert full.optim.to_dict() == {
    'fn': 'lm_toys:tx',
    'peak': 0.5,
    'decay': 0.2,
    'nesterov': True,
    'inner': None,
  }
  assert full.evals.a.steps == 0
  assert full.evals.a.inner.decay == 0.1
  assert 'peak' not in full.evals.a
  assert config.fill(full, {'optim': ('steps',)}) == full
  assert full.is_locked
  assert c['optim'].keys() == {'fn', 'peak', 'decay'}
  say = refused(config.fill, {'x': {'fn': 'lm_toys:with_function'}})
  assert 'x.activation: a builtin_function_or_method is no config value' in say


# --- files


def test_load_applies_overrides_and_locks(tmp_path, toys):
  path = write(tmp_path / 'c.py', 'c.name = word or c.name')
  c = config.load(f'{path}:large', [('steps', '3'), ('steps', '8')])
  assert (c.name, c.steps, c.is_locked) == ('large', 8, True)
  assert config.load(path).name == 'tiny'


def test_load_lets_references_follow_an_override(tmp_path, toys):
  path = write(tmp_path / 'c.py', "c.warmup = c.get_ref('steps') // 2")
  c = config.load(path, [('steps', '100')])
  assert c.warmup == 50
  c.steps = 10
  assert c.warmup == 50  # a loaded config is values only


@pytest.mark.parametrize(
  ('body', 'say'),
  [
    ('del c["save_every"]', 'lacks the required key save_every'),
    ('c.steps = True', 'steps: True must be an int'),
    ('c.x = -5', 'x: -5 is negative'),
    ('c.x = 1 / 0', 'c.py:4: ZeroDivisionError'),
    ('c.x = = 1', 'c.py:4: SyntaxError'),
    ('import no_such_package_x', 'c.py:4: ModuleNotFoundError'),
    ('raise ValueError("give A or B")', 'c.py:4: give A or B'),
    ('c = 3', 'get_config() must return a ConfigDict'),
    ('c.x = config_dict.required_placeholder(int)', 'declare a default'),
    ('c.x = {}; c.y = {"z": c.x}', 'is the same dict as '),
    ('part = {}; c.x = {"one": part, "two": part}',
     'x.two: is the same dict as x.one: make a new one for each'),
    ('c.optim.fn = "lm.data.tokenzer:make"',
     'optim: fn lm.data.tokenzer: no module lm.data.tokenzer'),
  ],
)  # fmt: skip
def test_load_refuses(tmp_path, toys, body, say):
  assert say in refused(config.load, write(tmp_path / 'c.py', body))


def test_words_that_a_config_cannot_read_are_refused(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert refused(config.load, 'configs/gpt/tiny.py:small') == (
    'configs/gpt/tiny.py: takes no word: leave out :small'
  )
  for name, sizes in (
    ('gpt/gpt2', 'small, medium, large, xl'),
    ('bert/bert', 'base, large'),
    ('t5/t5', 'small, base, large, v1_1_small, v1_1_base, v1_1_large'),
  ):
    said = refused(config.load, f'configs/{name}.py:124M')
    where, _, said = said.partition(': ')
    assert re.fullmatch(rf'configs/{name}\.py:\d+', where)
    assert said == f"'124M' is no size: give one of {sizes}"


def test_load_names_the_nearest_file(tmp_path):
  write(tmp_path / 'small.py', 'pass')
  assert 'small.py?' in refused(config.load, tmp_path / 'smal.py')
  assert 'is a Python file' in refused(config.load, tmp_path / 'c.yaml')
  (tmp_path / 'empty.py').write_text('')
  assert 'no function get_config' in refused(config.load, tmp_path / 'empty.py')


def test_load_reads_the_json_of_a_run(tmp_path, toys, monkeypatch):
  monkeypatch.setenv('LM_TRUST', 'lm_toys')
  path = tmp_path / 'config.json'
  path.write_text(config.to_json(base()))
  c = config.load(path, [('optim.peak', '0.5')])
  assert (c.optim.peak, c.widths, c.is_locked) == (0.5, (8, 16), True)
  assert config.diff(config.load(str(path)), base()) == []
  path.write_text('{"steps": 1')
  assert f'{path}: config is not valid JSON' in refused(config.load, path)
  path.write_text('{"steps": 1}')
  assert f'{path}: lacks the required key seed' in refused(config.load, path)
  near = refused(config.load, tmp_path / 'confg.json')
  assert near.endswith('config.json?')


# --- programs


def run(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
  """Runs a program that only parses, and prints whether jax came along."""
  code = (
    'import atexit, sys; from lm import config\n'
    'atexit.register(lambda: print("jax" in sys.modules))\n'
    'c, workdir = config.parse(sys.argv[1:], "Tries flags.")\n'
    'print(config.flatten(c)["optim.peak"], workdir)'
  )
  own = any(flag.startswith('--config=') for flag in flags)
  named = [] if own else [f'--config={path}']
  return subprocess.run(
    [sys.executable, '-c', code, *named, *flags],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': f'{ROOT}:{path.parent}'},
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('configs')
  (folder / 'toy_module.py').write_text(
    'import jax\ndef tx(*, peak, nesterov): return 1\n'
  )
  return write(folder / 'c.py', 'c.optim.fn = "toy_module:tx"')


@pytest.mark.process
@pytest.mark.parametrize(
  ('flags', 'say'),
  [
    (['--config.optim.peak=nan'], 'optim.peak: nan is refused'),
    (['--config.optim.peak', '-5'], 'optim.peak: -5 is negative'),
    (
      ['--config.optim.fn=toy_module:ty'],
      'toy_module has no function ty; known: tx',
    ),
    (['--config.optim.fn=toy_modul:tx'], 'did you mean toy_module?'),
    (['--config=configs/base.py', '--config.data.lengths=3'],
     "data.lengths: '3' is wrong; must be a tuple, each (an int, an int)"),
    (['--config=configs/base.py', '--config.init_paths=((1,),)'],
     'init_paths: ((1,),) must be a tuple, each a str'),
  ],
)  # fmt: skip
def test_a_wrong_value_ends_in_one_line_before_jax(config_file, flags, say):
  done = run(config_file, '--workdir=w', *flags)
  assert done.returncode == 2
  assert done.stdout.split() == ['False']
  assert done.stderr.startswith('error: ') and say in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.process
def test_a_wrong_parameter_is_found_in_the_source(tmp_path, config_file):
  body = 'c.optim.fn = "toy_module:tx"; c.optim.nestrov = True'
  done = run(write(config_file.parent / 'd.py', body), '--workdir=w')
  assert done.returncode == 2
  assert done.stdout.split() == ['False']
  assert done.stderr == (
    'error: optim: toy_module:tx has no parameter nestrov; did you mean'
    ' nesterov?\n'
  )


def test_parse_reads_both_forms_of_a_flag(tmp_path, toys):
  path = str(write(tmp_path / 'c.py', 'pass'))
  for argv in (
    [f'--config={path}', '--workdir=w', '--config.optim.peak=0.5'],
    ['--config', path, '--workdir', 'w', '--config.optim.peak', '0.5'],
  ):
    c, workdir = config.parse(argv, 'x')
    assert (c.optim.peak, workdir) == (0.5, Path('w'))


@pytest.mark.parametrize(
  ('flags', 'say'),
  [
    (['--confg=x'], "unknown argument '--confg=x'; did you mean --config?"),
    (['--steps=3'], 'unknown argument'),
    (['word'], "unknown argument 'word'"),
    (['--config'], '--config needs a value'),
    (['--config', '--workdir=w'], '--config needs a value'),
    (['--workdir=w'], '--config is missing'),
    (['--config=c.py'], '--workdir is missing'),
    (['--config=c.py', '--workdir='], '--workdir is missing'),
    (['--config=c.py', '--config=d.py'], '--config is given twice'),
    (['--config=nowhere.py', '--workdir=w'], 'nowhere.py: no such file'),
  ],
)
def test_parse_refuses(capsys, flags, say):
  with pytest.raises(SystemExit) as done:
    config.parse(flags, 'x')
  assert done.value.code == 2
  err = capsys.readouterr().err
  assert err.startswith(f'error: {say}') and err.count('\n') == 1


def test_help_lists_flags_and_exit_codes(capsys):
  with pytest.raises(SystemExit) as done:
    config.parse(['--help'], 'Trains a model.')
  out = capsys.readouterr().out
  assert done.value.code == 0
  assert 'Trains a model.' in out and '--workdir' in out
  assert config.exit_code_help('lm.train') in out


def test_main_tells_messages_from_bugs(capsys):
  class Locked(RuntimeError):
    exit_code = 3

  def ends_with(outcome):
    def program(argv):
      if isinstance(outcome, BaseException):
        raise outcome
      return outcome

    with pytest.raises(SystemExit) as done:
      config.main(program)
    return done.value.code, capsys.readouterr().err

  assert ends_with(None) == (0, '')
  assert ends_with(143) == (143, '')
  assert ends_with(KeyboardInterrupt()) == (130, 'stopped: by Ctrl-C\n')
  assert ends_with(Locked('by pid 7\non host a')) == (
    3,
    'error: by pid 7 on host a\n',
  )
  assert ends_with(config.ConfigError('x: wrong')) == (2, 'error: x: wrong\n')
  code, err = ends_with(OSError(errno.ENOSPC, 'disk full', 'metrics.jsonl'))
  assert code == 5 and 'metrics.jsonl' in err
  with pytest.raises(ValueError, match='from jax'):
    ends_with(ValueError('from jax'))
  with pytest.raises(OSError):
    ends_with(OSError(errno.EPIPE, 'pipe'))


def test_a_long_message_keeps_its_front_and_its_end():
  text = str(config.ConfigError('file.py: ' + 'x' * 500 + '; do this'))
  assert len(text) <= 200
  assert text.startswith('file.py: ') and text.endswith('; do this')


@pytest.mark.process
def test_submodules_are_found_from_the_package():
  code = (
    'import sys, lm; assert "jax" not in sys.modules and "config" in dir(lm);'
    'assert lm.config.build; assert not hasattr(lm, "confg")'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)

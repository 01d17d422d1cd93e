"""Changes of a run's data by step, as configs, flags and JSON name them."""

import pytest

from lm import checkpoint, config, train
from lm.config import untrusted
from lm.training import setup

CHANGES = ((2, {'one': 0.0, 'two': 1.0}),)
FILE = """
from tests import tiny_config

def get_config():
  c = tiny_config.get_config({folder!r}).unlock()
  del c.data['seconds'], c.data['hang_at']
  del c.evals['pause']
  c.data.fn = 'lm.data.stream:make'
  path = {folder!r} + '/train'
  c.data.sources = {{
    'two': {{'path': path, 'weight': 0.0}},
    'one': {{'path': path, 'weight': 1.0}},
  }}
  c.steps, c.save_every, c.optim.warmup = 4, 2, 1
  c.data.changes = {changes!r}
  return c.lock()
"""


@pytest.fixture
def file(data, tmp_path, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '/,tests')

  def write(changes=()):
    path = tmp_path / 'c.py'
    path.write_text(FILE.format(folder=str(data), changes=changes))
    return path

  return write


def counts(c: config.Config, step: int) -> dict[str, int]:
  """Counts the rows of each source that a run has read before a step."""
  return setup.assemble(setup.fill(c)).data.state(step)['counts']


WANT = {
  1: {'one': 4, 'two': 0},
  2: {'one': 8, 'two': 0},
  4: {'one': 8, 'two': 8},
}


def test_weights_change_by_a_config_a_flag_and_json(file, tmp_path, one_device):
  del one_device
  flag = "((2, {'one': 0.0, 'two': 1.0}),)"
  ways = {
    'file': config.load(file(CHANGES)),
    'flag': config.load(file(), [('data.changes', flag)]),
    'value': config.load(file(), [('data.changes', CHANGES)]),
  }
  config.store(ways['file'], tmp_path / 'config.json')
  ways['json'] = config.load(tmp_path / 'config.json')
  for name, c in ways.items():
    assert {n: counts(c, n) for n in WANT} == WANT, name
    assert config.diff(c, ways['file']) == []
  assert counts(config.load(file()), 4) == {'one': 16, 'two': 0}


def test_a_run_is_resumed_with_its_changes(file, tmp_path, one_device):
  """Also from its own config.json; what is to come may be edited by allow."""
  del one_device
  run = tmp_path / 'run'
  c = config.load(file(CHANGES), [('steps', 2)])
  train.train(c, run)
  stored = config.load(run / 'config.json', [('steps', 4), ('allow', 'steps')])
  assert stored.data.changes == CHANGES
  train.train(stored, run)
  have = checkpoint.read_meta(run, 4)['data']
  assert have['counts'] == WANT[4]
  longer = [('steps', 6), ('allow', 'steps,data.changes')]
  new = (*CHANGES, (4, {'one': 1.0, 'two': 0.0}))
  train.train(config.load(file(new), longer), run)
  have = checkpoint.read_meta(run, 6)['data']
  assert have['counts'] == {'one': 16, 'two': 8}
  past = ((1, {'one': 0.0, 'two': 1.0}),)
  longer[0] = ('steps', 8)
  with pytest.raises(config.ConfigError, match='weights before step 6 differ'):
    train.train(config.load(file(past), longer), run)


def test_lengths_of_rows_change_by_a_flag(file, one_device):
  del one_device
  c = config.load(file(), [('data.lengths', '((0, 8), (2, 16))')])
  data = setup.assemble(setup.fill(c)).data
  assert data.batch(0).tokens.shape == (8, 8)
  assert data.batch(2).tokens.shape == (4, 16)


def test_shares_follow_temperature_and_caps_by_flags(file, one_device):
  """A config that declares neither has both by the defaults of the function."""
  del one_device
  both = [('data.sources.two.weight', '3.0')]
  assert counts(config.load(file(), both), 4) == {'one': 4, 'two': 12}
  # The same data twice: their sizes do not part them.
  hot = config.load(file(), [*both, ('data.temperature', '2')])
  assert counts(hot, 4) == {'one': 4, 'two': 12}
  samples = setup.assemble(setup.fill(hot)).data.samples
  assert samples is not None
  most = 9.5 / samples.cuts['two'].count
  capped = config.load(file(), [*both, ('data.max_epochs', str(most))])
  assert counts(capped, 4)['two'] in (9, 10)
  assert counts(config.load(file(), [*both, ('data.max_epochs', '1')]), 4) == {
    'one': 4,
    'two': 12,
  }
  with pytest.raises(config.ConfigError) as caught:
    counts(config.load(file(), [('data.max_epochs', str(most))]), 4)
  assert 'in the 16 windows from step 0 on; give' in str(caught.value)


def test_a_capped_run_is_resumed_as_it_was(file, tmp_path, one_device):
  del one_device
  flags = [('data.sources.two.weight', '3.0'), ('data.max_epochs', '0.06')]
  c = config.load(file(), flags)
  data = setup.assemble(setup.fill(c)).data
  state = setup.assemble(setup.fill(c), position=data.state(2)).data.state(4)
  assert state == data.state(4)
  longer = config.load(file(), [*flags, ('steps', '5')])
  with pytest.raises(config.ConfigError, match='weights before step 2 differ'):
    setup.assemble(setup.fill(longer), position=data.state(2))


@pytest.mark.parametrize(
  ('key', 'text', 'say'),
  [
    ('changes', "((2, {'one': 1.0}),)", "step 2 has weights of ['one']; give"),
    (
      'changes',
      "((2, {'one': 0, 'two': 0}),)",
      'data.changes: weights [0, 0] at step 2',
    ),
    (
      'changes',
      "((2, {'one': 'x', 'two': 0}),)",
      'must be a tuple, each (an int, a dict)',
    ),
    ('changes', "((0, {'one': 1, 'two': 0}),)", 'step 0 is not after the one'),
    ('changes', '5', "data.changes: '5' is wrong; must be a tuple, each (an"),
    ('temperature', '0', 'data.temperature: 0 is not a positive number'),
    ('temperature', 'hot', "data.temperature: 'hot' is wrong; must be"),
    ('max_epochs', '0.0', 'data.max_epochs: 0.0 is not a positive number'),
    ('lengths', '((0, 5),)', 'data.lengths: 5 at step 0 does not divide'),
    ('lengths', '((0, 0),)', 'data.lengths: 0 at step 0 does not divide'),
  ],
)
def test_a_wrong_change_is_one_line(file, one_device, key, text, say):
  del one_device
  with pytest.raises(config.ConfigError) as caught:
    setup.assemble(setup.fill(config.load(file(), [(f'data.{key}', text)])))
  assert say in str(caught.value) and len(str(caught.value)) <= 200

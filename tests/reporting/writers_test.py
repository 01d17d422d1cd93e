"""Writers see each line of a run once, and never harm it."""

import json
import re
import threading

import pytest

from lm import config, train
from lm.reporting import metrics_log, to_wandb, writers
from lm.training import setup
from tests import programs

# Lines that `recorder` was given, as (step, names), and what it was opened with
SEEN: list[tuple[int, set[str]]] = []
OPENED: list[tuple[writers.About, dict]] = []
CLOSED: list[bool] = []


class Recorder:
  def __init__(self, fail_at: int | None):
    self.fail_at = fail_at

  def write(self, step, values):
    print('a writer that talks')
    if step == self.fail_at:
      raise OSError('no network')
    SEEN.append((step, set(values)))

  def close(self):
    CLOSED.append(True)


def recorder(about, *, colour: str = 'red', fail_at: int | None = None):
  """Makes a writer that remembers what it sees."""
  OPENED.append((about, {'colour': colour}))
  return Recorder(fail_at)


def refuses(about):
  """Makes no writer."""
  raise ValueError('the project has no room')


def breaks(about):
  """Makes no writer, since something of its own is broken."""
  raise RuntimeError('no server')


@pytest.fixture(autouse=True)
def forget(one_device):
  for kept in (SEEN, OPENED, CLOSED):
    kept.clear()


def make(data, fn='recorder', **changes):
  c = programs.make(
    data, **{'log_every': 3, 'steps': 12, 'eval_every': 6, **changes}
  )
  with c.unlocked():
    c.log.writer = {'fn': f'tests.reporting.writers_test:{fn}'}
  return c


def written(workdir):
  lines = metrics_log.read(workdir / 'metrics.jsonl')
  return [(x['step'], x.keys() - {'step'}) for x in lines]


def test_a_writer_of_ones_own_sees_what_the_log_has(data, tmp_path, capfd):
  c = make(data, log__project='birds', log__norms_every=6)
  train.train(c, tmp_path / 'run')
  assert written(tmp_path / 'run') == SEEN
  names = {name for _, names in SEEN for name in names}
  assert {'loss_nats', 'valid/loss_nats', 'pause/tables'} <= names
  assert 'grad_norm/layers_0/attention' in names
  (about, settings), *more = OPENED
  assert not more and settings == {'colour': 'red'} and CLOSED == [True]
  assert (about.project, about.name, about.step) == ('birds', 'run', 0)
  assert about.config['optim.peak'] == 1e-2
  out = capfd.readouterr()
  # Programs read the stdout of those that train.
  assert 'a writer that talks' in out.err and not out.out


def test_a_run_that_goes_on_shows_no_line_twice(data, tmp_path):
  train.train(make(data, log_every=1), tmp_path / 'run')
  assert len(set(map(str, SEEN))) == len(SEEN)
  all_seen = [*SEEN]
  # Killed when two more steps were written than saved.
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 6)
  SEEN.clear()
  stored = json.loads((again / writers.NAME).read_text())
  (name,) = stored['seen']
  stored['seen'][name] = [8, sorted(dict(all_seen)[8])]
  (again / writers.NAME).write_text(json.dumps(stored))
  train.train(make(data, log_every=1), again)
  assert [x for x in all_seen if x[0] > 8] == SEEN
  assert len({about.id for about, _ in OPENED}) == 1
  assert [about.step for about, _ in OPENED] == [0, 6]


def test_an_evaluation_that_a_kill_left_out_is_seen(data, tmp_path):
  train.train(make(data), tmp_path / 'run')
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 6)
  stored = json.loads((again / writers.NAME).read_text())
  (name,) = stored['seen']
  # Of the lines of step 6, it has seen those of training and of `pause`.
  stored['seen'][name] = [6, sorted({*SEEN[1][1], 'pause/tables'})]
  (again / writers.NAME).write_text(json.dumps(stored))
  log = again / 'metrics.jsonl'
  lines = log.read_bytes().splitlines(keepends=True)
  log.write_bytes(b''.join(x for x in lines if b'"step": 6, "valid' not in x))
  want = [x for x in SEEN if x[0] > 6 or any('valid/' in y for y in x[1])]
  SEEN.clear()
  train.train(make(data), again)
  assert [x for x in want if x[0] >= 6] == SEEN


def test_a_writer_that_is_new_or_lost_lines_gets_them_from_the_log(
  data, tmp_path, monkeypatch
):
  train.train(make(data, log_every=1), tmp_path / 'run')
  all_seen = [*SEEN]
  for seen in (None, (4, sorted(dict(all_seen)[4]))):
    again = programs.rewind(tmp_path / 'run', tmp_path / f'{seen is None}', 6)
    SEEN.clear()
    if seen is None:
      (again / writers.NAME).unlink()
    monkeypatch.setattr(Recorder, 'seen', seen, raising=False)
    train.train(make(data, log_every=1), again)
    assert [x for x in all_seen if x[0] > (seen or (0,))[0]] == SEEN


def test_a_run_that_went_back_shows_each_step_once(data, tmp_path, monkeypatch):
  monkeypatch.setenv('FAULT', 'nan_grad@14-18')
  c = make(data, log_every=1, steps=24, max_skipped=3, eval_every=0)
  train.train(c, tmp_path / 'run')
  steps = [step for step, names in SEEN if 'loss_nats' in names]
  assert steps == [*range(1, 25)]
  assert (18, {'rollback/to'}) in SEEN


def test_a_writer_that_fails_costs_one_warning(data, tmp_path, capfd):
  c = make(data)
  with c.unlocked():
    c.log.writer.fail_at = 6
  train.train(c, tmp_path / 'run')
  assert [step for step, _ in SEEN] == [3]
  assert written(tmp_path / 'run')[-1][0] == 12
  (line,) = [x for x in capfd.readouterr().err.splitlines() if 'log.to' in x]
  assert line == (
    'lm: log.to: tests.reporting.writers_test:recorder failed at step 6 and '
    'gets no more, while metrics.jsonl does: OSError: no network'
  )


def test_a_writer_that_cannot_be_opened_costs_one_warning(
  data, tmp_path, capfd
):
  train.train(make(data, 'breaks'), tmp_path / 'run')
  assert written(tmp_path / 'run')[-1][0] == 12
  (line,) = [x for x in capfd.readouterr().err.splitlines() if 'log.to' in x]
  assert line.endswith(
    'failed at step 0 and gets no more, while metrics.jsonl does: '
    'RuntimeError: no server'
  )


def test_settings_that_a_writer_refuses_are_an_error(data, tmp_path):
  with pytest.raises(config.ConfigError) as error:
    train.train(make(data, 'refuses'), tmp_path / 'run')
  assert str(error.value) == (
    'tests.reporting.writers_test:refuses: the project has no room'
  )


def test_a_damaged_list_of_lines_is_begun_again(data, tmp_path, capfd):
  workdir = tmp_path / 'run'
  train.train(make(data, steps=6, eval_every=0), workdir)
  for text in ('[', '{}', '{"id": 1, "seen": {"x": 5}}'):
    (workdir / writers.NAME).write_text(text)
    train.train(make(data, steps=6, eval_every=0), workdir)
    json.loads((workdir / writers.NAME).read_text())
  # To the writer it is a new run each time, with all lines.
  assert len({about.id for about, _ in OPENED}) == 4
  assert [step for step, _ in SEEN] == [3, 6] * 4
  assert capfd.readouterr().err.count('cannot be read, so a new one is') == 3


def test_an_end_that_hangs_is_left(data, tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(writers, '_CLOSE_SECONDS', 0.05)
  monkeypatch.setattr(Recorder, 'close', lambda _: threading.Event().wait())
  train.train(make(data), tmp_path / 'run')
  assert 'failed at the end' in capfd.readouterr().err


def test_an_unknown_writer_is_one_line(data, tmp_path):
  with pytest.raises(config.ConfigError) as error:
    train.train(programs.make(data, log__to='wnadb'), tmp_path / 'run')
  assert str(error.value) == (
    "log.to: 'wnadb' is unknown: give some of tensorboard, trackio, wandb, or "
    'a function of yours as log.writer'
  )
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['tensorboard', 'trackio', 'wandb'])
def test_a_package_that_is_missing_is_one_line(
  data, tmp_path, name, monkeypatch
):
  package = {'tensorboard': 'tensorboardX'}.get(name, name)
  c = setup.fill(programs.make(data, log__to=name))  # which looks for modules
  monkeypatch.setattr(writers.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(config.ConfigError) as error:
    train.train(c, tmp_path / 'run')
  assert str(error.value) == (
    f'log.to: {name} needs {package}, which is not installed: '
    f"pip install -e '.[{name}]'"
  )
  assert not (tmp_path / 'run').exists()


def test_logins_are_not_shown(data, tmp_path):
  c = make(data, steps=6, eval_every=0)
  with c.unlocked():
    c.evals.valid.path = 'https://me:secret@host/valid'
  train.train(c, tmp_path / 'run')
  assert OPENED[0][0].config['evals.valid.path'] == 'https://host/valid'


@pytest.mark.parametrize(
  'text',
  [
    '{"id": "a", "seen": {"x": [1e999, []]}}',
    '{"id": "../*", "seen": {}}',
    '[' * 100_000,
  ],
)
def test_a_strangers_list_of_lines_is_begun_again(data, tmp_path, text):
  (tmp_path / writers.NAME).write_text(text)
  writers.Writers(make(data), tmp_path, 0)
  assert re.fullmatch('[0-9a-f]{8}', OPENED[0][0].id)


def test_a_part_of_a_wandb_run_lies_in_the_run(tmp_path):
  """It is cut to whole records, which nothing outside of a run may be."""
  run, out = tmp_path / 'run/wandb', tmp_path / 'out'
  for folder in (run / 'offline-run-1', run / 'offline-run-2', out):
    folder.mkdir(parents=True)
  (run / 'offline-run-2/run-mine.wandb').touch()
  (out / 'run-mine.wandb').touch()
  (run / 'offline-run-1/run-mine.wandb').symlink_to(out / 'run-mine.wandb')
  (run / 'offline-run-3').symlink_to(out)
  (found,) = to_wandb.parts(run.parent, 'mine')
  assert found == run / 'offline-run-2/run-mine.wandb'


def test_names_of_lines_may_be_anything(data, tmp_path):
  name = 'tests.reporting.writers_test:recorder'
  stored = {'id': 'mine', 'seen': {name: [3, [{'a': 1}]]}}
  (tmp_path / writers.NAME).write_text(json.dumps(stored))
  opened = writers.Writers(make(data), tmp_path, 0)
  opened.write(3, {'loss_nats': 1.0})
  assert OPENED[0][0].id == 'mine' and [(3, {'loss_nats'})] == SEEN


def test_secrets_of_a_writer_are_not_shown(data, tmp_path):
  c = make(data)
  with c.unlocked():
    c.log.writer.update(api_key='abc', wandb_token='abc', colour='abc')
  shown = writers._without_secrets(c)
  hidden = {key for key, value in shown.items() if value == '***'}
  assert hidden == {'log.writer.api_key', 'log.writer.wandb_token'}
  assert shown['log.writer.colour'] == 'abc'

"""A run is started again from its record, and two runs are compared."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from lm import config, train
from lm.reporting import metrics_log
from lm.runtime import code_state
from lm.training import run_record
from tests import programs
from tools import compare_runs, diff, rerun

# An edit of a module of lm, which every program imports.
_BEFORE = (programs.ROOT / 'lm/errors.py').read_text().splitlines()[:3]
PATCH = """diff --git a/lm/errors.py b/lm/errors.py
--- a/lm/errors.py
+++ b/lm/errors.py
@@ -1,3 +1,4 @@
 {}
+print('\x1b[1Apatched')
 {}
 {}
""".format(*_BEFORE)


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
  """A run of one process with one device, as tools.rerun starts it."""
  workdir = tmp_path_factory.mktemp('rerun') / 'run'
  flags = programs.flags(data, workdir, steps=6, save_every=6)
  process = programs.Process('train', flags, workdir.parent / 'output')
  assert process.wait() == 0, process.text()
  return workdir


def edited(run, folder, edit):
  """Copies a run, whose record `edit` changes."""
  shutil.copytree(run, folder)
  record = run_record.read(folder)
  edit(record)
  (folder / run_record.NAME).write_text(json.dumps(record))
  return folder


def with_code(commit, patch=None):
  """Makes an edit: the run had another lm, of a commit and with a patch."""

  def edit(record):
    digest = patch and hashlib.sha256(patch.encode()).hexdigest()
    record['patches'] = {digest: patch} if patch else {}
    record['starts'][0]['code'] = {
      'lm': '0' * 64,
      'package': {'commit': commit, 'patch': digest, 'left_out': []},
      'here': None,
    }

  return edit


def trusted(data):
  """The words that a config needs here: its functions and files are tests'."""
  return ['--trust=tests', f'--trust={data}/']


@pytest.mark.process
def test_it_gives_the_same_bits(run, data, tmp_path, start):
  output = tmp_path / 'again'
  process = start(
    'tools.rerun', [str(run), f'--workdir={output}', *trusted(data)]
  )
  assert process.wait() == 0, process.text()
  assert process.text().endswith('nothing differs\n')
  first, second = (programs.losses(x) for x in (run, output))
  assert first == second
  assert {x.part for x in diff.differences(run, output)} <= {'config'}


@pytest.mark.process
def test_another_run_differs(run, data, tmp_path, start):
  output = tmp_path / 'again'
  words = [*trusted(data), '--', '--config.seed=1']
  process = start('tools.rerun', [str(run), f'--workdir={output}', *words])
  assert process.wait() == 1, process.text()
  assert 'metrics diverge at step' in process.text()
  found = diff.differences(run, output)
  assert (found[0].part, found[0].name) == ('config', 'seed')
  assert found[0].values == (0, 1)
  assert found[-1].part == 'metrics'


@pytest.mark.slow
@pytest.mark.process
def test_its_commit_and_a_trusted_patch_are_used(run, data, tmp_path, start):
  state = code_state.of(programs.ROOT)
  if state is None:
    pytest.skip('needs the repository of lm')
  folder = edited(run, tmp_path / 'run', with_code(state.commit, PATCH))
  words = [str(folder), f'--workdir={tmp_path / "again"}', *trusted(data)]
  refused = start('tools.rerun', words)
  assert refused.wait() == 2
  # Shown as it is, it could hide lines of itself.
  assert "+print('\\x1b[1Apatched')" in refused.text()
  assert refused.text().endswith('read it, and give --trust\n')
  assert not (tmp_path / 'again').exists()
  process = start('tools.rerun', [*words, '--trust'])
  assert process.wait() in (0, 1), process.text()
  assert '\n\x1b[1Apatched\n' in process.text()  # a module of lm says it
  assert 'in common\n' in process.text()


@pytest.mark.parametrize(
  ('edit', 'say'),
  [
    (lambda record: record['starts'].clear(), 'has no record.json'),
    (with_code('0' * 40), 'git worktree add: fatal: invalid reference'),
    (with_code('0' * 40, PATCH), 'read it, and give --trust'),
  ],
)
def test_what_cannot_be_had_is_one_line(run, tmp_path, edit, say):
  if code_state.of(programs.ROOT) is None:
    pytest.skip('needs the repository of lm')
  folder = edited(run, tmp_path / 'run', edit)
  with pytest.raises(config.ConfigError) as caught:
    rerun.rerun(folder, tmp_path / 'again')
  assert say in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.process
def test_a_program_reads_what_came_of_it(run, data, tmp_path):
  """Only the result is on stdout; and --trust alone takes no folder."""
  output = tmp_path / 'again'
  words = ['--json', *trusted(data), f'--workdir={output}', '--trust', str(run)]
  done = subprocess.run(
    [sys.executable, '-m', 'tools.rerun', *words],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['workdir'] == str(output) and found['trained'] == 0
  assert f'--workdir={output}' in found['command']
  assert found['warnings'] == []
  assert found['comparison'] == {
    'differs': False,
    'metrics_steps': 6,
    'metrics': None,
    'checkpoints_steps': 1,
    'checkpoints': None,
    'distance': '',
  }
  assert 'step 0 of 6' in done.stderr
  with pytest.raises(SystemExit) as ended:
    config.main(lambda _: compare_runs.main([str(run), str(output), '--json']))
  assert ended.value.code == 0


def test_where_runs_diverge_is_json_too(run, tmp_path, capsys):
  other = tmp_path / 'run'
  shutil.copytree(run, other)
  (other / 'metrics.jsonl').unlink()
  for row in metrics_log.read(run / 'metrics.jsonl'):
    row['loss_nats'] += row['step'] > 3
    metrics_log.append(other / 'metrics.jsonl', row)
  # An evaluation of the same step hides nothing.
  for folder in (run, other):
    metrics_log.append(folder / 'metrics.jsonl', {'step': 4, 'valid/x': 1.0})
  assert compare_runs.main([str(run), str(other), '--json']) == 1
  found = json.loads(capsys.readouterr().out)
  assert found['differs'] and found['metrics']['step'] == 4
  assert found['metrics']['names'] == ['loss_nats']
  assert found['checkpoints'] is None


def test_an_empty_word_trusts_nothing(run):
  with pytest.raises(config.ConfigError, match='--trust= is empty'):
    rerun.main([str(run), '--trust='])


def test_a_run_in_a_bucket_is_to_be_copied():
  with pytest.raises(config.ConfigError, match='copy the folder here'):
    rerun.main(['gs://bucket/run'])


def test_nan_is_no_difference():
  row = {'loss_nats': float('nan')}
  assert [*diff._compared('metrics', row, dict(row))] == []


def test_nothing_is_overwritten(run):
  with pytest.raises(config.ConfigError, match='is not empty'):
    rerun.rerun(run, run)


def test_the_most_telling_differences_come_first(run, tmp_path, capsys):
  def edit(record):
    start = record['starts'][-1]
    start['packages'] |= {'jax': '0.1', 'absl-py': '0.2'}
    start['data']['fingerprint'] = 'other'
    start['variables']['XLA_FLAGS'] = '--fast'

  other = edited(run, tmp_path / 'run', edit)
  c = config.from_json((other / 'config.json').read_text())
  with c.unlocked():
    c.keep, c.optim.peak = 7, 0.5
  config.store(c, other / 'config.json')
  found = diff.differences(run, other)
  assert [(x.part, x.name) for x in found] == [
    ('config', 'optim.peak'),
    ('config', 'keep'),
    ('data', 'fingerprint'),
    ('environment', 'jax'),
    ('environment', 'absl-py'),
    ('environment', 'XLA_FLAGS'),
  ]
  diff.main([str(run), str(other), '--json'])
  assert json.loads(capsys.readouterr().out)[1] == {
    'part': 'config',
    'name': 'keep',
    'values': [20, 7],
  }
  diff.main([str(run), str(run)])
  assert capsys.readouterr().out == 'nothing differs\n'


def test_a_folder_of_no_run_is_refused(tmp_path, run):
  with pytest.raises(config.ConfigError, match='no folder of a run'):
    diff.differences(run, tmp_path)


def test_a_run_without_record_is_compared(data, run, tmp_path):
  """Runs of an earlier version have none."""
  other = tmp_path / 'run'
  shutil.copytree(run, other)
  (other / run_record.NAME).unlink()
  parts = {x.part for x in diff.differences(run, other)}
  assert parts == {'data', 'code', 'environment'}


def test_train_takes_the_arguments_for_its_record(data, tmp_path):
  mesh = {'mesh__fsdp': 2, 'mesh__tensor': 2}
  flags = programs.flags(data, tmp_path / 'run', steps=6, save_every=6, **mesh)
  c, workdir = config.parse(flags, '')
  train.train(c, workdir, asked=config.asked())
  (found,) = run_record.read(workdir)['starts']
  assert found['command'][-len(flags) :] == flags

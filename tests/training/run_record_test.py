"""Every start of a run is recorded, with what decides over its numbers."""

import json
import shutil
import subprocess

import pytest

from lm import config, errors, train
from lm.checkpoint import manifest
from lm.training import run_record
from tests import programs

IDENTITY = ('-c', 'user.name=a', '-c', 'user.email=a@b')


def starts(workdir):
  return run_record.read(workdir)['starts']


def test_each_start_is_recorded(data, tmp_path):
  workdir = tmp_path / 'run'
  c = programs.on_eight(data, steps=6, save_every=3)
  train.train(c, workdir)
  shutil.rmtree(manifest.directory(workdir, 6))
  train.train(c, workdir)
  first, second = starts(workdir)
  assert (first['step'], second['step']) == (0, 3)
  assert first['command'] is None and first['config'] is None  # no program's
  assert first['seed'] == 0
  assert first['data'].keys() == {'fingerprint', 'datasets'}
  assert first['data'] == second['data']
  assert first['packages']['jax'] == __import__('jax').__version__
  assert len(first['code']['lm']) == 64
  assert 'jax' in first['machine']['devices']
  assert first['machine'] == second['machine']


def test_the_parent_of_a_run_is_recorded(data, trained, tmp_path):
  """It is named by init_from, or by its config.json, unless that is our own."""
  changes = {'steps': 6, 'save_every': 6, 'mesh__fsdp': 2, 'mesh__tensor': 2}
  c = programs.make(data, init_from=trained, optim__peak=0.5, **changes)
  train.train(c, tmp_path / 'child')
  (found,) = starts(tmp_path / 'child')
  assert found['parent']['folder'] == str(trained)
  assert found['parent']['changes'] == {
    'init_from': [None, str(trained)],
    'optim.peak': [0.01, 0.5],
    'steps': [36, 6],
  }
  place = {'step': 0, 'fingerprint': ''}
  asked = config.Asked((), f'{trained}/config.json', {})
  c = config.load(trained / 'config.json', [('seed', 4)])
  for folder, parent in (
    (tmp_path / 'other', {'folder': str(trained), 'changes': {'seed': [0, 4]}}),
    (trained, None),  # it goes on
  ):
    text = run_record.collect(c, folder, place, asked)[run_record.NAME]
    assert json.loads(text)['starts'][-1]['parent'] == parent
  c = programs.on_eight(data, init_from='gs://bucket/run')
  text = run_record.collect(c, tmp_path, place, None)[run_record.NAME]
  (found,) = json.loads(text)['starts']
  assert found['parent'] == {'folder': 'gs://bucket/run', 'changes': None}


def test_all_that_a_record_promises_is_there(trained):
  start = starts(trained)[-1]
  assert start.keys() >= {
    'command',
    'config',
    'parent',
    'seed',
    'data',
    'code',
    'packages',
    'machine',
    'variables',
  }
  assert start['data']['datasets']['train'] and start['data']['fingerprint']
  assert {'devices', 'host', 'processor', 'python'} <= start['machine'].keys()


@pytest.mark.process
def test_a_program_records_its_command_and_what_flags_changed(
  data, tmp_path, start
):
  flags = programs.flags(data, tmp_path / 'run', steps=6, save_every=6)
  assert start('train', flags).wait() == 0
  (found,) = starts(tmp_path / 'run')
  assert found['command'] == ['python', '-m', 'lm.train', *flags]
  assert found['config']['file'].endswith(f'tiny_config.py:{data}')
  assert found['config']['changes']['steps'][1] == 6
  assert 'seed' not in found['config']['changes']


def test_what_is_not_committed_is_a_patch(data, tmp_path, monkeypatch):
  project = tmp_path / 'project'
  project.mkdir()
  for words in (
    ['init', '-q'],
    [*IDENTITY, 'commit', '-q', '--allow-empty', '-m', 'x'],
  ):
    subprocess.run(['git', *words], cwd=project, check=True)
  (project / 'mine.py').write_text('answer = 42\n')
  monkeypatch.chdir(project)
  c = programs.on_eight(data, steps=6, save_every=6)
  train.train(c, tmp_path / 'run')
  (found,) = starts(tmp_path / 'run')
  here = found['code']['here']
  assert here['root'] == str(project) and len(here['commit']) == 40
  patches = run_record.read(tmp_path / 'run')['patches']
  assert '+answer = 42' in patches[here['patch']]


def test_logins_are_not_recorded(data, tmp_path):
  flags = programs.flags(data, tmp_path / 'run', steps=6, save_every=6)
  flags += ['--config.mesh.fsdp=2', '--config.mesh.tensor=2']
  c, workdir = config.parse(flags, '')
  asked = config.asked()
  assert asked is not None
  login = '--config.init_from=gs://me:hush@bucket/run'
  asked = asked._replace(words=(*asked.words, login))
  train.train(c, workdir, asked=asked)
  text = json.dumps(starts(workdir))  # a patch may hold this test
  assert 'gs://bucket/run' in text and 'hush' not in text


def test_secrets_are_not_recorded(monkeypatch, tmp_path):
  monkeypatch.setenv('LM_SECRET', 'hush')
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  text = json.dumps(run_record.here(tmp_path))
  assert 'hush' not in text and 'fast_math' in text


def test_a_damaged_record_stops_no_run(data, tmp_path, capsys):
  workdir = tmp_path / 'run'
  c = programs.on_eight(data, steps=6, save_every=6)
  train.train(c, workdir)
  (workdir / run_record.NAME).write_text('{"starts": [1]}')
  with pytest.raises(errors.Damaged):
    run_record.read(workdir)
  train.train(c, workdir)
  assert 'record.json: it cannot be read; a new one' in capsys.readouterr().err
  assert [x['step'] for x in starts(workdir)] == [6]


def test_what_flags_changed_is_told_by_key(tmp_path):
  for name in ('train', 'valid'):
    (tmp_path / name).mkdir()
  (tmp_path / 'tokenizer.model').touch()
  file = programs.ROOT / 'configs/gpt/tiny.py'
  flags = ['--workdir=x', '--config.seed=7', f'--data={tmp_path}']
  config.parse([f'--config={file}', *flags], '')
  asked = config.asked()
  assert asked is not None and asked.changes is not None
  assert asked.file == str(file)
  assert asked.changes['seed'] == [0, 7]
  assert asked.changes['tokenizer.path'][1] == f'{tmp_path}/tokenizer.model'
  assert 'steps' not in asked.changes


def test_a_stored_config_whose_files_are_elsewhere_is_recorded(tmp_path):
  for name in ('train', 'valid'):
    (tmp_path / 'data' / name).mkdir(parents=True)
  (tmp_path / 'data/tokenizer.model').touch()
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'run').mkdir()
  file = tmp_path / 'run/config.json'
  path = f'{tmp_path}/elsewhere'
  changes = [('data.sources.train.path', path), ('evals.valid.path', path)]
  config.store(config.load('configs/gpt/tiny.py', changes), file)
  flags = [f'--workdir={tmp_path}/x', f'--data={tmp_path}/data']
  config.parse([f'--config={file}', *flags], '')
  asked = config.asked()
  assert asked is not None and asked.file == str(file)


def test_a_record_stays_short(data, tmp_path, monkeypatch):
  monkeypatch.setattr(run_record, '_MOST_STARTS', 3)
  c, place = programs.on_eight(data), {'step': 0, 'fingerprint': ''}
  for step in range(6):
    files = run_record.collect(c, tmp_path, {**place, 'step': step}, None)
    (tmp_path / run_record.NAME).write_bytes(files[run_record.NAME])
  assert [x['step'] for x in starts(tmp_path)] == [0, 4, 5]


@pytest.mark.parametrize(
  'content',
  [
    '[]',
    '{"starts": [{}], "patches": {}}',
    '{"starts": 5, "patches": {}}',
    '{"starts": [{"code": null}], "patches": {}}',
    '{"starts": [], "patches": {"a": 1}}',
    '[' * 100_000,
  ],
)
def test_a_damaged_record_is_one_line(tmp_path, content):
  (tmp_path / run_record.NAME).write_text(content)
  with pytest.raises(errors.Damaged, match='it cannot be read'):
    run_record.read(tmp_path)


def test_a_commit_is_no_option_of_git(data, tmp_path):
  c, place = programs.on_eight(data), {'step': 0, 'fingerprint': ''}
  found = json.loads(
    run_record.collect(c, tmp_path, place, None)['record.json']
  )
  found['starts'][0]['code']['package'] = {
    'commit': '--lock',
    'patch': None,
    'left_out': [],
  }
  (tmp_path / run_record.NAME).write_text(json.dumps(found))
  with pytest.raises(errors.Damaged):
    run_record.read(tmp_path)

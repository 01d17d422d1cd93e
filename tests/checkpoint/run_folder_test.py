"""Links of a run's folder lead nowhere, and its pipes are not waited for."""

import json
import os
from pathlib import Path
import shutil
import socket

import pytest

from lm import checkpoint, config, errors, evaluate, sample, train
from lm.config import untrusted
from lm.data import manifest as data_manifest
from lm.data.tokenizers import files as tokenizer_files
from lm.evals import items
from tests import programs

FILES = (
  'config.json',
  'config.json.part',
  'contamination.json',
  'evals.jsonl',
  'evals.lock',
  'lease',
  'lease.lock',
  'metrics.jsonl',
  'metrics.jsonl.part',
)
FOLDERS = ('checkpoints', 'items', 'read_locks', 'tensorboard')


def content(folder: Path):
  return {
    path: path.is_file() and path.read_bytes()
    for path in sorted(folder.rglob('*'))
  }


@pytest.fixture
def run(trained, tmp_path):
  """A copy of a run, with a folder beside it that nobody may touch."""
  shutil.copytree(trained, tmp_path / 'run')
  shutil.copytree(trained / 'checkpoints', tmp_path / 'outside' / 'folder')
  (tmp_path / 'outside' / 'file').write_text('{"step": 1}\n')
  return tmp_path / 'run'


def replace(path: Path, target: Path):
  if path.is_dir():
    shutil.rmtree(path)
  path.unlink(missing_ok=True)
  path.symlink_to(target)


@pytest.mark.parametrize('name', [*FILES, *FOLDERS, 'items/valid'])
def test_links_lead_nowhere(run, data, name):
  outside = run.parent / 'outside'
  kind = 'file' if name in FILES else 'folder'
  (run / name).parent.mkdir(exist_ok=True)
  replace(run / name, outside / kind)
  before = content(outside)
  for use in (
    lambda: train.train(programs.on_eight(data, steps=40), run),
    lambda: evaluate.evaluate(run),
  ):
    with pytest.raises(errors.Storage, match=f'{name}: is a link'):
      use()
  assert content(outside) == before
  assert (run / name).is_symlink()


def test_linked_checkpoints_are_not_read(run):
  replace(run / 'checkpoints', run.parent / 'outside' / 'folder')
  for use in (
    checkpoint.steps,
    checkpoint.restore_params,
    lambda run: checkpoint.verify(run, 36),
  ):
    with pytest.raises(errors.Storage, match='checkpoints: is a link'):
      use(run)
  with pytest.raises(errors.Storage, match='checkpoints: is a link'):
    sample.sample(str(run), 'a', length=1)


def pipe(path):
  os.mkfifo(path)


def listening(path):
  # The name of a socket is short, wherever the test's folder lies.
  with socket.socket(socket.AF_UNIX) as one:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
      one.bind(path.name)
    finally:
      os.chdir(here)


@pytest.mark.parametrize('make', [pipe, listening])
@pytest.mark.parametrize('name', [*FILES, 'read_locks/00000036.1.1'])
def test_nothing_waits_for_a_pipe_or_socket(run, data, name, make):
  (run / name).unlink(missing_ok=True)
  (run / name).parent.mkdir(exist_ok=True)
  make(run / name)
  with pytest.raises(errors.Storage, match='is a pipe or device'):
    train.train(programs.on_eight(data, steps=40), run)
  with pytest.raises(errors.Storage, match='is a pipe or device'):
    evaluate.evaluate(run)


def test_a_run_may_be_named_by_a_link(run, data):
  link = run.parent / 'link'
  link.symlink_to(run)
  state = train.train(programs.on_eight(data), link)
  assert int(state.step) == 36


@pytest.mark.parametrize('make', [pipe, listening])
def test_other_files_of_a_run_are_not_waited_for(tmp_path, make):
  make(tmp_path / data_manifest.NAME)
  with pytest.raises(ValueError, match='is no plain file'):
    data_manifest.load(tmp_path)
  make(tmp_path / 'tokenizer.json')
  with pytest.raises(ValueError, match='is no plain file'):
    tokenizer_files.read(str(tmp_path / 'tokenizer.json'))
  make(tmp_path / 'items.gz')
  with pytest.raises(errors.Storage, match='is no plain file'):
    items.read(tmp_path / 'items.gz')


def test_shards_in_a_run_are_no_links_out_of_it(tmp_path, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '')
  shards = tmp_path / 'run' / 'train'
  shards.mkdir(parents=True)
  (tmp_path / 'secret').write_text('x')
  c = config.from_json(json.dumps({'path': str(shards)}))
  config.check_files(c, tmp_path / 'run')
  (shards / '00000.tokens').symlink_to(tmp_path / 'secret')
  with pytest.raises(config.ConfigError, match='lies outside of'):
    config.check_files(c, tmp_path / 'run')

"""A run can be moved: its folder is enough, and a flag names its data."""

import json
from pathlib import Path
import shutil

import pytest

from lm import checkpoint, config, evaluate, sample, train
from lm.config import untrusted
from lm.corpus import prepare
from lm.inference import engine

LINES = [f'fox {n} jumps over {n * 7 % 13} lazy dogs' for n in range(300)]
SMALL = {
  'steps': '6',
  'batch_size': '8',
  'save_every': '2',
  'model.width': '16',
  'model.depth': '1',
  'model.length': '16',
  'data.length': '16',
  'optim.warmup': '1',
  'evals.valid.length': '16',
  'mesh.fsdp': '2',
}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with prepared data and a run of six steps."""
  folder = tmp_path_factory.mktemp('home')
  text = folder / 'text.jsonl'
  text.write_text(''.join(json.dumps({'text': x}) + '\n' for x in LINES))
  path = str(folder / 'words.model')
  prepare.train_tokenizer([str(text)], path, vocab=300)
  prepare.write_dataset([str(text)], folder / 'data', path, split_valid=0.2)
  assert (folder / 'data/tokenizer.model').is_file()
  train.train(load(folder / 'data'), folder / 'run')
  return folder


def load(data, **changes):
  return config.load(
    'configs/gpt/tiny.py', [*SMALL.items(), *changes.items()], data
  )


@pytest.fixture
def away(home, tmp_path, monkeypatch):
  """Copies of the run and its data elsewhere; what they came from is gone."""
  monkeypatch.setenv(untrusted.VARIABLE, '')
  monkeypatch.chdir(tmp_path)
  shutil.copytree(home / 'run', 'copy')
  shutil.copytree(home / 'data', 'texts')
  hidden = home.rename(home.with_name('gone'))
  yield tmp_path
  hidden.rename(home)


def test_a_moved_run_speaks_and_is_served(away):
  (text,) = sample.sample('copy', 'fox', length=3, temperature=0.0)
  assert isinstance(text, str)
  assert engine.restore('copy').tokenizer.decode([40]) is not None


def test_a_moved_run_goes_on_with_the_same_bits(away, home):
  digest = checkpoint.digest('copy', 6)
  shutil.rmtree('copy/checkpoints/00000006')
  assert int(train.train(load('texts'), 'copy').step) == 6
  assert checkpoint.digest('copy', 6) == digest


def test_a_run_goes_on_without_the_file_of_its_tokenizer(away):
  Path('texts/tokenizer.model').rename('texts/elsewhere')
  keys = {
    'data.sources.train.path': 'texts/train',
    'evals.valid.path': 'texts/valid',
  }
  c = config.load('configs/gpt/tiny.py', [*SMALL.items(), *keys.items()])
  shutil.rmtree('copy/checkpoints/00000006')
  assert int(train.train(c, 'copy').step) == 6


def test_a_moved_run_is_evaluated_on_data_that_a_flag_names(away):
  with pytest.raises(
    config.ConfigError, match=r'evals\.valid\.path: .* lies out'
  ):
    evaluate.evaluate('copy')
  found = evaluate.evaluate('copy', data='texts', steps='last')
  assert found[-1]['metrics']['valid/bits_per_byte'] > 0


def test_other_data_are_refused(away):
  text = Path('other.jsonl')
  text.write_text(''.join(json.dumps({'text': x[::-1]}) + '\n' for x in LINES))
  prepare.write_dataset(
    ['other.jsonl'], 'other', 'texts/tokenizer.model', split_valid=0.2
  )
  with pytest.raises(config.ConfigError, match='dataset train: is'):
    train.train(load('other'), 'copy')


@pytest.mark.parametrize(
  ('missing', 'say'),
  [
    ('tokenizer.model', 'has no tokenizer.model, which tokenizer.path needs'),
    ('train', 'has no train, which data.sources.train.path needs'),
    ('valid', 'has no valid, which evals.valid.path needs'),
  ],
)
def test_what_a_folder_of_data_lacks_is_named(away, missing, say):
  Path('texts', missing).rename('elsewhere')
  with pytest.raises(config.ConfigError, match=say):
    load('texts')


def test_a_tokenizer_that_was_changed_is_not_used(away):
  newest = Path('copy/checkpoints/00000006/tokenizer.model')
  newest.write_bytes(newest.read_bytes()[:-1] + b'?')
  with pytest.raises(Exception, match='bits have changed'):
    checkpoint.restore_run('copy', 6)
  # The step before it is used.
  assert checkpoint.restore_run('copy').tokenizer.size == 300

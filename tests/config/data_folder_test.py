"""`--data=FOLDER`, where the folder holds one dataset or one a source."""

from pathlib import Path
import shutil

import pytest

from lm import config, train
from lm.config import untrusted
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.evals import evaluators
from lm.training import setup
from tests import programs

TEXTS = [f'{n} {programs.TEXT}' for n in range(20)]
BASE = """
from configs import base

def get_config():
  c = base.get_config()
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.length = c.model.length = c.evals.valid.length = 16
  c.model.width, c.model.depth, c.sharding.vocab = 16, 1, None
  c.model.blocks.main.mixer.heads = 2
  c.steps, c.batch_size, c.save_every, c.optim.warmup = 2, 8, 2, 1
  return c.lock()
"""
TWO = """
  c.data.sources = {
    'web': {'path': 'x/web', 'weight': 3.0},
    'wiki': {'path': 'x/wiki', 'weight': 1.0},
  }
  return c.lock()
"""


def make(folder: Path, *names: str) -> Path:
  for name in names:
    writer.write(folder / name, TEXTS, utf8_bytes.make())
  return folder


@pytest.fixture
def build(tmp_path) -> Path:
  """A build with a dataset a source, of which some hold out texts."""
  return make(
    tmp_path / 'build', 'train/web', 'train/wiki', 'valid/web', 'valid/wiki'
  )


@pytest.fixture
def file(tmp_path):
  def write(text: str = BASE) -> Path:
    path = tmp_path / 'c.py'
    path.write_text(text)
    return path

  return write


def test_each_source_becomes_one_of_the_run(build, file):
  c = config.load(file(), [], build)
  assert config.plain(c.data.sources) == {
    'web': {'path': f'{build}/train/web', 'weight': 1.0},
    'wiki': {'path': f'{build}/train/wiki', 'weight': 1.0},
  }
  assert {name: spec.path for name, spec in c.evals.items()} == {
    'valid_web': f'{build}/valid/web',
    'valid_wiki': f'{build}/valid/wiki',
  }
  assert c.evals.valid_web.length == 16 and c.is_locked
  weighed = config.load(file(), [('data.sources.wiki.weight', '0.5')], build)
  assert weighed.data.sources.wiki.weight == 0.5


def test_a_config_that_names_sources_gets_their_paths(build, file):
  c = config.load(file(BASE.replace('  return c.lock()\n', TWO)), [], build)
  assert config.plain(c.data.sources) == {
    'web': {'path': f'{build}/train/web', 'weight': 3.0},
    'wiki': {'path': f'{build}/train/wiki', 'weight': 1.0},
  }
  shutil.rmtree(build / 'train/wiki')
  with pytest.raises(config.ConfigError, match='has no train/wiki, which data'):
    config.load(file(BASE.replace('  return c.lock()\n', TWO)), [], build)
  one = TWO.replace("    'wiki': {'path': 'x/wiki', 'weight': 1.0},\n", '')
  make(build, 'train/wiki')
  c = config.load(file(BASE.replace('  return c.lock()\n', one)), [], build)
  assert [*c.data.sources] == ['web']  # it asks for this one alone


def test_one_dataset_stays_one(tmp_path, file):
  folder = make(tmp_path / 'data', 'train/web', 'train/wiki', 'valid')
  c = config.load(file(), [], folder)
  assert [*c.data.sources] == ['web', 'wiki']
  assert {k: v.path for k, v in c.evals.items()} == {'valid': f'{folder}/valid'}
  folder = make(tmp_path / 'plain', 'train', 'valid')
  c = config.load(file(), [], folder)
  assert config.plain(c.data.sources) == {
    'train': {'path': f'{folder}/train', 'weight': 1.0}
  }


def test_a_name_with_a_dot_is_refused(tmp_path, file):
  folder = make(tmp_path / 'data', 'train/a.b', 'valid')
  with pytest.raises(config.ConfigError, match=r'train/a\.b: the name of a'):
    config.load(file(), [], folder)


def test_a_run_trains_and_is_evaluated_elsewhere(
  build, file, tmp_path, monkeypatch
):
  """Its config has a source a dataset, and goes to another folder so."""
  train.train(config.load(file(), [], build), tmp_path / 'run')
  moved = tmp_path / 'moved'
  shutil.move(build, moved)
  monkeypatch.delenv(untrusted.VARIABLE, raising=False)
  text = (tmp_path / 'run/config.json').read_text()
  about = {'meta': {'config': text, 'tokenizer': 'x'}}
  found = evaluators.EvaluatorCache({}, moved).get(tmp_path / 'run', about)
  assert {k: v['path'] for k, v in found.specs.items()} == {
    'valid_web': f'{moved}/valid/web',
    'valid_wiki': f'{moved}/valid/wiki',
  }
  again = config.load(tmp_path / 'run/config.json', [], moved)
  assert again.data.sources.wiki.path == f'{moved}/train/wiki'
  assert setup.assemble(setup.fill(again)).data.state(2)['counts'] == {
    'web': 8,
    'wiki': 8,
  }

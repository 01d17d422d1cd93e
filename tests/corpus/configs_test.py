"""Every config of the data factory loads, and its stages can be made."""

import collections
import os
from pathlib import Path

import numpy as np
import pytest

from lm import config
from lm.corpus import maps, passes
from lm.data import documents
from tests import programs

FOLDER = programs.ROOT / 'configs/data'
NAMES = sorted(
  path.name
  for path in FOLDER.glob('*.py')
  if 'def get_config(' in path.read_text()
)
DATA = Path(os.environ.get('LM_DATA', '../shared/data'))


@pytest.mark.parametrize('name', NAMES)
def test_a_config_loads_and_its_stages_can_be_made(name):
  text = (FOLDER / name).read_text()
  argument = '' if 'def get_config()' in text else f':{DATA}'
  c = config.load(f'{FOLDER / name}{argument}', required=())
  assert c.is_locked
  assert set(c.order) <= set(c.stages)
  if 'contamination' in c.order and not DATA.is_dir():
    pytest.skip('needs the shared data')
  stages = [maps.stage(config.plain(c.stages[x])) for x in c.order]
  skipped = {x: source.skip for x, source in c.sources.items()}
  passes.check(stages, c.order, skipped)
  assert passes.plan(stages)[0] == [*range(len(stages))]  # one pass suffices


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bilingual', 'chinese', 'english'])
def test_the_vocabulary_has_room_for_the_characters(shared_data, name):
  c = config.load(f'{FOLDER}/{name}.py:{shared_data}', required=())
  counts: collections.Counter[str] = collections.Counter()
  for source in c.sources.values():
    settings = documents.Settings(unit=source.unit, field=source.field)
    files = documents.find(source.inputs)
    for text in documents.read(files, settings, collections.Counter()):
      counts.update(text)
  sums = np.cumsum(sorted(counts.values(), reverse=True))
  needed = np.searchsorted(sums, c.train_tokenizer.coverage * sums[-1]) + 1
  # Beside bytes and special pieces, some are left for words.
  assert needed + 260 < 0.8 * c.train_tokenizer.vocab


def test_a_flag_reaches_a_rule():
  c = config.load(
    'configs/data/english.py',
    [('stages.quality.rules.words.least', '20'), ('sources.web.rank', '7')],
    required=(),
  )
  assert c.stages.quality.rules.words.least == 20
  assert c.sources.web.rank == 7


def test_a_misspelt_rule_is_refused_before_anything_is_read():
  with pytest.raises(config.ConfigError, match='did you mean'):
    config.load(
      'configs/data/english.py',
      [('stages.quality.rules.wrods.least', '20')],
      required=(),
    )


def test_a_misspelt_key_of_a_source_is_refused(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text(
    'from configs.data import base\n'
    'def get_config():\n'
    '  c = base.get_config()\n'
    "  c.sources = {'a': base.source('raw', feild='text')}\n"
    '  return c.lock()\n'
  )
  with pytest.raises(config.ConfigError, match='unknown key feild'):
    config.load(path, required=())

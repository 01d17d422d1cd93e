"""Points become runs: checked, without repetition, under names that stay."""

import re
from typing import Any

import hypothesis
from hypothesis import strategies as st
import pytest

from lm import config
from lm.sweeping import points, trials
from tests import programs

TINY = 'configs/gpt/tiny.py'


@pytest.fixture(scope='module')
def base() -> trials.Base:
  return trials.load_base(TINY, [('steps', '40')])


def names(base: trials.Base, *found: Any) -> list[str]:
  return [x.name for x in trials.make(base, found)[0]]


def error(base: trials.Base, *found: Any) -> str:
  with pytest.raises(config.ConfigError) as caught:
    trials.make(base, found)
  text = str(caught.value)
  assert len(text) <= 200 and '\n' not in text
  return text


def test_a_name_says_what_a_run_has_other_than_the_base(base):
  found = [
    {'optim.peak': '1e-3', 'seed': 2},
    {'seed': 2, 'model.width': 96},
    {'model.blocks.main.mixer.heads': 2, 'batch_size': 4},
    {'seed': 0},
  ]
  assert names(base, *found) == [
    'peak=0.001_seed=2',
    'model.width=96_seed=2',  # the mlp has a width too
    'batch_size=4_mixer.heads=2',  # sharding has heads too
    'base',
  ]


def test_names_follow_from_the_point_alone(base):
  point = {'optim.peak': 0.001, 'batch_size': 4}
  (alone,) = names(base, point)
  others = points.product(
    points.values('optim.peak', (0.002, '1e-3')),
    points.values('batch_size', (2, 4)),
    points.seeds(2),
  )
  assert alone in names(base, *others)
  # Another order, other spellings, and keys that keep their value.
  assert names(base, {'batch_size': '4', 'optim.peak': '1e-3', 'seed': 0}) == [
    alone
  ]


@hypothesis.given(st.text(max_size=300))
@hypothesis.settings(max_examples=25)
def test_names_are_safe_for_files_and_bounded(base, text):
  hypothesis.assume('\x00' not in text)
  (trial,), _ = trials.make(base, [{'tokenizer.path': text}])
  assert re.fullmatch(r'[\w.+=-]{1,100}', trial.name, re.ASCII), trial.name
  assert trial.point == {'tokenizer.path': text}


def test_values_that_a_name_cannot_hold_have_names_of_their_own(base):
  paths = ['a/b', 'a-b', 'A-b', 'a//b', '']
  found = names(base, *points.values('tokenizer.path', paths))
  assert len({x.lower() for x in found}) == len(paths)
  assert found[1] == 'tokenizer.path=a-b'
  found = names(base, *points.values('tokenizer.path', ['a', '-a', 'a-', '-']))
  assert len(set(found)) == 4, found


def test_the_flags_of_a_run_load_its_config(base):
  found, _ = trials.make(
    base,
    [
      {'optim.peak': 0.001, 'model.pattern': ('main', 'main')},
      {'model.remat': 'full', 'early.metric': 'valid/loss_nats', 'seed': 3},
    ],
  )
  for trial in found:
    words = [x[9:].split('=', 1) for x in trial.words[1:]]
    assert trial.words[0] == f'--config={TINY}'
    loaded = config.load(TINY, [(key, value) for key, value in words])
    assert config.to_json(loaded) == config.to_json(trial.config)


def test_a_point_that_comes_twice_is_run_once_and_reported(base):
  found, notes = trials.make(
    base, [{'optim.peak': 0.001}, {'seed': 1}, {'optim.peak': '1e-3'}]
  )
  assert [x.name for x in found] == ['peak=0.001', 'seed=1']
  assert notes == [
    'point 3 (optim.peak=1e-3) is point 1 again, and is run once'
  ]


def test_errors_name_the_point_and_the_key(base):
  assert error(base) == 'the sweep has no points: give one at least'
  fine = {'optim.peak': 0.001}
  assert error(base, fine, {'optim.peak': 'fast'}) == (
    "point 2 (optim.peak=fast): optim.peak: 'fast' is wrong; must be a float, "
    'like 0.01'
  )
  assert error(base, {'optim.peek': 1.0}) == (
    'point 1 (optim.peek=1.0): unknown key optim.peek; did you mean optim.peak?'
  )
  assert error(base, fine, {'batch_size': 6, 'microbatches': 4}).startswith(
    'point 2 (batch_size=6, microbatches=4): microbatches: 4 does not divide'
  )
  assert error(base, {0.001: 'optim.peak'}) == (
    "point 1: the key 0.001 is no string, such as 'optim.peak'"
  )
  assert error(base, {'steps': 50}) == (
    'point 1 (steps=50): --config.steps sets that key for all: leave one out'
  )


def test_a_sweep_of_a_config_with_an_argument(data):
  base = trials.load_base(f'{programs.ROOT}/tests/tiny_config.py:{data}')
  (trial,), _ = trials.make(base, [{'data.seconds': 0.5}])
  assert trial.name == 'data.seconds=0.5'

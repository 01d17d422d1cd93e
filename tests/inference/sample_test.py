"""Sampling from a run: the same seed, the same texts."""

import shutil
from typing import Any

import pytest

from lm import checkpoint, config, errors, sample
from lm.data.tokenizers import utf8_bytes
from lm.inference import sampling
from tests import programs


def refused(*arguments, **settings):
  with pytest.raises(config.ConfigError) as caught:
    sample.sample(*arguments, **settings)
  assert caught.value.exit_code == 2
  return str(caught.value)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_texts(trained):
  texts = sample.sample(trained, 'the ', count=3, length=8, seed=1)
  assert len(texts) == 3 and all(t.startswith('the ') for t in texts)
  assert sample.sample(trained, 'the ', count=3, length=8, seed=1) == texts
  assert sample.sample(trained, 'the ', count=3, length=8, seed=2) != texts
  # how many others there are changes nothing
  assert sample.sample(trained, 'the ', count=1, length=8, seed=1) == texts[:1]


@pytest.mark.slow
def test_the_likeliest_text_needs_no_seed(trained):
  first, second = (
    sample.sample(trained, 'the ', length=8, temperature=0, seed=seed)
    for seed in (1, 2)
  )
  assert first == second and len(first) == 1
  assert set(first[0]) <= set(programs.TEXT)  # it has learnt that much
  one = sample.sample(trained, 'the ', length=8, top_k=1, seed=3)
  assert one == first


def test_a_stop_string_ends_a_text_and_is_left_out(trained):
  (whole,) = sample.sample(trained, 'the ', length=10, temperature=0)
  word = whole[7:9]
  shown = []
  (cut,) = sampling.texts(
    trained,
    'the ',
    sampling.Settings(length=10, temperature=0, stop=['@@', word]),
    show=lambda texts: shown.append(texts[0]),
  )
  assert cut.text == whole[: whole.index(word, 4)]
  assert shown and shown[-1] == cut.text


def test_texts_have_the_cost_of_each_token(trained):
  (text,) = sampling.texts(trained, 'the ', sampling.Settings(length=6, seed=5))
  assert text.text == 'the ' + ''.join(text.pieces)
  assert len(text.nats) == len(text.pieces) <= 6
  assert all(cost > 0 for cost in text.nats)


@pytest.mark.slow
def test_beams_find_likelier_texts_than_greed(trained):
  found = sample.sample(trained, 'the ', length=6, beams=4, count=3)
  assert len(set(found)) == 3 and all(t.startswith('the ') for t in found)
  (one,) = sample.sample(trained, 'the ', length=6, beams=1)
  assert one == sample.sample(trained, 'the ', length=6, temperature=0)[0]


def test_another_step_is_another_model(trained):
  newest = sample.sample(trained, length=8, count=3)
  assert newest == sample.sample(trained, length=8, count=3, step=36)
  assert newest != sample.sample(trained, length=8, count=3, step=6)


def test_a_damaged_newest_step_is_not_used(trained, tmp_path, capfd):
  workdir = programs.rewind(trained, tmp_path / 'run', 12)
  programs.damage(workdir, 12)
  texts = sample.sample(workdir, length=8, count=3)
  assert texts == sample.sample(trained, length=8, count=3, step=6)
  assert 'trying the step before it' in capfd.readouterr().err


@pytest.mark.parametrize(
  ('settings', 'say'),
  [
    ({'count': 0}, 'count=0, length=8: at least 1 each'),
    ({'length': 0}, 'count=1, length=0: at least 1 each'),
    ({'temperature': -1.0}, 'temperature=-1.0 must be a number from 0 to 100'),
    (
      {'temperature': float('nan')},
      'temperature=nan must be a number from 0 to 100',
    ),
    ({'top_k': -1}, 'top_k=-1 must be a whole number from 0 to 2147483647'),
    ({'seed': -1}, 'seed=-1 must be a whole number from 0 to 4294967295'),
    (
      {'seed': 2**32},
      'seed=4294967296 must be a whole number from 0 to 4294967295',
    ),
    ({'seed': 1.5}, 'seed=1.5 must be a whole number from 0 to 4294967295'),
    ({'beams': 2, 'count': 3}, 'beams=2: at least as many as count=3'),
    ({'length_penalty': float('nan')}, 'length_penalty=nan: 0 or more'),
    ({'stop': ['']}, "stop='': ends every text at once; leave it out"),
    ({'top_p': 1.1}, 'top_p=1.1 must be a number from 0 to 1'),
    (
      {'prompt': 'the quick'},
      '18 positions, prompt and new ones, are more than model.length=16: ask '
      'for fewer tokens',
    ),
  ],
)
def test_a_setting_out_of_range_is_one_line(trained, settings, say):
  assert refused(trained, **{'length': 8, **settings}) == say


@pytest.mark.slow
def test_the_ends_of_ranges_are_drawn(trained):
  """A setting that leaves the likeliest token alone draws it, and not noise."""
  (greedy,) = sample.sample(trained, 'the ', length=8, temperature=0)
  how: dict[str, Any]
  for how in (
    {'temperature': 1e-300},
    {'temperature': 1e-9},
    {'top_p': 0},
    {'top_p': 1e-300},
    {'min_p': 1},
    {'top_k': 1},
  ):
    assert sample.sample(trained, 'the ', length=8, **how) == [greedy], how
  for how in (
    {'seed': 2**32 - 1},
    {'temperature': 100},
    {'min_p': 1e-300},
    {'top_k': 2**31 - 1},
    {'repetition_penalty': 0.01},
    {'repetition_penalty': 100},
  ):
    assert len(sample.sample(trained, 'the ', length=8, **how)) == 1


def test_a_missing_step_is_one_line(trained):
  assert refused(trained, length=8, step=7).endswith(
    'no such step: never saved, or deleted since to make room; there now:'
    ' 12, 18, 24, 30, 36'
  )


def test_a_run_without_checkpoints_is_one_line(tmp_path):
  with pytest.raises(errors.Missing) as caught:
    sample.sample(tmp_path)
  assert caught.value.exit_code == 2
  assert 'no checkpoint here: check the path' in str(caught.value)


def test_another_tokenizer_file_is_refused(trained, tmp_path, monkeypatch):
  """A changed file under the old name would give wrong texts in silence."""
  bytes_ = utf8_bytes.make()
  meta = checkpoint.read_meta(trained)
  assert meta['tokenizer'] == bytes_.sha256
  monkeypatch.setattr(
    utf8_bytes, 'make', lambda reserved: bytes_._replace(sha256='0' * 64)
  )
  assert refused(trained, length=8) == (
    f'{trained}: trained with tokenizer {bytes_.sha256[:12]}, and its'
    f' tokenizer is {"0" * 12} now: bring that file back'
  )


def test_the_program_prints_what_the_function_returns(trained, start, tmp_path):
  workdir = shutil.copytree(trained, tmp_path / 'run')
  process = start(
    'sample',
    [
      f'--workdir={workdir}',
      '--prompt=the ',
      '--length=4',
      '--count=2',
      '--temperature=0',
    ],
  )
  assert process.wait() == 0, process.text()
  (text,) = sample.sample(trained, 'the ', length=4, temperature=0)
  assert process.printed() == f'{text}\n{"-" * 72}\n{text}\n'
  process = start(
    'sample',
    [f'--workdir={workdir}', '--prompt=the ', '--length=3', '--nats'],
  )
  assert process.wait() == 0, process.text()
  (text,) = sampling.texts(trained, 'the ', sampling.Settings(length=3))
  lines = [
    f'{n:8.3f}  {p!r}\n' for n, p in zip(text.nats, text.pieces, strict=True)
  ]
  assert process.printed() == f'{text.text}\n{"".join(lines)}'
  process = start('sample', [f'--workdir={workdir}', '--length=1000'])
  assert process.error(2).endswith('model.length=16: ask for fewer tokens')

"""The classifier of quality learns, decides alike everywhere, and is safe."""

import gzip
import io
import json
import math
import os
from pathlib import Path
import random

import numpy as np
import pyarrow as pa
import pytest

from lm import config, splitmix
from lm.corpus import classifier, stages, texts

DATA = Path(os.environ.get('LM_DATA', '../shared/data'))
GOOD = [
  f'The {a} of the {b} was built in {n}, and it is still in use today.'
  for n, a in enumerate(['bridge', 'tower', 'house', 'wall', 'road'], 1800)
  for b in ('town', 'village', 'city', '汉字')
]


def shuffled(text: str, seed: int = 0) -> str:
  words = text.split(' ')
  random.Random(seed).shuffle(words)
  return ' '.join(words)


def junk(count: int) -> list[str]:
  """Makes texts of words that are none."""
  draw = random.Random(count)
  letters = 'abcdefghijklmnopqrstuvwxyz'
  return [
    ' '.join(
      ''.join(draw.choices(letters, k=draw.randrange(2, 9))) for _ in range(200)
    )
    for _ in range(count)
  ]


BAD = [shuffled(x) for x in GOOD] + junk(5)


@pytest.fixture(scope='module')
def path(tmp_path_factory) -> str:
  path = str(tmp_path_factory.mktemp('classifier') / 'model.npz')
  classifier.train(GOOD, BAD, path, buckets=1 << 14)
  return path


def run(stage: stages.Stage, *rows: str | stages.Document):
  assert stage.map is not None
  given = [stages.Document(x) if isinstance(x, str) else x for x in rows]
  places = pa.array([f'line {i}' for i in range(len(rows))])
  return stages.documents(stage.map(stages.batch(places, given)))


def test_it_drops_bad_texts_and_says_how_bad(path):
  spec = {'fn': 'lm.corpus.classifier:make', 'path': path, 'least': 0.5}
  found = run(config.build(spec), *GOOD, *BAD)
  assert not any(x.reason for x in found[: len(GOOD)])
  for x in found[len(GOOD) :]:
    assert x.reason == 'classifier.bad'
    assert x.value is not None
    assert 0 <= x.value < 0.5


def test_the_bound_decides(path):
  probability = classifier.load(path).probability(texts.Text(GOOD[0]))
  assert 0.5 < probability < 1
  assert not run(classifier.make(path, probability), GOOD[0])[0].reason
  assert run(classifier.make(path, 1.0), GOOD[0])[0].reason


def test_a_text_without_words_has_a_probability(path):
  (document,) = run(classifier.make(path, 1.0), '...')
  assert document.reason == 'classifier.bad'


def test_languages_choose_the_texts(path):
  stage = classifier.make(path, 1.0, languages=('zh',))
  rows = [GOOD[0], '汉字汉字', stages.Document('x', 'zh')]
  reasons = [x.reason for x in run(stage, *rows)]
  assert reasons == ['', 'classifier.bad', 'classifier.bad']


def test_the_same_texts_give_the_same_file(path, tmp_path):
  again = str(tmp_path / 'again.npz')
  classifier.train(iter(GOOD), iter(BAD), again, buckets=1 << 14)
  assert Path(again).read_bytes() == Path(path).read_bytes()
  assert classifier.make(again).settings == classifier.make(path).settings
  assert classifier.make(path).data == (path,)
  assert [x.name for x in tmp_path.iterdir()] == ['again.npz']


def test_scores_are_sums_of_whole_numbers(path):
  model = classifier.load(path)
  text = texts.Text('The bridge')
  hashes = text.hashes
  pair = splitmix.mix(hashes[:1] * classifier._PAIR + hashes[1:])
  total = sum(
    int(model.weights[int(x) % len(model.weights)]) for x in (*hashes, *pair)
  )
  logit = (total / math.sqrt(3) + model.bias) / 65536
  assert model.logit(text) == logit


def test_training_lowers_the_loss(tmp_path):
  path = str(tmp_path / 'model.npz')
  first = classifier.train(GOOD, BAD, path, epochs=1)
  assert classifier.train(GOOD, BAD, path, epochs=10) < first / 2 < 0.5


@pytest.mark.parametrize(
  ('good', 'bad', 'settings', 'error'),
  [
    ([], ['a'], {}, 'give at least one good and one bad text'),
    (['a'], [], {}, 'give at least one good and one bad text'),
    (['a'], ['b'], {'epochs': 0}, 'must be above 0'),
  ],
)
def test_training_refuses_in_one_line(tmp_path, good, bad, settings, error):
  path = tmp_path / 'model.npz'
  with pytest.raises(ValueError, match=error):
    classifier.train(good, bad, str(path), **settings)
  assert not path.exists()


def saved(**arrays) -> bytes:
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


def broken_files() -> dict[str, tuple[bytes, str]]:
  right = {
    'format': np.array(1),
    'weights': np.zeros(4, np.int32),
    'bias': np.array(0, np.int64),
  }
  one_array = io.BytesIO()
  np.save(one_array, right['weights'])
  pickled = {'weights': np.array([{}], object)}
  return {
    'empty': (b'', 'is no classifier of quality; make one by'),
    'text': (b'some text', 'is no classifier of quality'),
    'cut off': (saved(**right)[:-40], 'is no classifier of quality'),
    'npy': (one_array.getvalue(), 'is no classifier of quality'),
    'pickled': (saved(**right | pickled), 'is no classifier of quality'),
    'other arrays': (saved(x=np.zeros(1)), 'is no classifier of quality'),
    'format': (
      saved(**right | {'format': np.array(2)}),
      'has another format than 1; train again',
    ),
    'floats': (
      saved(**right | {'weights': np.zeros(4)}),
      'weights must be one row of int32',
    ),
    'shape': (
      saved(**right | {'weights': np.zeros((2, 2), np.int32)}),
      'weights must be one row of int32',
    ),
    'bias': (
      saved(**right | {'bias': np.zeros(2, np.int64)}),
      'bias must be one int64',
    ),
  }


@pytest.mark.parametrize('name', broken_files())
def test_a_wrong_file_is_refused_in_one_line(tmp_path, name):
  raw, error = broken_files()[name]
  path = tmp_path / 'model.npz'
  path.write_bytes(raw)
  with pytest.raises(ValueError, match=error):
    classifier.make(str(path))


def test_a_missing_file_and_a_wrong_bound_are_one_line(path):
  spec = {'fn': 'lm.corpus.classifier:make', 'path': 'no.npz'}
  with pytest.raises(config.ConfigError, match=r'classifier:make: .*no\.npz'):
    config.build(spec)
  with pytest.raises(ValueError, match=r'least=2\.0 must be a probability'):
    classifier.make(path, 2.0)


def area(good: list[float], bad: list[float]) -> float:
  """Computes the area under the curve: how often good is above bad."""
  a, b = np.array(good)[:, None], np.array(bad)[None]
  return float(np.mean((a > b) + 0.5 * (a == b)))


@pytest.mark.skipif(not (DATA / 'lm_en').is_dir(), reason='no shared data')
def test_it_tells_encyclopedia_and_technical_text_from_junk(tmp_path):
  """Half of the documents train, and the others are held out."""
  with gzip.open(
    DATA / 'lm_en/peps/train.jsonl.gz', 'rt', encoding='utf-8'
  ) as file:
    peps = [json.loads(line)['text'][:6000] for line in file]
  folder = DATA / 'lm_en/web_demo'
  wiki = (folder / 'wiki_demo.txt').read_text(encoding='utf-8').splitlines()
  raw = (folder / 'c4_demo.jsonl').read_text(encoding='utf-8').splitlines()
  web = [json.loads(line)['text'] for line in raw]
  good = [*peps, *(x[:6000] for x in wiki)]
  bad = [*map(shuffled, web), *junk(60)]
  path = str(tmp_path / 'model.npz')
  classifier.train(good[::2], bad[::2], path)
  model = classifier.load(path)

  def logits(given: list[str]) -> list[float]:
    return [model.logit(texts.Text(x)) for x in given]

  kept, dropped = logits(good[1::2]), logits(bad[1::2])
  right = [x > 0 for x in kept] + [x <= 0 for x in dropped]
  assert area(kept, dropped) > 0.995
  assert np.mean(right) > 0.97
  # It has learned order, and not only topics: web text of neither kind is
  # better than the same shuffled.
  other = web[1::2]
  assert area(logits(other), logits([shuffled(x, 1) for x in other])) > 0.8

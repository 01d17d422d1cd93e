"""Near duplicates are found as often as theory says, and nothing else is.

The tables that these tests print (pytest -s) give the recall in ranges of
similarity with its interval of 95 %, by Wilson.
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
import gzip
import itertools
import json
import math
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from lm import config
from lm.corpus import build, index, near, texts
from lm.evals.reports import stats
from tools import planted_corpus, planted_texts

THRESHOLD = 0.7
FOUND = ((0.70, 0.75, 0.97), (0.75, 1.01, 0.99))  # from, below, least recall


class Built:
  """A build that only looks for near duplicates.

  Attributes:
    ids: of the given documents, in the order of the build.
    texts: of these.
    drops: similarity by (place of the witness, place of the dropped document).
  """

  def __init__(self, folder: Path, files: Sequence[Path]):
    c = config.load('configs/data/base.py', required=()).unlock()
    c.sources = {'given': {'inputs': tuple(map(str, files)), 'rank': 0}}
    c.stages = {'near': {'fn': 'lm.corpus.near:make', 'threshold': THRESHOLD}}
    c.order = ('near',)
    c.tokenizer_file = 'bytes'
    build.run(c.lock(), folder)
    listed = pq.read_table(folder / index.NAME).to_pylist()
    lines = {str(x): x.read_text(encoding='utf-8').splitlines() for x in files}
    given = [
      json.loads(lines[x['file']][int(x['place'].removeprefix('line ')) - 1])
      for x in listed
    ]
    self.ids = [x['id'] for x in given]
    self.texts = [x['text'] for x in given]
    places = {x['id']: n for n, x in enumerate(listed)}
    self.drops = {
      (places[x['witness']], n): x['value']
      for n, x in enumerate(listed)
      if x['reason'] == 'near'
    }


def all_pairs(
  given: Iterable[str], least: float
) -> dict[tuple[int, int], float]:
  """Compares each text with every other one, by exact sets of 5-grams.

  Returns:
    The similarity by pair (earlier, later) where it is at least `least`.
  """
  numbers: dict[str, int] = {}
  grams, owners = [], []
  for n, text in enumerate(given):
    words = [
      numbers.setdefault(x, len(numbers)) for x in texts.Text(text).words
    ]
    words += [-1] * (near.SHINGLE - len(words))
    windows = np.lib.stride_tricks.sliding_window_view(
      np.asarray(words, np.int32), near.SHINGLE
    )
    grams.append(windows)
    owners.append(np.full(len(windows), n))
  rows = np.ascontiguousarray(np.concatenate(grams))
  _, columns = np.unique(
    rows.view(np.dtype((np.void, rows.itemsize * near.SHINGLE))).ravel(),
    return_inverse=True,
  )
  owner = np.concatenate(owners)
  sets = sparse.csr_array((np.ones(len(owner), np.int32), (owner, columns)))
  sets.data[:] = 1  # a set has each gram once
  size = np.diff(sets.indptr)
  shared = sparse.triu(sets @ sets.T, 1).tocoo()
  jaccard = shared.data / (size[shared.row] + size[shared.col] - shared.data)
  keep = jaccard >= least
  return {
    (int(a), int(b)): float(x)
    for a, b, x in zip(
      shared.row[keep], shared.col[keep], jaccard[keep], strict=True
    )
  }


def ordered(a: int, b: int) -> tuple[int, int]:
  """Returns the pair of two documents, the earlier one first."""
  return min(a, b), max(a, b)


def recalls(
  built: Built, pairs: Mapping[tuple[int, int], float]
) -> list[tuple[int, int]]:
  """Counts (found, all) of the pairs in the ranges of `FOUND`.

  A pair is found if its later document is dropped.
  """
  dropped = {b for _, b in built.drops}
  result = []
  print('\nsimilarity   pairs  recall  interval')
  for low, high, _ in FOUND:
    later = [b for (_, b), x in pairs.items() if low <= x < high]
    found = sum(b in dropped for b in later)
    a, b = stats.proportion(found, len(later))
    print(
      f'{low:.2f} to {min(high, 1):.2f} {len(later):6} '
      f'{found / len(later):7.4f}  {a:.4f} to {b:.4f}'
    )
    result.append((found, len(later)))
  return result


@pytest.mark.parametrize(
  ('megabytes', 'near_rate', 'least_documents'),
  [
    pytest.param(1.5, 0.4, 600, id='1.5 MB'),
    pytest.param(24, 0.25, 10_000, id='24 MB', marks=pytest.mark.slow),
  ],
)
def test_planted_pairs(
  shared_data, tmp_path, megabytes, near_rate, least_documents
):
  """By brute force: what is dropped is near, and what is near is dropped."""
  assert not planted_corpus.main(
    [
      f'--output={tmp_path / "raw"}',
      f'--megabytes={megabytes}',
      f'--near={near_rate}',
      '--workers=1',
      '--canaries=0',
      '--junk=0',  # which is alike
    ]
  )
  built = Built(tmp_path / 'out', sorted((tmp_path / 'raw').glob('part-*')))
  assert len(built.ids) >= least_documents
  pairs = all_pairs(built.texts, THRESHOLD)
  assert built.drops == {x: pytest.approx(pairs[x]) for x in built.drops}
  for (found, count), (_, _, least) in zip(
    recalls(built, pairs), FOUND, strict=True
  ):
    assert count > 10
    assert found >= math.floor(least * count)
  # What the generator says of its pairs is what brute force finds.
  place = {x: n for n, x in enumerate(built.ids)}
  path = tmp_path / 'raw' / 'truth.jsonl'
  for line in path.read_text(encoding='utf-8').splitlines():
    truth = json.loads(line)
    if truth['kind'] == 'near' and truth['jaccard'] >= THRESHOLD:
      pair = ordered(place[truth['id']], place[truth['of']])
      assert pairs[pair] == truth['jaccard']


@pytest.mark.slow
def test_editions_of_novels(shared_data, tmp_path):
  """Passages of two editions are found; so are a few that resemble others."""
  folder = shared_data / 'dedup/gutenberg_editions'
  path = tmp_path / 'docs.jsonl'
  path.write_bytes(gzip.decompress((folder / 'docs.jsonl.gz').read_bytes()))
  built = Built(tmp_path / 'out', [path])
  place = {x: n for n, x in enumerate(built.ids)}
  with (folder / 'pairs.tsv').open(encoding='utf-8') as file:
    labelled = {
      ordered(place[x['id_a']], place[x['id_b']])
      for x in csv.DictReader(file, delimiter='\t')
    }
  assert len(labelled) == 2203
  similar = all_pairs(built.texts, THRESHOLD)
  pairs = {x: similar[x] for x in labelled if x in similar}
  assert len(pairs) > 2150  # the others are not so similar
  for (found, count), (_, _, least) in zip(
    recalls(built, pairs), FOUND, strict=True
  ):
    assert found >= math.floor(least * count)
  right = sum(x in labelled for x in built.drops)
  print('precision', stats.proportion(right, len(built.drops)))
  assert right >= 0.995 * len(built.drops)


@pytest.mark.slow
def test_bands_meet_as_often_as_theory_says(shared_data):
  """25 bands of 5 rows: 1 - (1 - J^5)^25, on pairs of all similarities."""
  random = Random(5)
  given = list(
    itertools.islice(planted_texts.documents(shared_data, random), 1000)
  )
  vocabulary = planted_texts.Vocabulary(given)
  hashed, similarities = [], []
  for _ in range(4000):
    text = random.choice(given)
    drawn = random.uniform(0.3, 1)
    kept = 2 * drawn / (1 + drawn)
    changed = planted_texts.mutate(text, 1 - kept**0.2, vocabulary, random)
    pair = [near.shingles(texts.Text(x).hashes) for x in (text, changed)]
    hashed += pair
    similarities.append(near.jaccard(*map(np.unique, pair)))
  keys = near.bands(hashed)
  met = (keys[::2] == keys[1::2]).any(axis=1)
  similarity = np.asarray(similarities)
  print('\nsimilarity    pairs   met  theory  interval of 99.9 %')
  for low in np.arange(0.3, 1, 0.05):
    chosen = (low <= similarity) & (similarity < low + 0.05)
    count, found = int(chosen.sum()), int(met[chosen].sum())
    theory = (1 - (1 - similarity[chosen] ** 5) ** 25).mean()
    a, b = stats.proportion(found, count, level=0.001)
    print(
      f'{low:.2f} to {low + 0.05:.2f} {count:6} {found / count:6.3f} '
      f'{theory:6.3f}  {a:.3f} to {b:.3f}'
    )
    assert count > 100
    assert a <= theory <= b

"""Cuts items of evaluation sets out of documents; writes a certificate.

  {'fn': 'lm.corpus.contamination:make',
   'sets': {'arc_easy': {'path': 'evals/arc_easy/test.jsonl'},
            'mine': {'path': 'mine.csv', 'fields': ('question',)}},
   'clean': ('web/*.jsonl',)}

Items become hashed n-grams (lm.corpus.item_grams). A document holds an item if
it has at least half of the n-grams of its question, wherever they stand in it.
Grams that occur in many documents are boilerplate and do not count. They do if
most documents with them hold nearly all of a long item: such an item was copied
often. The certificate, lm.corpus.certificate, says how well this works.

A document loses the passages that hold the grams (lm.corpus.passages), or goes
as a whole if little else is left, if it would be in many pieces, or if `cut` is
None.

How others do it, and what differs here:
  Brown et al. 2020, arXiv 2005.14165, appendix C (GPT-3), and the janitor of
    EleutherAI's lm-evaluation-harness: one shared 13-gram cuts 200 characters
    on either side out of a document. Grams in more than ten documents are left
    out, which also loses an item that eleven documents copied. Here passages
    are cut in the same way, but a share of an item is asked for: so shorter
    grams will do, and no book is cut for one turn of phrase.
  NVIDIA NeMo Curator does as GPT-3. huggingface/datatrove drops the document
    for one gram of 12 words.
  allenai/dolma and Marin: a Bloom filter of 13- or 15-grams of paragraphs marks
    paragraphs; what was found in them is not known. Here a match names its item
    and no hash is a guess: 64 bits are compared in the end.
  allenai/decon: 5-grams of the question, weighted by their rarity, and the
    answer near by. Here the question alone is enough, because a model that read
    it may have read the answer elsewhere; no gram is sampled.
No method of this kind finds what was translated or said in other words.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import functools
import json
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from lm.corpus import (
  certificate,
  decisions,
  evaluation_items,
  item_grams,
  item_matches,
  passages,
  stages,
)
from lm.data import documents as files


def make(
  *,
  sets: Mapping[str, Mapping[str, Any]],
  coverage: float = 0.5,
  lengths: Sequence[int] = (8, 13),
  documents: int = 20,
  texts: int = 10,
  clean: Sequence[str] = (),
  sample: int = 200,
  cut: Mapping[str, int] | None = MappingProxyType(passages.Cut()._asdict()),
) -> stages.Stage:
  """Makes the stage.

  Args:
    sets: name -> where its items are, see `evaluation_items.read`.
    coverage: share of the grams of an item that a document must have.
    lengths: n of the n-grams, in words and in Chinese characters.
    documents: a gram in more of them is boilerplate.
    texts: a gram in more texts of one set is a turn of phrase.
    clean: files of text, or patterns, which the certificate takes as free of
      all items; without them it has no false positives, and puts items into
      texts of the corpus.
    sample: items of each set, by which the certificate measures recall.
    cut: `margin`, `least` and `most_pieces` of what is cut out of a document,
      see `passages.Cut`; None drops every document that holds an item.

  Raises:
    ValueError: a setting or a file cannot be used.
  """
  words, characters = lengths
  settings = item_matches.Settings(
    json.dumps({x: dict(sets[x]) for x in sorted(sets)}, sort_keys=True),
    coverage,
    (words, characters),
    documents,
    texts,
    None if cut is None else passages.cut(cut),
  )
  _check(settings, sample, clean)
  # The files may be others than those of an earlier build of this process.
  item_matches.load.cache_clear()
  plain = json.loads(settings.sets)
  return stages.Stage(
    name=item_matches.STAGE,
    version=4,
    settings={
      **settings.plain(),
      'sets': item_matches.described(settings),
    },
    schema=item_matches.SCHEMA,
    keys=functools.partial(item_matches.keys, settings),
    decide=functools.partial(decide, settings),
    edit=None if cut is None else functools.partial(edit, settings),
    data=tuple(
      path for one in plain.values() for path in evaluation_items.paths(one)
    ),
    report=functools.partial(
      certificate.report, settings, tuple(clean), sample
    ),
  )


def _check(
  settings: item_matches.Settings, sample: int, clean: Sequence[str]
) -> None:
  """Checks settings, see `make`."""
  sets = json.loads(settings.sets)
  if not sets:
    raise ValueError('sets: there is none; name evaluation sets')
  if not 0 < settings.coverage <= 1:
    raise ValueError(
      f'coverage: {settings.coverage} is no share above 0; use 0.5'
    )
  words, characters = settings.lengths
  if words < item_grams.SHORTEST[0] or characters < item_grams.SHORTEST[1]:
    raise ValueError(
      f'lengths: {words} words and {characters} characters are too short; use '
      'at least {} and {}'.format(*item_grams.SHORTEST)
    )
  for name, value in (
    ('documents', settings.documents),
    ('texts', settings.texts),
    ('sample', sample),
  ):
    if value < 1:
      raise ValueError(f'{name}: {value} is below 1')
  if clean:
    files.find(clean)  # an error now, and not after the build
  for name, one in sets.items():
    evaluation_items.check(name, one)


def decide(
  settings: item_matches.Settings, tables: decisions.Tables, keys: str
) -> str:
  """Finds the documents that hold an item, or the places of its grams.

  The reason is 'contamination.SET', and the value the number of the item in the
  files of that set, from 0 on. If a document holds several, it is the first.
  """
  item_matches.prepare(settings, tables, keys)
  flagged = item_matches.flag(settings, tables, keys, item_matches.FLAGGED)
  if settings.cut:
    return item_matches.places(tables, keys, flagged)
  return tables.query(
    f'{item_matches.STAGE}_drops',
    'SELECT f.id AS id, CAST(NULL AS BIGINT) AS witness, '
    'i.number AS value, i.reason AS reason '
    f'FROM (SELECT id, MIN(item) AS item FROM {flagged} GROUP BY id) f '
    f'JOIN {item_matches.STAGE}_items i ON f.item = i.item',
  )


def edit(
  settings: item_matches.Settings,
  batch: pa.RecordBatch,
  cuts: Mapping[int, list[int]],
) -> pa.RecordBatch:
  """Cuts items out of documents, or drops these for the reason of `decide`.

  What was cut is counted as 'contamination.SET', the items of that set, and as
  'contamination.passages'.
  """
  if not cuts:
    return batch
  rows = stages.documents(batch)
  for row, places in cuts.items():
    rows[row] = _without_items(settings, rows[row], np.array(places))
  return stages.batch(batch.column('place'), rows)


def _without_items(
  settings: item_matches.Settings, document: stages.Document, places: np.ndarray
) -> stages.Document:
  """Cuts the items of some places, see `item_matches.Loaded`."""
  assert settings.cut
  loaded = item_matches.load(settings)
  probes = np.unique(np.searchsorted(loaded.ends, places, 'right'))
  items = sorted({loaded.probes[n].item for n in probes})
  grams = np.unique(loaded.places[places])
  left = passages.remove(document.text, grams, loaded.grams.most, settings.cut)
  if left is None:
    return document._replace(
      reason=loaded.reasons[items[0]], value=float(loaded.numbers[items[0]])
    )
  text, count = left
  found = Counter(loaded.reasons[n] for n in items)
  return document._replace(
    text=text,
    changes=(
      *document.changes,
      *sorted(found.items()),
      (f'{item_matches.STAGE}.passages', count),
    ),
  )

"""Answers of tools.where as plain values: `__main__` prints them."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from lm import types
from lm.corpus import personal, provenance
from lm.data import locate, row_lengths, shards, usage
from tools.where import runs

Answer = dict[str, Any]

_AROUND = 60  # characters that a preview shows on each side of a text
_PREVIEW = 100  # characters of the preview of a document in a batch
_CONTEXT = 1000  # characters beside a preview, by which personal data are known


def search(
  query: provenance.Query,
  run: runs.Run | None,
  build: Path | None,
  limit: int,
  raw: bool,
) -> Answer:
  """Finds the documents that hold a text.

  Args:
    query: the text.
    run: whose steps are told; None: none.
    build: that is looked through; None: the shards of the run.
    limit: of documents, and of steps of each.
    raw: whether personal data are shown.

  Returns:
    `{'count', 'reasons', 'documents'}`: how many hold the text, in all and by
    why they were dropped ('' are those that were kept; None where the shards of
    a run were looked through), and the first of them, up to `limit`.

  Raises:
    ValueError: the build or a shard is damaged.
  """
  if build is None:
    assert run is not None, 'nothing to look through'
    return _search_shards(query, run, limit, raw)
  found = provenance.find(build, query, limit)
  witnesses = provenance.by_id(
    build, {x.witness for x in found.records if x.witness is not None}
  )
  opened = {
    name: shards.load(folder)
    for name, folder in provenance.datasets(build).items()
  }
  documents = []
  for record in found.records:
    text = provenance.text(build, record)
    answer = {**_origin(record), 'text': _around(query, text, raw)}
    if record.reason:
      answer['dropped'] = _why(record, witnesses)
    else:
      answer['dataset'] = record.dataset
      if record.dataset in opened and record.number is not None:
        source = opened[record.dataset]
        answer |= _place(source, record.number)
        answer['is_split'] = 'split' in source.manifest.settings
        answer['steps'] = _steps(run, source, record.number, limit)
    documents.append(answer)
  return {
    'count': sum(found.reasons.values()),
    'reasons': dict(found.reasons),
    'documents': documents,
  }


def _search_shards(
  query: provenance.Query, run: runs.Run, limit: int, raw: bool
) -> Answer:
  """Finds the documents of a run's shards that hold a text."""
  sources = {x.source.fingerprint: x.source for x in run.samples.cuts.values()}
  count, documents = 0, []
  for source in sources.values():
    for number in range(source.manifest.documents):
      text = run.tokenizer.decode(source.document(number).tolist())
      if query.search(text) is None:
        continue
      count += 1
      if count <= limit:
        documents.append(
          {
            'text': _around(query, text, raw),
            'dataset': str(source.directory),
            **_place(source, number),
            'is_split': False,
            'steps': _steps(run, source, number, limit),
          }
        )
  return {'count': count, 'reasons': None, 'documents': documents}


def _origin(record: provenance.Record) -> Answer:
  return {
    'id': record.id,
    'source': record.source,
    'file': record.file,
    'place': record.place,
  }


def _why(
  record: provenance.Record, witnesses: Mapping[int, provenance.Record]
) -> Answer:
  """Says why a document was dropped, and for which other one."""
  found = {'reason': record.reason, 'value': record.value, 'witness': None}
  if record.witness is not None:
    witness = witnesses.get(record.witness)
    found['witness'] = (
      {'id': record.witness}
      if witness is None
      else {**_origin(witness), 'reason': witness.reason}
    )
  return found


def _place(source: shards.Shards, number: int) -> Answer:
  place = source.place(number)
  size = place.stop - place.start
  return {
    'number': number,
    'shard': place.shard,
    'shard_document': place.document,
    'shard_tokens': [place.offset, place.offset + size],
  }


def _steps(
  run: runs.Run | None, source: shards.Shards, number: int, limit: int
) -> Answer | None:
  """Finds the steps that read a document; None without a run."""
  if run is None:
    return None
  place = source.place(number)
  found = {}
  for name, cut in run.samples.cuts.items():
    if cut.source.fingerprint != source.fingerprint:
      continue
    found[name] = {
      key: _visits(run, name, (place.start, place.stop), steps, limit)
      for key, steps in (
        ('seen', (0, run.step)),
        ('will_be_seen', (run.step, run.last)),
      )
    }
  return {
    # Of a run that an older version began.
    'known_from': locate.eras(run.samples)[0].start,
    'tokens': place.stop - place.start,
    'sources': found,
  }


def _visits(
  run: runs.Run,
  name: str,
  tokens: tuple[int, int],
  steps: tuple[int, int],
  limit: int,
) -> Answer:
  # One more than is shown, to tell whether there are more.
  found = locate.visits(run.samples, name, tokens, steps)
  found = list(itertools.islice(found, limit + 1))
  return {
    'visits': [
      {**x._asdict(), 'left_out': run.leaves_out(x.step)} for x in found[:limit]
    ],
    'more_up_to': steps[1] - 1 if len(found) > limit else None,
  }


def batch(run: runs.Run, step: int, build: Path | None, raw: bool) -> Answer:
  """Finds the documents of a step's batch.

  Returns:
    `{'step', 'when', 'rows'}`; a row has its first and its last number in the
    batch, and the pieces of documents in it.

  Raises:
    ValueError: the step is not known or no step of the run, or the build or a
      shard is damaged.
  """
  if step >= run.last:
    raise ValueError(
      f'--step={step}: the run ends before it; its last step is {run.last - 1}'
    )
  found = locate.pieces(run.samples, step)
  origins = _origins(found, run, build)
  parts = row_lengths.parts(
    run.config.data.get('lengths', ()), run.config.data.length
  )
  cut = [count for since, count in parts if since <= step][-1]
  rows = []
  for row, pieces in itertools.groupby(found, lambda x: x.row):
    answers = []
    for piece in pieces:
      source = run.samples.cuts[piece.source].source
      tokens = source.document(piece.document)
      beginning = _beginning(run.tokenizer, tokens, piece, raw)
      answers.append(
        {
          'source': piece.source,
          'number': piece.document,
          'tokens': [piece.start, piece.stop],
          'of': len(tokens),
          'origin': origins.get((piece.source, piece.document)),
          'text': _printable(beginning),
        }
      )
    rows.append(
      {'first': row * cut, 'last': row * cut + cut - 1, 'pieces': answers}
    )
  return {'step': step, 'when': run.when(step), 'rows': rows}


def _origins(
  found: Sequence[locate.Piece], run: runs.Run, build: Path | None
) -> dict[tuple[str, int], Answer]:
  """Says where the documents of a batch came from, by source and number."""
  origins: dict[tuple[str, int], Answer] = {}
  if build is None:
    return origins
  known = {
    runs.fingerprint(folder): name
    for name, folder in provenance.datasets(build).items()
  }
  for source, cut in run.samples.cuts.items():
    name = known.get(cut.source.fingerprint)
    if name is None:
      continue
    numbers = {x.document for x in found if x.source == source}
    for number, record in provenance.by_number(build, name, numbers).items():
      origins[source, number] = _origin(record)
  return origins


def mixture(run: runs.Run, step: int | None) -> Iterator[tuple[int, list[Any]]]:
  """Yields steps, and what a run reads of each source before each.

  Args:
    run: as `runs.open_run` returns it.
    step: of which all steps before it are counted; None: both the newest
      checkpoint's and the last.

  Raises:
    ValueError: the step is not known, or beyond the end of the run.
  """
  if step is not None and step > run.last:
    raise ValueError(
      f'--step={step}: the run ends before it; give one up to {run.last}'
    )
  steps = dict.fromkeys((run.step, run.last)) if step is None else (step,)
  for n in steps:
    yield n, usage.before(run.samples, n)


def _around(query: provenance.Query, text: str, raw: bool) -> str:
  """Shows where a text holds what was looked for."""
  match = query.search(text)
  start, stop = (0, 0) if match is None else match.span()
  left = '...' if start > _AROUND else ''
  right = '...' if len(text) > stop + _AROUND else ''
  part = _part(text, max(0, start - _AROUND), stop + _AROUND, raw)
  return f'{left}{_printable(part)}{right}'


def _part(text: str, start: int, stop: int, raw: bool) -> str:
  """Cuts a part from a text, in which personal data are masked."""
  if raw:
    return text[start:stop]
  first = max(0, start - _CONTEXT)
  near = text[first : stop + _CONTEXT]
  return personal.mask_part(near, start - first, stop - first)


def _beginning(
  tokenizer: types.Tokenizer, tokens: np.ndarray, piece: locate.Piece, raw: bool
) -> str:
  """Shows how a piece of a document begins.

  Args:
    tokenizer: of the run.
    tokens: of the document.
    piece: of it.
    raw: whether personal data are shown.
  """

  def decoded(start: int, stop: int) -> str:
    return tokenizer.decode(tokens[start:stop].tolist())

  if raw:
    return decoded(piece.start, piece.stop)[:_PREVIEW]
  # A window may cut what only the rest of it tells.
  stop = piece.stop + _CONTEXT
  near = decoded(max(0, piece.start - _CONTEXT), stop)
  first = len(near) - len(decoded(piece.start, stop))
  last = len(near) - len(decoded(piece.stop, stop))
  return personal.mask_part(near, first, min(last, first + _PREVIEW))


def _printable(text: str) -> str:
  """Puts a text on one line that does nothing to a terminal."""
  return ''.join(x if x.isprintable() else '?' for x in ' '.join(text.split()))

"""Says where a text lies in the data, and which steps of a run read it.

  python -m tools.where 'some text' --build=FOLDER --workdir=RUN
  python -m tools.where --step=1234 --workdir=RUN [--build=FOLDER]
  python -m tools.where --mixture --workdir=RUN [--step=1234]

The first lists the documents of a build that hold the text: which were dropped
and why, in which shard the others lie, and at which steps the run has seen them
or will see them. Without a build it looks into the shards that the run reads,
and without a run it says nothing of steps. The second prints the documents of a
step's batch. The third prints how many tokens and epochs of each source the run
has read, and how many it will have read at its end, or before a step.

Personal data are masked in what is printed of texts: a dropped document is kept
as it was before a later stage masked it. --raw prints texts as they are.

Step N is the update from state N to state N + 1, which metrics.jsonl writes as
N + 1. A run has seen a step if its newest checkpoint is a later one. Texts that
it is evaluated on do not count. Nothing is logged for this: a batch follows
from its step.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import itertools
from pathlib import Path

import numpy as np

from lm import config, types
from lm.corpus import personal, provenance
from lm.data import locate, row_lengths, shards, usage
from tools.where import runs

_AROUND = 60  # characters that a preview shows on each side of a text
_PREVIEW = 100  # characters of the preview of a document in a batch
_CONTEXT = 1000  # characters beside a preview, by which personal data are known


def search(
  query: provenance.Query,
  run: runs.Run | None,
  build: Path | None,
  limit: int,
  raw: bool,
) -> Iterator[str]:
  """Yields lines on the documents that hold a text.

  Args:
    query: the text.
    run: whose steps are told; None: none.
    build: that is looked through; None: the shards of the run.
    limit: of documents, and of steps of each.
    raw: whether personal data are shown.

  Raises:
    ValueError: the build or a shard is damaged.
  """
  if build is None:
    assert run is not None, 'nothing to look through'
    yield from _search_shards(query, run, limit, raw)
    return
  found = provenance.find(build, query, limit)
  count = sum(found.reasons.values())
  counts = ', '.join(
    f'{n} {f"dropped by {reason}" if reason else "kept"}'
    for reason, n in found.reasons.items()
  )
  yield f'documents with the text: {count}{f" ({counts})" if counts else ""}'
  witnesses = provenance.by_id(
    build, {x.witness for x in found.records if x.witness is not None}
  )
  opened = {
    name: shards.load(folder)
    for name, folder in provenance.datasets(build).items()
  }
  for record in found.records:
    yield f'document {_origin(record)}'
    yield f'  {_around(query, provenance.text(build, record), raw)}'
    if record.reason:
      yield f'  dropped: {_why(record, witnesses)}'
    elif record.dataset not in opened or record.number is None:
      yield f'  kept, but {build} holds no dataset {record.dataset} any more'
    else:
      source = opened[record.dataset]
      yield f'  {_place(record.dataset, source, record.number)}'
      if 'split' in source.manifest.settings:
        yield (
          '  the build cut each document in two, so that the text may lie in '
          'its end, which is for validation and not read by these steps'
        )
      yield from _steps(run, source, record.number, limit)
  yield from _rest(count, len(found.records))


def _search_shards(
  query: provenance.Query, run: runs.Run, limit: int, raw: bool
) -> Iterator[str]:
  """Yields lines on the documents of a run's shards that hold a text."""
  sources = {x.source.fingerprint: x.source for x in run.samples.cuts.values()}
  count = 0
  for source in sources.values():
    for number in range(source.manifest.documents):
      text = run.tokenizer.decode(source.document(number).tolist())
      if query.search(text) is None:
        continue
      count += 1
      if count <= limit:
        yield f'document {number} of {source.directory}'
        yield f'  {_around(query, text, raw)}'
        yield f'  {_place(str(source.directory), source, number)}'
        yield from _steps(run, source, number, limit)
  yield f'documents with the text: {count}, as the tokenizer decodes them'
  yield from _rest(count, min(count, limit))


def _rest(count: int, shown: int) -> Iterator[str]:
  if count > shown:
    yield f'{count - shown} more: give a larger --limit'


def _origin(record: provenance.Record) -> str:
  where = ', '.join(x for x in (record.file, record.place) if x)
  return f'{record.id}: {record.source}, {where}'


def _why(
  record: provenance.Record, witnesses: Mapping[int, provenance.Record]
) -> str:
  """Says why a document was dropped."""
  value = '' if record.value is None else f', value {record.value:g}'
  if record.witness is None:
    return f'{record.reason}{value}'
  witness = witnesses.get(record.witness)
  told = record.witness if witness is None else _origin(witness)
  fate = ''
  if witness is not None and witness.reason:
    fate = f', itself dropped by {witness.reason}'
  return f'{record.reason}{value}, for document {told}{fate}'


def _place(dataset: str, source: shards.Shards, number: int) -> str:
  place = source.place(number)
  size = place.stop - place.start
  return (
    f'in {dataset}: shard {place.shard}, document {place.document} of it '
    f'({number} of the dataset), its tokens {place.offset} to '
    f'{place.offset + size - 1}'
  )


def _steps(
  run: runs.Run | None, source: shards.Shards, number: int, limit: int
) -> Iterator[str]:
  """Yields lines on the steps that read a document."""
  if run is None:
    return
  place = source.place(number)
  size = place.stop - place.start
  sources = [
    name
    for name, cut in run.samples.cuts.items()
    if cut.source.fingerprint == source.fingerprint
  ]
  start = locate.eras(run.samples)[0].start
  if start:  # of a run that an older version began
    yield f'  steps before {start} are not known: settings changed there'
  if not sources:
    yield '  the run does not train on this dataset'
  for name in sources:
    for word, steps in (
      ('seen', (0, run.step)),
      ('will be seen', (run.step, run.last)),
    ):
      # One more than is shown, to tell whether there are more.
      found = locate.visits(run.samples, name, (place.start, place.stop), steps)
      found = list(itertools.islice(found, limit + 1))
      told = [f'  {word} as {name}' if found else f'  not {word} as {name}']
      for visit in found[:limit]:
        out = ', left out by a rollback' if run.leaves_out(visit.step) else ''
        told.append(
          f'    step {visit.step}, row {visit.row}, epoch {visit.epoch}: '
          f'tokens {visit.start} to {visit.stop - 1} of {size}{out}'
        )
      if len(found) > limit:
        told.append(f'    and more up to step {steps[1] - 1}')
      yield from told


def batch(
  run: runs.Run, step: int, build: Path | None, raw: bool
) -> Iterator[str]:
  """Yields lines on the documents of a step's batch.

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
  yield f'step {step}: {run.when(step)}'
  for row, pieces in itertools.groupby(found, lambda x: x.row):
    last = f' to {row * cut + cut - 1}' if cut > 1 else ''
    yield f'row {row * cut}{last}'
    for piece in pieces:
      source = run.samples.cuts[piece.source].source
      tokens = source.document(piece.document)
      yield (
        f'  {piece.source}, document {piece.document}, tokens {piece.start} to '
        f'{piece.stop - 1} of {len(tokens)}'
        f'{origins.get((piece.source, piece.document), "")}'
      )
      yield f'    {_printable(_beginning(run.tokenizer, tokens, piece, raw))}'


def _origins(
  found: Sequence[locate.Piece], run: runs.Run, build: Path | None
) -> dict[tuple[str, int], str]:
  """Says where the documents of a batch came from, by source and number."""
  origins: dict[tuple[str, int], str] = {}
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
      origins[source, number] = f'; document {_origin(record)}'
  return origins


def mixture(run: runs.Run, step: int | None) -> Iterator[str]:
  """Yields tables of what a run reads of each source.

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
    yield f'before step {n} of {run.last}'
    for line in usage.table(usage.before(run.samples, n)):
      yield f'  {line}'


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


def _scored(run: runs.Run) -> Iterator[str]:
  """Says what a step makes of its windows, unless each token is a target."""
  if not run.likelihood:
    fn = run.config.data.objective['fn']
    yield (
      f'{fn} chooses what it predicts in these windows: a step reads the '
      'tokens, and not each is a target'
    )


def lines(flags: argparse.Namespace) -> Iterator[str]:
  """Yields what the program prints.

  Raises:
    config.ConfigError: the flags do not fit together.
    ValueError: a folder cannot be used.
  """
  _check(flags)
  run = None
  if flags.workdir is not None:
    run = runs.open_run(flags.workdir, flags.build, flags.data)
    if not flags.mixture:
      yield from _scored(run)
  if flags.mixture:
    assert run is not None
    yield from mixture(run, flags.step)
  elif flags.step is None:
    query = provenance.Query(flags.text, flags.loose)
    yield from search(query, run, flags.build, flags.limit, flags.raw)
  else:
    assert run is not None
    yield from batch(run, flags.step, flags.build, flags.raw)


def _check(flags: argparse.Namespace) -> None:
  """Refuses flags that do not fit together."""
  wants = flags.step is not None or flags.mixture
  if (flags.text is None) != wants:
    raise config.ConfigError('give a text to look for, or --step or --mixture')
  if flags.text is not None and not flags.text.strip():
    raise config.ConfigError('the text is empty: give what to look for')
  if wants and flags.workdir is None:
    raise config.ConfigError(
      '--step and --mixture need --workdir, the folder of a run'
    )
  if flags.step is not None and flags.step < 0:
    raise config.ConfigError(f'--step={flags.step}: give one from 0 on')
  if flags.workdir is None and flags.build is None:
    raise config.ConfigError('give --build, --workdir or both')
  if flags.limit < 1:
    raise config.ConfigError(f'--limit={flags.limit}: give one from 1 on')


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.where',
    description=__doc__,
    epilog=config.exit_code_help('tools.where'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  config.trust_flag(parser)
  add = parser.add_argument
  add('text', nargs='?', help='what to look for')
  add('--loose', action='store_true', help='ignore case and kinds of space')
  add('--step', type=int, help='print the batch of this step')
  add('--mixture', action='store_true', help='print what is read by source')
  add('--build', type=Path, help='folder of a build of tools.factory')
  add('--workdir', metavar='RUN', type=Path, help='folder of a run')
  add('--data', type=Path, help='where the data of the run lie now')
  add('--raw', action='store_true', help='do not mask personal data')
  add('--limit', type=int, default=20, help='documents, and steps of each')
  flags = parser.parse_args(argv)
  with config.user_errors():
    for line in lines(flags):
      print(line)


if __name__ == '__main__':
  config.main(main)

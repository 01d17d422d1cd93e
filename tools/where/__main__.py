"""Says where a text lies in the data, and which steps of a run read it.

  python -m tools.where 'some text' --build=FOLDER --workdir=RUN
  python -m tools.where --step=1234 --workdir=RUN [--build=FOLDER]
  python -m tools.where --mixture --workdir=RUN [--step=1234]
  python -m tools.where 'some text' --replay --workdir=RUN [--probe='a text']

With --json the answer is JSON, see docs/automation.md.

The first lists the documents of a build that hold the text: which were dropped
and why, in which shard the others lie, and at which steps the run has seen them
or will see them. Without a build it looks into the shards that the run reads,
and without a run it says nothing of steps. The second prints the documents of a
step's batch. The third prints how many tokens and epochs of each source the run
has read, and how many it will have read at its end, or before a step. The last
trains a part of the run twice, with the documents that hold the text and
without them, and prints what that changes in the loss of this text and others.

Personal data are masked in what is printed of texts: a dropped document is kept
as it was before a later stage masked it. --raw prints texts as they are.

Step N is the update from state N to state N + 1, which metrics.jsonl writes as
N + 1. A run has seen a step if its newest checkpoint is a later one. Texts that
it is evaluated on do not count. Nothing is logged for this: a batch follows
from its step.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import config
from lm.corpus import provenance
from lm.data import usage
from lm.runtime import compilation_cache, devices, memory
from tools.where import answers, leave_out, runs

_ALL = 1 << 30  # documents


def _found(answer: Mapping[str, Any], build: Path | None) -> Iterator[str]:
  """Yields lines on the documents that hold a text."""
  count, documents = answer['count'], answer['documents']
  if answer['reasons'] is not None:
    counts = ', '.join(
      f'{n} {f"dropped by {reason}" if reason else "kept"}'
      for reason, n in answer['reasons'].items()
    )
    yield f'documents with the text: {count}{f" ({counts})" if counts else ""}'
  for document in documents:
    if 'id' in document:
      yield f'document {_origin(document)}'
    else:
      yield f'document {document["number"]} of {document["dataset"]}'
    yield f'  {document["text"]}'
    if dropped := document.get('dropped'):
      yield f'  dropped: {_why(dropped)}'
    elif 'shard' not in document:
      yield (
        f'  kept, but {build} holds no dataset {document["dataset"]} any more'
      )
    else:
      yield f'  {_place(document)}'
      if document['is_split']:
        yield (
          '  the build cut each document in two, so that the text may lie in '
          'its end, which is for validation and not read by these steps'
        )
      yield from _steps(document['steps'])
  if answer['reasons'] is None:
    yield f'documents with the text: {count}, as the tokenizer decodes them'
  if count > len(documents):
    yield f'{count - len(documents)} more: give a larger --limit'


def _origin(document: Mapping[str, Any]) -> str:
  where = ', '.join(x for x in (document['file'], document['place']) if x)
  return f'{document["id"]}: {document["source"]}, {where}'


def _why(dropped: Mapping[str, Any]) -> str:
  """Says why a document was dropped."""
  value = '' if dropped['value'] is None else f', value {dropped["value"]:g}'
  witness = dropped['witness']
  if witness is None:
    return f'{dropped["reason"]}{value}'
  told = _origin(witness) if 'source' in witness else witness['id']
  reason = witness.get('reason')
  fate = f', itself dropped by {reason}' if reason else ''
  return f'{dropped["reason"]}{value}, for document {told}{fate}'


def _place(document: Mapping[str, Any]) -> str:
  start, stop = document['shard_tokens']
  return (
    f'in {document["dataset"]}: shard {document["shard"]}, document '
    f'{document["shard_document"]} of it ({document["number"]} of the dataset),'
    f' its tokens {start} to {stop - 1}'
  )


def _steps(steps: Mapping[str, Any] | None) -> Iterator[str]:
  """Yields lines on the steps that read a document."""
  if steps is None:
    return
  if start := steps['known_from']:
    yield f'  steps before {start} are not known: settings changed there'
  if not steps['sources']:
    yield '  the run does not train on this dataset'
  for name, found in steps['sources'].items():
    for key, part in found.items():
      word, visits = key.replace('_', ' '), part['visits']
      yield f'  {word} as {name}' if visits else f'  not {word} as {name}'
      for x in visits:
        out = ', left out by a rollback' if x['left_out'] else ''
        yield (
          f'    step {x["step"]}, row {x["row"]}, epoch {x["epoch"]}: tokens '
          f'{x["start"]} to {x["stop"] - 1} of {steps["tokens"]}{out}'
        )
      if part['more_up_to'] is not None:
        yield f'    and more up to step {part["more_up_to"]}'


def _batch(answer: Mapping[str, Any]) -> Iterator[str]:
  """Yields lines on the documents of a step's batch."""
  yield f'step {answer["step"]}: {answer["when"]}'
  for row in answer['rows']:
    first, last = row['first'], row['last']
    yield f'row {first} to {last}' if last > first else f'row {first}'
    for piece in row['pieces']:
      (start, stop), origin = piece['tokens'], piece['origin']
      yield (
        f'  {piece["source"]}, document {piece["number"]}, tokens {start} to '
        f'{stop - 1} of {piece["of"]}'
        f'{f"; document {_origin(origin)}" if origin else ""}'
      )
      yield f'    {piece["text"]}'


def _scored(run: runs.Run) -> Iterator[str]:
  """Says what a step makes of its windows, unless each token is a target."""
  if not run.likelihood:
    fn = run.config.data.objective['fn']
    yield (
      f'{fn} chooses what it predicts in these windows: a step reads the '
      'tokens, and not each is a target'
    )


def _replay(flags: argparse.Namespace, run: runs.Run) -> leave_out.Answer:
  """Trains with the documents that hold the text, and without them."""
  query = provenance.Query(flags.text, flags.loose)
  held = answers.search(query, run, flags.build, _ALL, flags.raw)
  return leave_out.replay(
    flags.workdir,
    run,
    leave_out.documents(held['documents']),
    [flags.text, *flags.probe],
    (flags.since, flags.until),
  )


def answer(
  flags: argparse.Namespace,
) -> tuple[Mapping[str, Any], Iterator[str]]:
  """Answers what the flags ask for, as plain values and in lines.

  Raises:
    config.ConfigError: the flags do not fit together.
    ValueError: a folder cannot be used.
  """
  _check(flags)
  run = None
  if flags.workdir is not None:
    run = runs.open_run(flags.workdir, flags.build, flags.data)
  notes = [*_scored(run)] if run is not None and not flags.mixture else []
  if flags.mixture:
    assert run is not None
    read = [*answers.mixture(run, flags.step)]
    found: Mapping[str, Any] = {
      'before': [
        {'step': n, 'sources': [x._asdict() for x in parts]}
        for n, parts in read
      ],
      'last': run.last,
    }
    lines = [
      line
      for n, parts in read
      for line in (
        f'before step {n} of {run.last}',
        *(f'  {row}' for row in usage.table(parts)),
      )
    ]
  elif flags.replay:
    assert run is not None
    told = _replay(flags, run)
    found, lines = leave_out.plain(told), [*leave_out.lines(told)]
  elif flags.step is None:
    query = provenance.Query(flags.text, flags.loose)
    found = answers.search(query, run, flags.build, flags.limit, flags.raw)
    lines = [*_found(found, flags.build)]
  else:
    assert run is not None
    found = answers.batch(run, flags.step, flags.build, flags.raw)
    lines = [*_batch(found)]
  return {**found, 'notes': notes}, iter([*notes, *lines])


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
  if flags.replay and (flags.text is None or flags.workdir is None):
    raise config.ConfigError(
      '--replay needs a text and --workdir, the folder of a run'
    )
  if not flags.replay and (flags.probe or flags.since or flags.until):
    raise config.ConfigError('--probe, --since and --until are of --replay')
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
  add('--replay', action='store_true', help='train without these documents')
  add('--probe', action='append', default=[], help='a text; may be repeated')
  add('--since', type=int, default=0, help='leave out from this step on')
  add('--until', type=int, help='step to train to; the newest checkpoint')
  add('--raw', action='store_true', help='do not mask personal data')
  add('--limit', type=int, default=20, help='documents, and steps of each')
  add('--json', action='store_true', help='for programs')
  flags = parser.parse_args(argv)
  if flags.replay:
    memory.prepare()
    compilation_cache.prepare()
    devices.announce()
  with config.user_errors():
    found, lines = answer(flags)
  if flags.json:
    config.print_json(found)
  else:
    print('\n'.join(lines))


if __name__ == '__main__':
  config.main(main)

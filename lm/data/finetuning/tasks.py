"""Fine-tuning: batches of labelled records, addressed by step.

They correspond to those of `lm.data.stream`, with records in the place of a
stream of tokens:

  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': {
      'fn': 'lm.data.finetuning.readers:banking77',
      'path': 'train.csv',
    },
    'form': {
      'fn': 'lm.data.finetuning.forms:classify',
      'classes': 77,
      'labels': ...,
    },
    'length': 64,
  }

A form makes rows of records: one a record, or several that overlap where a
record is longer than a row. A batch is a function of records, form, seed and
step.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
from typing import Any

import numpy as np

from lm import config, types
from lm.data import names, objectives, stream, windows
from lm.data.finetuning import batching
from lm.data.finetuning import records as record_lib


def make(
  *,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  seed: int,
  batch_size: int,
  length: int,
  folds: int = 1,
  held_out: int | None = None,
  pack: bool = False,
  expected: int | None = None,
  position: Mapping[str, Any] | None = None,
) -> stream.Data:
  """Opens records for training: shuffled anew in each epoch, without end.

  Args:
    records: spec of a reader, such as one of `readers` or `pair_readers`.
    form: spec of a form, such as one of `forms` or `pair_forms`.
    tokenizer: of the model.
    seed: of the order.
    batch_size: B, rows a step, over all hosts.
    length: L, tokens a row.
    folds: number of parts for cross-validation; the number of a record modulo
      `folds` says which part it belongs to.
    held_out: the part that is not trained on; None: all parts are.
    pack: puts several records in a row, the same ones in every epoch. That
      leaves less padding, and steps differ in their number of records.
    expected: mean number of records that a step draws, each by itself, which
      `lm.training.privacy` needs. If more than `batch_size` are drawn, a random
      choice of them is used; empty rows fill the batch. None: epochs.
    position: what `state` returned; it has to be of the same rows in the same
      order.

  Raises:
    ValueError: the records cannot be read or made into rows, a setting is out
      of range, or `position` is of other records or settings.
  """
  objectives.check_whole('batch_size', batch_size, 1)
  task, built, rows = read(
    records,
    form,
    tokenizer,
    length,
    lambda n: held_out is None or n % folds != held_out,
  )
  check_folds(folds, held_out)
  if expected is not None:
    _check_expected(expected, batch_size, len(task.records), len(rows), pack)
  _check_trainable(task, built, rows)
  groups, built = _grouped(rows, built, length, pack, form['fn'])
  settings = (length, folds, pack, *([expected] if expected else []))
  fingerprint = _fingerprint(task.card, form, built.labels, settings, tokenizer)
  identity = {
    'fingerprint': fingerprint,  # the same for all parts of cross-validation
    'held_out': held_out,
    'batch_size': batch_size,
    'seed': seed,
  }
  _check_position(position, identity)
  numbers_at = _choice(seed, batch_size, len(groups), expected)

  def batch(step: int, host: int = 0, hosts: int = 1) -> types.Batch:
    first, stop = stream.host_rows(batch_size, host, hosts)
    chosen = [groups[n] for n in numbers_at(step, first, stop)]
    chosen += [[]] * (stop - first - len(chosen))
    return batching.assemble(chosen, built, length, tokenizer)

  def state(step: int) -> dict[str, Any]:
    place = {**identity, 'step': step, 'tokens': step * batch_size * length}
    # Whoever uses the run must know its classes where the records are not.
    place |= {'labels': list(built.labels)} if built.labels else {}
    # How many records are cut says something about those of a private run.
    return place if expected else {**place, 'counts': task.card.counts}

  example = batching.assemble([[]] * batch_size, built, length, tokenizer)
  return stream.Data(
    batch=batch,
    state=state,
    examples=(example,),
    fingerprint=fingerprint,
    steps=None,
    text_bytes=None,
    step_tokens=batch_size * length,
    likelihood=False,
    bytes_per_token=None,
    reading=list,
    drawn=None if expected is None else (len(groups), expected),
  )


def read(
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  length: int,
  keep: Callable[[int], bool] = lambda n: True,
) -> tuple[record_lib.Records, batching.Form, list[batching.Row]]:
  """Reads records, and makes rows of those whose number is kept.

  Args:
    records: spec of a reader.
    form: spec of a form.
    tokenizer: of the model.
    length: L, tokens a row.
    keep: `number of a record -> bool`.

  What of the data set is not used is counted, on stderr and in the card.

  Returns:
    The records that are kept, the form and the rows.

  Raises:
    ValueError: the records cannot be read or made into rows, none is kept, or
      the length is out of range.
  """
  objectives.check_whole('length', length, 4)
  task = config.build(records)
  built = config.build(form, tokenizer=tokenizer, length=length)
  kept = [x for n, x in enumerate(task.records) if keep(n)]
  if not kept:
    raise ValueError(f'task {task.card.name}: no record is left: change folds')
  rows = built.rows(kept)
  counts = record_lib.counted({**task.counts, **_counts(kept, built, rows)})
  card = task.card._replace(counts=counts)
  record_lib.print_counts(card)
  return task._replace(card=card, records=kept), built, rows


def _unseen(records: Sequence[Any], form: batching.Form) -> dict[int, str]:
  """Gives records with a label that is none of the form's, and that label."""
  if not form.labels:
    return {}
  known = {*form.labels}
  found = {n: {*record_lib.labels_of(x)} - known for n, x in enumerate(records)}
  return {n: min(labels) for n, labels in found.items() if labels}


def _counts(
  records: Sequence[Any], form: batching.Form, rows: Sequence[batching.Row]
) -> dict[str, int]:
  """Counts what of the records the rows leave out."""
  cut = {row.record for row in rows if row.cut}
  unseen = {*_unseen(records, form)}
  scored = {row.record for row in rows if _is_scored(row)}
  return {
    f'tokens cut off from {len(cut)} records': sum(row.cut for row in rows),
    'records with a label that the model lacks': len(unseen),
    'records that nothing is learnt from': len(
      {*range(len(records))} - scored - unseen
    ),
  }


def _is_scored(row: batching.Row) -> bool:
  return any(row.weights) and not row.lost


def _check_trainable(
  task: record_lib.Records, form: batching.Form, rows: Sequence[batching.Row]
) -> None:
  """Checks that there is something to learn from records.

  Raises:
    ValueError: the form lacks one of their labels, or no token is scored.
  """
  for label in _unseen(task.records, form).values():
    raise ValueError(
      f'task: label {names.short(label)} is not one of the '
      f'{len(form.labels)} labels ({names.short(", ".join(form.labels))}): '
      'give those of the training records'
    )
  check_scored(task, rows)


def check_scored(
  task: record_lib.Records, rows: Sequence[batching.Row]
) -> None:
  """Checks that rows score something of at least one record.

  Raises:
    ValueError: they score nothing.
  """
  if not any(map(_is_scored, rows)):
    raise ValueError(
      f'task {task.card.name}: nothing is learnt from its {len(task.records)} '
      'records: set a larger length, or leave answers more room'
    )


def check_folds(folds: int, held_out: int | None) -> None:
  """Checks the settings of cross-validation.

  Raises:
    ValueError: there is no part `held_out`.
  """
  objectives.check_whole('folds', folds, 1)
  if held_out is not None and not 0 <= held_out < folds:
    raise ValueError(f'held_out={held_out} must be below folds={folds}')


def _check_expected(
  expected: int, batch_size: int, records: int, rows: int, pack: bool
) -> None:
  """Checks that records can be drawn one by one, `expected` a step.

  Raises:
    ValueError: they cannot.
  """
  objectives.check_whole('expected', expected, 1)
  # The guarantee is one for each record, so a record must be one row.
  if pack or rows != records:
    raise ValueError(
      f'expected: a row has to be one record, and {records} records are {rows} '
      'rows: set pack=False and a length that fits all'
    )
  if expected > min(batch_size, rows):
    raise ValueError(
      f'expected={expected} is above batch_size={batch_size} or the {rows} '
      'records: lower it'
    )


def _grouped(
  rows: Sequence[batching.Row],
  form: batching.Form,
  length: int,
  pack: bool,
  name: str,
) -> tuple[list[list[batching.Row]], batching.Form]:
  """Groups the rows that share a row of the batch, and adapts the form to it.

  Raises:
    ValueError: rows of this form cannot be packed.
  """
  if pack and not form.packs:
    raise ValueError(
      f'pack: each row of {name} fills a row of the batch: leave it out'
    )
  groups = batching.pack(rows, form, length) if pack else [[x] for x in rows]
  if form.scored is not None:
    # A row of the batch has room for the targets of its largest group.
    form = form._replace(scored=form.scored * max(map(len, groups)))
  return groups, form


def _fingerprint(
  card: record_lib.DatasetCard,
  form: Mapping[str, Any],
  labels: Sequence[str],
  settings: Sequence[Any],
  tokenizer: types.Tokenizer,
) -> str:
  """Hashes all that decides on the rows and their number."""
  # The spec of the labels may be of a reader, whose path does not count.
  form = {key: value for key, value in form.items() if key != 'labels'}
  described = [card.sha256, form, labels, *settings]
  text = json.dumps([described, tokenizer.sha256], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _check_position(
  position: Mapping[str, Any] | None, identity: Mapping[str, Any]
) -> None:
  """Checks that a position is of the same rows in the same order.

  Raises:
    ValueError: it is not.
  """
  for key, value in identity.items():
    if position is not None and position.get(key) != value:
      raise ValueError(
        f'data: {key} is {str(value)[:12]}, and the run began with '
        f'{str(position.get(key))[:12]}: tune anew in another --workdir'
      )


def _choice(
  seed: int, batch_size: int, count: int, expected: int | None
) -> Callable[[int, int, int], Sequence[int]]:
  """Chooses the groups of a step: `(step, first, stop) -> their numbers`.

  Args:
    seed: of the order.
    batch_size: B, the most groups of a step.
    count: number of groups.
    expected: mean number of groups a step, each drawn with equal probability,
      independently of all others; there may be fewer of them than asked for.
      None: epochs, in each of which every group occurs once.
  """
  digest = hashlib.sha256(f'{seed} tasks'.encode()).digest()
  key = np.uint64(int.from_bytes(digest[:8]))

  def in_epochs(step: int, first: int, stop: int) -> Sequence[int]:
    sample = step * batch_size + np.arange(first, stop, dtype=np.int64)
    epoch, place = np.divmod(sample, count)
    # A batch may reach from one epoch into the next, so each row has the key
    # of its own epoch.
    keys = windows.hashed(key, epoch.astype(np.uint64))
    return windows.permuted(place.astype(np.uint64), count, keys).tolist()

  def drawn(step: int, first: int, stop: int) -> Sequence[int]:
    assert expected is not None
    # A generator of its own for each step, so that no step depends on others.
    bits = np.random.Philox(key=[key, np.uint64(step)])
    generator = np.random.Generator(bits)
    chosen = np.flatnonzero(generator.random(count) < expected / count)
    # In random order, so that it is random which ones are left out.
    return generator.permutation(chosen)[:batch_size][first:stop].tolist()

  return in_epochs if expected is None else drawn

"""Rows of tokens that a form makes of records, and batches of rows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm import types
from lm.data import objectives

NOT_SCORED = -1  # the place of a token that stands for no part of its record
_OPEN_GROUPS = (
  64  # groups that rows are still added to; more hardly fill better
)


class Row(NamedTuple):
  """One row of a batch, before it is padded.

  Attributes:
    record: number of the record that it comes from.
    ids: tokens.
    token_types: of the tokens, 0 or 1: BERT's sentences A and B.
    targets: as many as the form scores, see `types.Batch`.
    weights: of the targets.
    places: the part of the record that each token stands for, numbered as the
      form says, or `NOT_SCORED`.
    source: tokens of the encoder's side.
    documents: number of the document that each token belongs to, from 0 on; ():
      all belong to one.
    cut: number of tokens of the record that did not fit.
    lost: whether nothing is learnt from the record, though it is scored: its
      answer is whole in none of its rows, or both of its answers are equal.
  """

  record: int
  ids: list[int]
  token_types: list[int]
  targets: list[int]
  weights: list[float]
  places: list[int]
  source: Sequence[int] = ()
  documents: Sequence[int] = ()
  cut: int = 0
  lost: bool = False


class Form(NamedTuple):
  """How records become rows.

  Attributes:
    rows: `records -> rows`, in the order of the records.
    scored: number of targets a row; None: one a token.
    labels: the classes in the order of their numbers; empty where the model
      finds positions or writes text.
    token_types: whether the model is given the token types.
    source: S, positions of the encoder's side; None: there is none.
    prompt: `records -> Batch`, which a model continues to answer; None: it
      writes nothing.
    packs: whether a row of a batch can hold several records.
    alone: `(texts, side) -> rows` of single texts, one each, as the form has
      them on that side of a record; None: it has no sides.
  """

  rows: Callable[[Sequence[Any]], list[Row]]
  scored: int | None
  labels: tuple[str, ...] = ()
  token_types: bool = False
  source: int | None = None
  prompt: Callable[[Sequence[Any]], types.Batch] | None = None
  packs: bool = True
  alone: Callable[[Sequence[str], int], list[Row]] | None = None


def assemble(
  groups: Sequence[Sequence[Row]],
  form: Form,
  length: int,
  tokenizer: types.Tokenizer,
) -> types.Batch:
  """Makes a batch [B, L] of B groups of rows.

  Args:
    groups: the rows that share a row of the batch: none, one or several.
    form: that made them.
    length: L.
    tokenizer: for the id of padding.
  """
  batch = objectives.padding(len(groups), length, tokenizer)
  # Heads score a few targets a row; models that write or tag, each position.
  width = length if form.scored is None else form.scored
  targets = np.zeros((len(groups), width), np.int32)
  weights = np.zeros((len(groups), width), np.float32)
  token_types = np.zeros((len(groups), length), np.int32)
  source = np.full((len(groups), form.source or 0), tokenizer.pad, np.int32)
  source_segments = np.zeros_like(source)
  for b, group in enumerate(groups):
    start = source_start = 0
    for number, row in enumerate(group, 1):
      here = slice(start, start + len(row.ids))
      batch.tokens[b, here] = row.ids
      documents = np.asarray(row.documents or [0] * len(row.ids), np.int32)
      batch.segments[b, here] = number + documents
      # Positions restart in each document; the numbers of documents ascend.
      document_starts = np.searchsorted(documents, documents)
      batch.positions[b, here] = np.arange(len(row.ids)) - document_starts
      token_types[b, here] = row.token_types
      size = len(row.targets)
      # Targets stand under their tokens, or one row's after another's.
      first = start if form.scored is None else (number - 1) * size
      targets[b, first : first + size] = row.targets
      weights[b, first : first + size] = row.weights
      # The decoder's document `number` reads the encoder's part of that number.
      there = slice(source_start, source_start + len(row.source))
      source[b, there] = row.source
      source_segments[b, there] = number
      start, source_start = here.stop, there.stop
  batch = batch._replace(targets=targets, weights=weights)
  if form.token_types:
    batch = batch._replace(token_types=token_types)
  if form.source is not None:
    batch = batch._replace(source=source, source_segments=source_segments)
  return batch


def pack(rows: Sequence[Row], form: Form, length: int) -> list[list[Row]]:
  """Groups rows so that each group fits in one row of a batch.

  A row goes into the first group that has room for it, of the last
  `_OPEN_GROUPS`.

  Args:
    rows: in any order.
    form: that made them.
    length: L, tokens that a group may have.
  """
  groups: list[list[Row]] = []
  room: list[list[int]] = []  # left in each group, of tokens and of the source
  for row in rows:
    size = [len(row.ids), len(row.source)]
    # Only the last groups are searched: all would make packing quadratic.
    n = next(
      (
        n
        for n in range(max(0, len(groups) - _OPEN_GROUPS), len(groups))
        if all(a <= b for a, b in zip(size, room[n], strict=True))
      ),
      len(groups),
    )
    if n == len(groups):
      groups.append([])
      room.append([length, form.source or 0])
    groups[n].append(row)
    room[n] = [b - a for a, b in zip(size, room[n], strict=True)]
  return groups

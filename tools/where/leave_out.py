"""Trains a part of a run twice, with documents and without them.

The difference says what these documents have taught. Both trainings begin with
the same checkpoint and read the same batches. In the second, the losses of the
tokens of the documents have weight 0, and all else is kept: other documents
have the same places, and packed documents do not see each other.

The loss of an update is the mean over what has a weight. So where n of N tokens
are left out, each of the others counts N / (N - n) times as much.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import checkpoint, config, types
from lm.checkpoint import manifest
from lm.data import locate
from lm.data import samples as samples_lib
from lm.evals import context, scoring
from lm.optim import averages
from lm.training import setup
from tools.where import runs

_BATCH = 8  # rows of texts that are scored at a time

Documents = frozenset[tuple[str, int]]  # source, and number in its dataset


class Probe(NamedTuple):
  """The loss of a text, in nats a token, after both trainings."""

  text: str
  tokens: int
  bytes: int
  with_nats: float
  without_nats: float

  @property
  def difference_bits(self) -> float | None:
    """Tells the cost in bits a byte; None of a text without bytes."""
    nats = (self.without_nats - self.with_nats) * self.tokens
    return nats / math.log(2) / self.bytes if self.bytes else None


class Answer(NamedTuple):
  """Says what was left out, and what came of it.

  Attributes:
    documents: how many documents hold the text and were read.
    windows: how many windows of batches hold tokens of them.
    tokens: how many tokens were left out.
    start: the step of the checkpoint that both trainings begin with.
    first: the first step that reads such a document.
    until: the step at which they end.
    probes: the losses.
  """

  documents: int
  windows: int
  tokens: int
  start: int
  first: int
  until: int
  probes: Sequence[Probe]


def documents(found: Sequence[Mapping[str, Any]]) -> Documents:
  """Lists what the sources of a run hold of `answers.search`'s documents."""
  return frozenset(
    (name, document['number'])
    for document in found
    if document.get('steps')
    for name in document['steps']['sources']
  )


def left_out(
  samples: samples_lib.Samples, step: int, chosen: Documents
) -> np.ndarray:
  """Marks the tokens of documents in the batch of a step: bool [B, W].

  Args:
    samples: of the run.
    step: of the batch.
    chosen: the documents.
  """
  marked_BW = np.zeros((samples.batch_size, samples.window), bool)
  rows = itertools.groupby(locate.pieces(samples, step), lambda x: x.row)
  for row, pieces in rows:
    first = 0
    for piece in pieces:
      stop = first + piece.stop - piece.start
      if (piece.source, piece.document) in chosen:
        marked_BW[row, first:stop] = True
      first = stop
  return marked_BW


def replay(
  workdir: Path,
  run: runs.Run,
  chosen: Documents,
  texts: Sequence[str],
  steps: tuple[int, int | None],
) -> Answer:
  """Trains twice and compares the losses of texts.

  Args:
    workdir: of the run, which is only read.
    run: its data.
    chosen: the documents that are left out.
    texts: whose losses are compared.
    steps: the first step whose batch may leave something out, and the step to
      end at; None is the newest checkpoint's.

  Raises:
    config.ConfigError: the run read none of them, or cannot be replayed there.
    errors.Failure: a checkpoint is damaged.
  """
  until = run.step if steps[1] is None else steps[1]
  _check(run, steps[0], until)
  visits = sorted(_visits(run, chosen, (steps[0], until)))
  if not visits:
    raise config.ConfigError(
      f'--replay: no step from {steps[0]} to {until - 1} reads such a document'
    )
  first = visits[0].step
  start = _start(workdir, run, first, until)
  marked = {
    step: left_out(run.samples, step, chosen)
    for step in {visit.step for visit in visits}
  }
  again = _assemble(workdir, run, start)
  known = context.Context(again.model, again.tokenizer, again.mesh)
  with config.user_errors():
    score = scoring.make(
      known,
      batch_size=_BATCH,
      length=run.config.data.length,
      objective=run.config.data.objective,
    )
    pairs = [('', text) for text in texts]
    both = [
      score(_train(again, workdir, start, until, hidden), pairs)
      for hidden in ({}, marked)
    ]
  return Answer(
    documents=len(chosen),
    windows=len(visits),
    tokens=sum(int(x.sum()) for x in marked.values()),
    start=start,
    first=first,
    until=until,
    probes=[
      Probe(text, a.tokens, a.bytes, _mean(a), _mean(b))
      for text, a, b in zip(texts, *both, strict=True)
    ],
  )


def _mean(score: scoring.Score) -> float:
  return score.nats / max(1, score.tokens)


def _check(run: runs.Run, since: int, until: int) -> None:
  """Checks that a part of a run can be trained again.

  Raises:
    config.ConfigError: it cannot.
  """
  if not run.likelihood:
    raise config.ConfigError(
      f'--replay: {run.config.data.objective["fn"]} chooses what it predicts, '
      'so that no token is the target of one place: it needs '
      'lm.data.objectives:causal'
    )
  if not since < until <= run.config.steps:
    raise config.ConfigError(
      f'--replay: steps {since} to {until} are none of this run, which has '
      f'{run.step} of {run.config.steps}: give --since and --until in between'
    )
  for back, fault in run.left_out:
    if since < fault and back < until:
      raise config.ConfigError(
        f'--replay: the run went back from step {fault} to {back}: give '
        f'--since={fault} or later, or --until={back} or earlier'
      )


def _visits(
  run: runs.Run, chosen: Documents, steps: tuple[int, int]
) -> Iterator[locate.Visit]:
  for name, number in chosen:
    place = run.samples.cuts[name].source.place(number)
    tokens = place.start, place.stop
    yield from locate.visits(run.samples, name, tokens, steps)


def _start(workdir: Path, run: runs.Run, first: int, until: int) -> int:
  """Finds the checkpoint to begin with.

  Raises:
    config.ConfigError: there is none, or settings changed after it.
  """
  saved = manifest.steps(workdir)
  before = [step for step in saved if step <= first]
  if not before:
    later = [step for step in saved if step < until]
    hint = f': give --since={later[0]}' if later else ''
    raise config.ConfigError(
      f'--replay: step {first} reads such a document, and there is no '
      f'checkpoint before it{hint}'
    )
  era = locate.eras(run.samples)[-1].start
  if before[-1] < era:
    raise config.ConfigError(
      f'--replay: batch size, window or seed changed at step {era}: give '
      f'--since={era}'
    )
  return before[-1]


def _assemble(workdir: Path, run: runs.Run, start: int) -> setup.Run:
  """Builds the run that goes on from a checkpoint, without its evaluators."""
  c = run.config.copy_and_resolve_references()
  with c.unlocked():
    c.eval_every = 0
  meta = manifest.verify(workdir, start)['meta']
  config.check_files(c.model, workdir, key='model')
  return setup.assemble_in(setup.fill(c), workdir, meta)


def _train(
  run: setup.Run,
  workdir: Path,
  start: int,
  until: int,
  hidden: Mapping[int, np.ndarray],
) -> types.Params:
  """Trains from a checkpoint on; returns the parameters.

  Args:
    run: as assembled.
    workdir: of the run.
    start: the step of the checkpoint.
    until: the step to end at.
    hidden: bool [B, W] of the tokens that have no weight, by step.
  """
  program = run.program
  state, _ = checkpoint.restore(workdir, program.like, program.where, start)
  with contextlib.closing(run.batches(start, until)) as batches:
    for n, batch in batches:
      marked = hidden.get(n - 1)
      if marked is not None:
        # Rows may be shorter than windows, see `data.lengths`.
        kept = (~marked).astype(np.float32).reshape(batch.weights.shape)
        kept = jax.device_put(kept, batch.weights.sharding)
        batch = batch._replace(weights=batch.weights * kept)
      state, _ = run.update(state, batch)
  return averages.of(state)


def lines(answer: Answer) -> Iterator[str]:
  """Says it for people."""
  yield (
    f'left out: {answer.documents} documents, {answer.tokens} tokens in '
    f'{answer.windows} windows of steps {answer.first} to {answer.until - 1}'
  )
  yield (
    f'trained twice from the checkpoint of step {answer.start} to step '
    f'{answer.until}'
  )
  yield 'nats a token: with, without, difference (bits a byte), text'
  for x in answer.probes:
    bits = x.difference_bits
    told = 'no bytes' if bits is None else f'{bits:+.4f}'
    text = ' '.join(x.text.split())
    yield (
      f'  {x.with_nats:8.4f}  {x.without_nats:8.4f}  '
      f'{x.without_nats - x.with_nats:+.4f} ({told})  '
      f'{text[:60]}{"..." if len(text) > 60 else ""}'
    )


def plain(answer: Answer) -> dict[str, Any]:
  """Says it for programs."""
  return {
    **answer._asdict(),
    'probes': [
      {
        **x._asdict(),
        'difference_nats': x.without_nats - x.with_nats,
        'difference_bits_per_byte': x.difference_bits,
      }
      for x in answer.probes
    ],
  }

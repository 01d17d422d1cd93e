"""Packing and order, decided before anything is read.

The T tokens of a dataset are one cyclic stream. An epoch lays W = ceil(T / L)
windows over it, from a phase of its own; the targets of window w are tokens
[w L, w L + L) counted from that phase, and the last window is padded. So every
token, eos included, is a target exactly once an epoch. A keyed permutation
gives the order of the windows. Both come from a hash of (key, epoch): window n
of a run is found in O(1), without state and without a list.
"""

import math
from typing import NamedTuple

import numpy as np

from lm import types
from lm.data import shards

_ROUNDS = 6  # of the Feistel network; 4 already mix, see Luby and Rackoff 1988
# Multipliers and increment of splitmix64 (Steele, Lea and Flood 2014).
_STEP = 0x9E3779B97F4A7C15
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


class Windows(NamedTuple):
  """A dataset cut in windows.

  Attributes:
    source: its tokens.
    length: L, tokens a window.
    key: decides phases and orders; None: phase 0, and in order.
  """

  source: shards.Shards
  length: int
  key: int | None

  @property
  def count(self) -> int:
    """W, the windows of an epoch."""
    return -(-self.source.manifest.tokens // self.length)

  def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds windows [B] by their place n in the run, from 0 on.

    Returns:
      starts: int64 [B], the place of the first target in the token stream.
      sizes: int64 [B], targets that are not padding, 1..L.
    """
    total = self.source.manifest.tokens
    epoch, window = np.divmod(samples.astype(np.int64), self.count)
    phase = np.zeros_like(epoch)
    if self.key is not None:
      keys = hashed(np.uint64(self.key), epoch.astype(np.uint64))
      phase = (hashed(keys, np.uint64(0)) % np.uint64(total)).astype(np.int64)
      window = permuted(window.astype(np.uint64), self.count, keys)
      window = window.astype(np.int64)
    first = window * self.length
    return (phase + first) % total, np.minimum(self.length, total - first)

  def keys(self, samples: np.ndarray) -> np.ndarray:
    """Gives each window [B] a key of its own for what an objective draws.

    Returns:
      uint64 [B]; another epoch's window has another.
    """
    key = np.uint64(0 if self.key is None else self.key)
    # Hashed twice: `locate` uses the first hash for the epoch's order.
    return hashed(hashed(key, samples.astype(np.uint64)), np.uint64(1))

  def read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads windows [B] by their place n in the run, for `pack`.

    Returns:
      rows: int32 [B, L + 1], the token before the first target, then targets.
      sizes: int64 [B], targets that are not padding, 1..L.

    Raises:
      ValueError: a block that was not read before is damaged.
    """
    starts, sizes = self.locate(samples)
    return self.source.rows(starts - 1, self.length + 1), sizes


def pack(
  rows: np.ndarray, sizes: np.ndarray, tokenizer: types.Tokenizer
) -> types.Batch:
  """Makes a batch for causal modelling of rows [B, L + 1] of the stream.

  An input is the token before the target, or bos where the target starts a
  document. A window keeps that one token of what lies left of it: positions
  and segments restart at its edge.
  """
  before, targets = rows[:, :-1], rows[:, 1:]
  starts = before == tokenizer.eos  # [B, L], where a document starts
  tokens = np.where(starts, np.int32(tokenizer.bos), before)
  starts[:, 0] = True
  # Runs of one document, each in one row: repeating their values costs a
  # quarter of a cumulative sum over all tokens.
  first = np.flatnonzero(starts).astype(np.int32)
  sizes_of_runs = np.diff(first, append=np.int32(starts.size))
  column = first % np.int32(targets.shape[1])
  run = np.arange(len(first), dtype=np.int32)
  number = run - np.maximum.accumulate(np.where(column == 0, run, 0)) + 1
  segments = np.repeat(number.astype(np.int32), sizes_of_runs)
  segments = segments.reshape(targets.shape)
  place = np.arange(targets.shape[1], dtype=np.int32)
  positions = np.repeat(-column, sizes_of_runs).reshape(targets.shape)
  positions += place
  weights = np.ones(targets.shape, np.float32)
  for b in np.flatnonzero(sizes < targets.shape[1]):
    tail = slice(int(sizes[b]), None)
    tokens[b, tail] = targets[b, tail] = tokenizer.pad
    weights[b, tail] = positions[b, tail] = segments[b, tail] = 0
  return types.Batch(tokens, targets, weights, positions, segments)


def split(
  rows: np.ndarray, sizes: np.ndarray, keys: np.ndarray, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts windows of L tokens into `parts` windows of L / parts tokens each.

  Args:
    rows, sizes: [B, L + 1] and [B], as `Windows.read` gives them.
    keys: [B], as `Windows.keys` does.
    parts: divides L.

  Returns:
    The same of B * parts windows: together they have the targets of the B, in
    their order.
  """
  if parts == 1:
    return rows, sizes, keys
  length = (rows.shape[1] - 1) // parts
  first = np.arange(parts) * length
  # Neighbours share a token: the last target of one stands before the next.
  cut = np.lib.stride_tricks.sliding_window_view(rows, length + 1, axis=1)
  return (
    cut[:, first].reshape(-1, length + 1),
    np.clip(sizes[:, None] - first, 0, length).reshape(-1),
    hashed(keys[:, None], np.arange(parts, dtype=np.uint64)).reshape(-1),
  )


def hashed(key: np.ndarray | np.uint64, value: np.ndarray | np.uint64):
  """Hashes uint64 values under keys, elementwise: two rounds of splitmix64."""
  return _mix(_mix(np.atleast_1d(key)) + np.atleast_1d(value))


def permuted(values: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
  """Permutes uint64 values of [0, count), each under its own key [B].

  A Feistel network permutes the next square; walking its cycle until the
  value is below `count` makes that a permutation of [0, count). The square is
  close, so few values walk.

  Reference: Black and Rogaway 2002, Ciphers with arbitrary finite domains,
  section 5, method 3.
  """
  side = np.uint64(math.isqrt(count - 1) + 1)
  rounds = [_mix(keys + np.uint64(r + 1)) for r in range(_ROUNDS)]
  out = values
  rest = np.arange(len(values))
  while rest.size:
    left, right = np.divmod(out[rest], side)
    for key in rounds:
      left, right = right, (left + _mix(right + key[rest]) % side) % side
    out = out.copy()
    out[rest] = left * side + right
    rest = rest[out[rest] >= count]
  return out


def _mix(x: np.ndarray) -> np.ndarray:
  """Finalizes splitmix64; overflow of unsigned arrays wraps, as it must."""
  x = x + np.uint64(_STEP)
  x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
  x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
  return x ^ (x >> np.uint64(31))

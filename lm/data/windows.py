"""Windows of a token stream: their order and how they are packed.

The T tokens of a dataset are one cyclic stream. An epoch lays W = ceil(T / L)
windows over it, beginning at a phase of its own: the targets of window w are
tokens [w L, w L + L), counted from that phase, and the last window is padded.
So every token, eos included, is a target exactly once an epoch. A keyed
permutation gives the order of the windows. Phase and permutation come from a
hash of (key, epoch), so that window n of a run is found in O(1), without state
and without a list.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import numpy as np

from lm import splitmix, types
from lm.data import shards

# Rounds of the Feistel network: 4 give a pseudorandom permutation (Luby and
# Rackoff 1988), and two more are cheap.
_ROUNDS = 6


class Windows(NamedTuple):
  """A dataset that is cut into windows.

  Attributes:
    source: its tokens.
    length: L, tokens a window.
    key: decides on phases and orders; None: phase 0, and in order.
  """

  source: shards.Shards
  length: int
  key: int | None

  @property
  def count(self) -> int:
    """W, the number of windows in an epoch."""
    return -(-self.source.manifest.tokens // self.length)

  def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds windows by their number in the run.

    Args:
      samples: int64 [B], numbers from 0 on, over all epochs.

    Returns:
      starts: int64 [B], place of the first target in the token stream.
      sizes: int64 [B], number of targets that are not padding, 1..L.
    """
    total = self.source.manifest.tokens
    epoch, window = np.divmod(samples.astype(np.int64), self.count)
    keys, phase = self.epochs(epoch)
    if keys is not None:
      window = permuted(window.astype(np.uint64), self.count, keys)
      window = window.astype(np.int64)
    first = window * self.length
    return (phase + first) % total, np.minimum(self.length, total - first)

  def epochs(self, numbers: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Finds what is different in each epoch.

    Args:
      numbers: int64 [E], of the epochs.

    Returns:
      keys: uint64 [E], of the order of the windows; None: they are in order.
      phases: int64 [E], place of the first target of window 0.
    """
    if self.key is None:
      return None, np.zeros_like(numbers)
    keys = hashed(np.uint64(self.key), numbers.astype(np.uint64))
    # A phase of its own moves the edges of windows from epoch to epoch, so that
    # no token lacks its left context in every one.
    total = np.uint64(self.source.manifest.tokens)
    return keys, (hashed(keys, np.uint64(0)) % total).astype(np.int64)

  def keys(self, samples: np.ndarray) -> np.ndarray:
    """Makes the keys of windows, for what an objective draws.

    Args:
      samples: int64 [B], see `locate`.

    Returns:
      uint64 [B]; the same window has another key in each epoch.
    """
    key = np.uint64(0 if self.key is None else self.key)
    # Hashed twice, because `locate` orders epochs by the first hash: without
    # the second, draws would be tied to the order.
    return hashed(hashed(key, samples.astype(np.uint64)), np.uint64(1))

  def read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads windows by their number in the run, for `pack`.

    Args:
      samples: int64 [B], see `locate`.

    Returns:
      rows: int32 [B, L + 1], the token before the first target and then the
        targets. What follows the targets of a padded window does not count.
      sizes: int64 [B], number of targets that are not padding, 1..L.

    Raises:
      ValueError: a block that was not read before is damaged.
    """
    starts, sizes = self.locate(samples)
    return self.source.rows(starts - 1, self.length + 1), sizes


def pack(
  rows: np.ndarray, sizes: np.ndarray, tokenizer: types.Tokenizer
) -> types.Batch:
  """Makes a batch for causal modelling from rows of the stream.

  An input is the token before its target, or bos where the target starts a
  document. Of what lies left of a window, only the one token before it is an
  input: positions and segments restart at the window's edge.

  Args:
    rows: int32 [B, L + 1], see `Windows.read`; written over.
    sizes: int64 [B], number of targets that are not padding.
    tokenizer: for the ids of bos, eos and padding.
  """
  before_BL, targets_BL = rows[:, :-1], rows[:, 1:]
  starts_BL = before_BL == tokenizer.eos  # where a document starts
  tokens_BL = np.where(starts_BL, np.int32(tokenizer.bos), before_BL)
  starts_BL[:, 0] = True
  # A run is a document's part of a row. Values are found once a run and then
  # repeated, which costs a quarter of a cumulative sum over all tokens.
  first = np.flatnonzero(starts_BL).astype(np.int32)  # of each run, in B L
  run_sizes = np.diff(first, append=np.int32(starts_BL.size))
  column = first % np.int32(targets_BL.shape[1])
  run = np.arange(len(first), dtype=np.int32)
  # Runs count from 1 in each row: the maximum is the first run of the row.
  number = run - np.maximum.accumulate(np.where(column == 0, run, 0)) + 1
  segments_BL = np.repeat(number.astype(np.int32), run_sizes)
  segments_BL = segments_BL.reshape(targets_BL.shape)
  # The position of a token is its column less that of its run.
  positions_BL = np.repeat(-column, run_sizes).reshape(targets_BL.shape)
  positions_BL += np.arange(targets_BL.shape[1], dtype=np.int32)
  weights_BL = np.ones(targets_BL.shape, np.float32)
  # Only the last window of an epoch is padded, so this loop is mostly empty.
  for b in np.flatnonzero(sizes < targets_BL.shape[1]):
    tail = slice(int(sizes[b]), None)
    tokens_BL[b, tail] = targets_BL[b, tail] = tokenizer.pad
    weights_BL[b, tail] = positions_BL[b, tail] = segments_BL[b, tail] = 0
  return types.Batch(
    tokens_BL, targets_BL, weights_BL, positions_BL, segments_BL
  )


def split(
  rows: np.ndarray, sizes: np.ndarray, keys: np.ndarray, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts windows of L tokens into shorter ones, which have the same targets.

  Args:
    rows: int32 [B, L + 1], see `Windows.read`.
    sizes: int64 [B].
    keys: uint64 [B], see `Windows.keys`.
    parts: into how many each window is cut; divides L.

  Returns:
    rows [B parts, L / parts + 1], sizes [B parts] and keys [B parts], in the
    order of their targets.
  """
  if parts == 1:
    return rows, sizes, keys
  length = (rows.shape[1] - 1) // parts
  first = np.arange(parts) * length
  # Neighbours overlap in one token, which is the last target of one window and
  # stands before the first target of the next.
  cut = np.lib.stride_tricks.sliding_window_view(rows, length + 1, axis=1)
  return (
    cut[:, first].reshape(-1, length + 1),
    np.clip(sizes[:, None] - first, 0, length).reshape(-1),
    # Keys of their own, or all parts of a window would draw the same.
    hashed(keys[:, None], np.arange(parts, dtype=np.uint64)).reshape(-1),
  )


def hashed(key: np.ndarray | np.uint64, value: np.ndarray | np.uint64):
  """Hashes uint64 values under keys, elementwise, by splitmix64 twice."""
  return _mix(_mix(np.atleast_1d(key)) + np.atleast_1d(value))


def permuted(values: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
  """Permutes the numbers [0, count), for each value by the key beside it.

  A Feistel network permutes the numbers below the next square. Its cycle is
  walked until the value is below `count`, which makes a permutation of
  [0, count). The next square is close, so few values walk.

  Args:
    values: uint64 [B], below `count`.
    count: size of what is permuted.
    keys: uint64 [B], which choose the permutations.

  Returns:
    uint64 [B].

  Reference: Black and Rogaway 2002, Ciphers with arbitrary finite domains,
  section 5, method 3.
  """

  def forward(left, right, side, rounds):
    # A number is a pair of digits, and each round changes one of them by a hash
    # of the other, which can be undone: so no two numbers become the same.
    for key in rounds:
      left, right = right, (left + _mix(right + key) % side) % side
    return left, right

  return _walk(forward, values, count, keys)


def unpermuted(values: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
  """Undoes `permuted`: finds which numbers it turned into the given ones.

  Args:
    values: uint64 [B], below `count`.
    count: size of what is permuted.
    keys: uint64 [B], which chose the permutations.

  Returns:
    uint64 [B].
  """

  def backward(left, right, side, rounds):
    for key in reversed(rounds):
      left, right = (right + side - _mix(left + key) % side) % side, left
    return left, right

  # Undone step by step, the cycle leads back to the last number below `count`,
  # which is where its walk began.
  return _walk(backward, values, count, keys)


def _walk(
  network: Callable[..., tuple[np.ndarray, np.ndarray]],
  values: np.ndarray,
  count: int,
  keys: np.ndarray,
) -> np.ndarray:
  """Applies a network to numbers until they are below `count`."""
  side = np.uint64(math.isqrt(count - 1) + 1)  # of the square
  rounds = [_mix(keys + np.uint64(r + 1)) for r in range(_ROUNDS)]
  out = values
  rest = np.arange(len(values))  # the values that still walk
  while rest.size:
    left, right = network(
      *np.divmod(out[rest], side), side, [key[rest] for key in rounds]
    )
    out = out.copy()  # the first is the caller's
    out[rest] = left * side + right
    rest = rest[out[rest] >= count]
  return out


def _mix(x: np.ndarray) -> np.ndarray:
  """Applies one step of splitmix64 to uint64 values."""
  return splitmix.mix(x + np.uint64(splitmix.STEP))

"""Rows of other lengths: a window that is cut into several rows, by step."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm import config, types
from lm.data import objectives


def parts(
  lengths: Sequence[tuple[int, int]], length: int
) -> list[tuple[int, int]]:
  """Lists (first step, number of parts of a row), the first at step 0.

  Raises:
    ValueError: steps do not ascend, or a length does not divide L.
  """
  found = [(0, 1)]
  for x in lengths:
    is_pair = isinstance(x, Sequence) and len(x) == 2
    step, short = x if is_pair else (x, None)
    # The first change may be at step 0 itself.
    if type(step) is not int or step < found[-1][0] + (len(found) > 1):
      raise ValueError(f'data.lengths: step {step} is not after the last one')
    if type(short) is not int or short < 1 or length % short:
      raise ValueError(
        f'data.lengths: {short} at step {step} does not divide '
        f'data.length={length}'
      )
    found.append((step, length // short))
  return found


def build(
  objective: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  length: int,
  row_parts: Sequence[tuple[int, int]],
) -> dict[int, objectives.Objective]:
  """Builds the objective once for each number of parts of a row.

  Args:
    objective: its spec.
    tokenizer: for the objective.
    length: L, of a whole row.
    row_parts: see `parts`.

  Raises:
    ValueError: the parts would not read the tokens of the whole.
  """
  built = {
    count: config.build(objective, tokenizer=tokenizer, length=length // count)
    for count in sorted({count for _, count in row_parts})
  }
  window = built[1].window
  for count, part in built.items():
    if part.window * count != window:
      raise ValueError(
        f'data.lengths: with rows of {length // count} {objective["fn"]} reads '
        f'windows of {part.window} tokens, not {window} / {count}; it has one '
        'length'
      )
  return built

"""Transfer: initial values and constants of a model that follow its width.

  c.model.init = base.mup(base_width=64)

Learning rates that were tuned at the base width are then right at every width,
and with `base_depth` at every depth. The optimizer's part, with the table of
all factors, is in `optim.transfer`; docs/transfer.md says how to use it.

Beside that table a model differs in four constants, which are 1 in the base:

  - Logits of a tied table are divided by the growth of the width.
  - What a block adds to the stream is divided by the growth of the depth.
  - Scores of attention fall with 1 / H where the width H of a head grows.
  - Embeddings with sinusoids are multiplied by the square root of the base's
    width, not by that of their own.
"""

from collections.abc import Mapping
from typing import Any

from lm.layers import checks, parts

NAME = 'lm.layers.transfer:mup'


def mup(
  *,
  base_width: int,
  base_depth: int | None = None,
  base_head_width: int | None = None,
  std: float | None = 0.02,
  outputs: str = 'scaled',
) -> parts.Init:
  """Describes the initial values of a model by those of its base.

  Args:
    base_width: D of the model that learning rates were tuned for. At this width
      nothing differs from `parts.init`.
    base_depth: its number of blocks; None transfers over the width alone.
    base_head_width: H of its heads, where the heads grow and their number
      stays; None if their number grows, or to keep 1 / sqrt(H).
    std, outputs: of the base, see `parts.init`.

  Raises:
    ValueError: a number is below 1, or for an unknown word.

  Reference: Yang et al. 2022, arXiv 2203.03466, tables 3 and 8, definition 4.1;
    Dey et al. 2025, arXiv 2505.01618, table 1 with alpha = 1 (depth).
  """
  checks.check_counts(
    base_width=base_width,
    base_depth=1 if base_depth is None else base_depth,
    base_head_width=1 if base_head_width is None else base_head_width,
  )
  plain = parts.init(std=std, outputs=outputs)
  return plain._replace(
    base_width=base_width,
    base_depth=base_depth,
    base_head_width=base_head_width,
  )


def check_portable(spec: Mapping[str, Any]) -> None:
  """Checks that a model needs no constant that files of others do not have.

  Args:
    spec: of a model without a body, with its defaults filled in.

  Raises:
    ValueError: it needs one.
  """
  init = spec.get('init') or {}
  if init.get('fn') != NAME:
    return
  depth = spec.get('depth') or spec['decoder']['depth']
  wider = spec['width'] != init['base_width']
  needed = {
    'head.tied': wider and spec['head'].get('tied', True),
    'embed.positions': wider and spec['embed']['positions'] == 'sinusoids',
    'init.base_depth': init['base_depth'] not in (None, depth),
    'init.base_head_width': init['base_head_width'] is not None,
  }
  for key, is_needed in needed.items():
    if is_needed:
      raise ValueError(
        f'model.{key} with lm.layers.transfer:mup is a constant that has no '
        'counterpart in transformers'
      )

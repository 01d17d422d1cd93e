"""The position of a run in its data, as checkpoints keep it.

A run may continue with other settings: with another batch size, window or seed
it reads new windows from the same token counts on; with other datasets, or
other weights in the past, it is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.data import names


def weights(
  order: Sequence[str],
  sources: Mapping[str, Mapping[str, Any]],
  changes: Sequence[tuple[int, Mapping[str, float]]],
) -> list[tuple[int, dict[str, float]]]:
  """Lists (first step, name -> weight of every source), the first at step 0.

  Raises:
    ValueError: a weight is missing or out of range, or steps do not ascend.
  """
  first = {name: sources[name]['weight'] for name in order}
  listed: list[tuple[int, dict[str, float]]] = []
  for change in [(0, first), *changes]:
    where = 'data.changes' if listed else 'data.sources'
    if not (
      isinstance(change, Sequence) and len(change) == 2
    ) or not isinstance(change[1], Mapping):
      raise ValueError(
        f'{where}: {str(change)[:60]} is no change of weights; give (first '
        'step, {name: weight})'
      )
    step, share = change
    if type(step) is not int or (listed and step <= listed[-1][0]):
      raise ValueError(f'{where}: step {step} is not after the one before it')
    if sorted(share) != list(order):
      raise ValueError(
        f'{where}: step {step} has weights of {str(sorted(share))[:50]}; give '
        f'one for each of {str(list(order))[:60]}'
      )
    values = [share[name] for name in order]
    # Their sums and products stay far from the largest and smallest floats.
    is_good = all(x == 0 or 1e-100 <= x <= 1e100 for x in values)
    if not (is_good and any(values)):
      raise ValueError(
        f'{where}: weights {str(values)[:60]} at step {step}; give 0 or '
        'numbers from 1e-100 to 1e100, and not all 0'
      )
    listed.append((step, {name: float(share[name]) for name in order}))
  return listed


def anchor(
  position: Mapping[str, Any] | None,
  fingerprints: Mapping[str, str],
  weights: Sequence[tuple[int, Mapping[str, float]]],
  identity: Mapping[str, int],
) -> dict[str, Any]:
  """Finds where the numbering of samples starts: {step, tokens, counts, past}.

  It starts at step 0, or at the last step at which batch size, window or seed
  changed. There every source continues after `counts` windows, which are those
  of the current size. `past`, which is missing at step 0, lists the earlier
  anchors, each with the batch size, window and seed that followed it.

  Args:
    position: what `state` of an earlier run returned; None: there is none.
    fingerprints: of the sources, by name.
    weights: see `weights`.
    identity: current batch size, window and seed.

  Raises:
    ValueError: the position is of other sources or weights, or malformed.
  """
  if position is None:
    return {'step': 0, 'tokens': 0, 'counts': dict.fromkeys(fingerprints, 0)}
  try:
    step, tokens = position['step'], position['tokens']
    then, counts = dict(position['datasets']), dict(position['counts'])
    before = {k: position['anchor'][k] for k in ('step', 'tokens', 'counts')}
    # Older versions wrote no past.
    past = [
      {key: x[key] for key in ('step', 'tokens', 'counts', *identity)}
      for x in position['anchor'].get('past', ())
    ]
    old = {key: position[key] for key in identity}
    history = [[s, dict(share)] for s, share in position['weights']]
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(
      'data: position is not one that `state` returned; resume from a '
      'checkpoint of this program'
    ) from e
  for name in sorted({*fingerprints, *then}):
    was, now = then.get(name, 'missing'), fingerprints.get(name, 'missing')
    if was != now:
      raise ValueError(
        f'dataset {names.short(name)}: is {now[:12]}, but the checkpoint was '
        f'trained on {was[:12]}; restore it or start a new run'
      )
  if history != [[s, dict(share)] for s, share in weights if s < step]:
    raise ValueError(
      f'data: weights before step {step} differ from the checkpoint; restore '
      'them (or temperature, max_epochs, and steps with it), and change them '
      f'by data.changes from step {step} on'
    )
  if old == dict(identity):
    return {**before, 'past': past} if past else before
  # The windows are new ones, in another order. What carries over is how many
  # tokens each source has given, rounded down to whole windows.
  return {
    'step': step,
    'tokens': tokens,
    'counts': {
      name: n * old['window'] // identity['window']
      for name, n in counts.items()
    },
    'past': [*past, {**before, **old}],
  }

"""TPU slices by name, in every spelling that people use.

`v5e:2x4` names a shape in chips. `v5litepod-8`, or `v5e-8`, is Google Cloud's
name of the same slice. There `v5e` and `v6e` count chips, but `v4` and `v5p`
count cores, two a chip: `v5p-512` is `v5p:4x8x8`, which are 256 chips. The
shapes are those of Google Cloud's tables.
"""

from typing import NamedTuple

_FLAT = (
  '1x1',
  '2x2',
  '2x4',
  '4x4',
  '4x8',
  '8x8',
  '8x16',
  '16x16',
)
_DEEP = (
  '2x2x1',
  '2x2x2',
  '2x2x4',
  '2x4x4',
  '4x4x4',
  '4x4x8',
  '4x8x8',
  '8x8x8',
  '8x8x16',
  '8x12x16',
  '8x16x16',
  '12x16x16',
  '16x16x16',
  '16x16x24',
)


class _Kind(NamedTuple):
  """One generation: Google Cloud's word, and what its numbers count."""

  word: str
  cores: int  # of a chip
  shapes: tuple[str, ...]


_KINDS = {
  'v4': _Kind('v4', 2, _DEEP),
  'v5e': _Kind('v5litepod', 1, _FLAT),
  'v5p': _Kind('v5p', 2, _DEEP),
  'v6e': _Kind('v6e', 1, _FLAT),
}


class Slice(NamedTuple):
  """A slice.

  Attributes:
    kind: the generation, as in `lm.planning.hardware`.
    shape: chips along each axis.
    chips: of the whole slice; a jax device each.
    hosts: machines, with `chips // hosts` chips each.
    type: Google Cloud's name.
  """

  kind: str
  shape: str
  chips: int
  hosts: int
  type: str

  @property
  def target(self) -> str:
    """The name in `lm.plan`."""
    return f'{self.kind}:{self.shape}'


def _all() -> dict[str, Slice]:
  """Lists all slices by all of their names."""
  found = {}
  for name, kind in _KINDS.items():
    for shape in kind.shapes:
      chips = 1
      for side in shape.split('x'):
        chips *= int(side)
      # Up to 8 chips of the flat kinds share a machine; all others have 4 each.
      one = kind.shapes is _FLAT and chips <= 8
      hosts = 1 if one else max(1, chips // 4)
      number = kind.cores * chips
      made = Slice(name, shape, chips, hosts, f'{kind.word}-{number}')
      for word in (made.target, made.type, f'{name}-{number}'):
        found[word] = made
  return found


BY_NAME = _all()

"""Sizes of the models that are measured, which every peer can build."""

from typing import NamedTuple


class Spec(NamedTuple):
  """A decoder of GPT-2's shape with a tied output and no dropout.

  Attributes:
    name: the name of the spec.
    vocab: V.
    width: D.
    depth: the number of blocks.
    heads: N.
    mlp: F.
    length: L.
    batch: B, the rows of a step on all devices together.
  """

  name: str
  vocab: int
  width: int
  depth: int
  heads: int
  mlp: int
  length: int
  batch: int

  def __str__(self) -> str:
    sizes = self._asdict()
    del sizes['name']
    return ', '.join(f'{key} {value}' for key, value in sizes.items())


PRECISIONS = ('fp32', 'bf16')
SPECS = {
  spec.name: spec
  for spec in (
    Spec('S', 8192, 256, 4, 4, 1024, 256, 16),
    Spec('M', 16384, 512, 8, 8, 2048, 512, 8),
    Spec('gpt2', 50304, 768, 12, 12, 3072, 1024, 64),  # 124M
    Spec('gpt2_medium', 50304, 1024, 24, 16, 4096, 1024, 32),  # 355M
    Spec('gpt2_large', 50304, 1280, 36, 20, 5120, 1024, 16),  # 774M
    Spec('gpt2_xl', 50304, 1600, 48, 25, 6400, 1024, 16),  # 1.56B
  )
}
# How many steps an accelerator is given before their end is waited for. A
# training loop runs ahead of it as well.
AHEAD = 8
# These run only on accelerators and in bf16: on a CPU they take hours, and in
# float32 they would not fit in 40 GB.
LARGE = ('gpt2', 'gpt2_medium', 'gpt2_large', 'gpt2_xl')
# 42.1M parameters: with Adam's moments 505 MB.
CHECKPOINT = Spec('checkpoint', 17152, 576, 8, 9, 2304, 512, 1)


def parse(text: str) -> list[Spec]:
  """Reads names of specs with commas between them, such as 'S,M'.

  Raises:
    ValueError: a name is unknown.
  """
  unknown = sorted(set(text.split(',')) - set(SPECS))
  if unknown:
    raise ValueError(
      f'--spec: unknown {unknown[0][:60]!r}; choose from {", ".join(SPECS)}'
    )
  return [SPECS[name] for name in text.split(',')]

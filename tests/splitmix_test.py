"""The hash of numbers is the published one, and there is one of it."""

from pathlib import Path

import numpy as np

from lm import splitmix

ROOT = Path(splitmix.__file__).parent


def test_it_is_the_end_of_splitmix64():
  state = np.uint64(splitmix.STEP) * np.arange(1, 4, dtype=np.uint64)
  # The first numbers of the generator with the seed 0, as Java gives them.
  assert splitmix.mix(state).tolist() == [
    0xE220A8397B1DCDAF,
    0x6E789E6AA1B965F4,
    0x06C45D188009454F,
  ]


def test_there_is_one():
  found = [
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob('*.py')
    if '94d049bb133111eb' in path.read_text(encoding='utf-8').lower()
  ]
  assert found == ['splitmix.py']

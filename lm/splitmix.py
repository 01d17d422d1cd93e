"""The end of splitmix64 (Steele, Lea and Flood 2014), which hashes numbers."""

import numpy as np

# Odd, and 2^64 over the golden ratio: neighbours times it are far apart.
STEP = 0x9E3779B97F4A7C15
_MULTIPLY = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(numbers: np.ndarray) -> np.ndarray:
  """Spreads what differs between uint64 numbers over all their bits."""
  # Overflow of unsigned arrays wraps, as the algorithm wants.
  mixed = numbers ^ (numbers >> np.uint64(30))
  mixed *= _MULTIPLY[0]
  mixed ^= mixed >> np.uint64(27)
  mixed *= _MULTIPLY[1]
  mixed ^= mixed >> np.uint64(31)
  return mixed

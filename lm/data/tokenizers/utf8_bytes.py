"""The tokenizer that needs no file: each byte of UTF-8 is an id."""

import hashlib

from lm import types
from lm.data.tokenizers import characters


def make(reserved: int = 0) -> types.Tokenizer:
  """Makes the tokenizer of UTF-8 bytes: 3 special ids and 256 bytes.

  Args:
    reserved: number of ids to add, see `lm.data.tokenizers.auto.load`.
  """
  # Without an alphabet every character is spelled by its bytes.
  sha256 = hashlib.sha256(b'lm bytes 1').hexdigest()
  return characters.from_alphabet((), sha256, reserved)

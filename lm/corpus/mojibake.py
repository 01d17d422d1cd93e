"""The door of ftfy: mends text that was decoded by a wrong encoding.

ftfy's own test for such text reads 5 MB/s of English, so a cheap one goes
first: it looks for two characters beside each other that mojibake can begin
with. It finds every line that ftfy's test finds; a test compares them.
"""

import importlib.metadata
import re

from lm import errors

# What mojibake is made of beside letters of Greek and Cyrillic: the symbols and
# accented letters of old encodings of one byte, without those that stand beside
# each other in good text. Those mean something only after one that is here.
_SYMBOLS = (
  r'\x80-\x9f\xa1-\xac\xae-\xb3\xb5\xb6\xb8-\u02ff\u0384-\u0386\u0490\u0491'
  r'\u2018\u201a-\u2022\u2024\u2025\u2027-\u218f\u2190-\u22ff\u2300-\u24ff\u2501-\u25ff'
  r'\uf8ff\ufb01\ufb02\ufffd'
)
# It begins with a set, which `re` looks for faster than for alternatives.
_SUSPECT = re.compile(
  rf'[{_SYMBOLS}](?:(?=[^\x00-\x7f])|(?<=[^\x00-\x7f].)'
  r'|(?<=[\x80-\x9fŒœ])|(?<=[ÂÃ])(?= ))'
)
_CYRILLIC = ('вЂ', 'ГўВ')  # of letters alone


def version() -> str:
  """Returns the version of ftfy, which decides on what is mended.

  Raises:
    ValueError: it is not installed.
  """
  try:
    return importlib.metadata.version('ftfy')
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f'mojibake=True needs ftfy: {errors.install("data")}, or set it to False'
    ) from error


def suspect(line: str) -> bool:
  """Tells quickly whether a line could hold mojibake."""
  if line.isascii():
    return False
  return any(x in line for x in _CYRILLIC) or bool(_SUSPECT.search(line))


def fix(text: str) -> tuple[str, int]:
  """Mends mojibake line by line, since lines may come from different files.

  Returns:
    The text, and the number of lines that changed.
  """
  if not suspect(text):
    return text, 0
  import ftfy  # an extra, and slow to import

  lines = text.split('\n')
  changed = 0
  for i, line in enumerate(lines):
    if suspect(line):
      lines[i] = ftfy.fix_encoding(line)
      changed += lines[i] != line
  return '\n'.join(lines), changed

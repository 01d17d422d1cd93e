"""Normalises texts, a stage of the data factory.

It mends what went wrong between an author and the file: wrong decoding,
different forms of one character, control characters, line ends of other
systems, white space that nobody sees. It may not damage what is meant: tabs and
indentation of code, line ends of verse, joiners and direction marks of Arabic
and Persian, full-width marks of Chinese. Each change is counted by its code;
a line rule drops lines and counts them by its name.
"""

from collections.abc import Mapping
import re
from typing import Any, Literal
import unicodedata

from lm import config
from lm.corpus import mojibake as mojibake_lib
from lm.corpus import stages

_FORMS: Mapping[str, Literal['NFC', 'NFKC']] = {'nfc': 'NFC', 'nfkc': 'NFKC'}
# It begins with a set, which `re` looks for faster than for alternatives.
_OTHER_LINE_ENDS = re.compile('[\r\x0b\x0c\u2028\u2029](?:(?<=\r)\n)?')
# As in ftfy, which knows of no use of these in text; and what is left of the
# second set of control characters, U+0080 to U+009F, once mojibake is mended.
_CONTROLS = re.compile(
  '[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u206a-\u206f\ufeff\ufff9-\ufffb]+'
)
_RULE_NAME = re.compile(r'[a-z0-9_]+')
_OWN = (
  'mojibake',
  'unicode',
  'controls',
  'line_ends',
  'trailing_space',
  'blank_lines',
  'empty',
)
_ROUNDS = 8  # until nothing changes; texts of tests need three at most


def make(
  mojibake: bool = True,
  unicode: Literal['none', 'nfc', 'nfkc'] = 'nfc',
  controls: bool = True,
  line_ends: bool = True,
  trailing_space: bool = True,
  blank_lines: int | None = 2,
  lines: Mapping[str, Any] | None = None,
) -> stages.Stage:
  """Makes the stage. It drops what ends empty with 'normalise.empty'.

  A text that it has normalised is not changed by it again.

  Args:
    mojibake: mends text that was decoded by a wrong encoding, with ftfy; the
      count is of lines.
    unicode: 'none', or the normal form of characters; 'nfkc' also replaces
      what looks alike, such as full-width letters and ligatures, and changes
      good Chinese by it. The count is of texts.
    controls: removes control characters but tabs and line ends; the count is of
      places.
    line_ends: turns the line ends of other systems, form feeds, vertical tabs
      and the line and paragraph marks of Unicode into newlines.
    trailing_space: removes white space at the ends of lines; the count is of
      lines.
    blank_lines: blank lines in a row that stay; the count is of those that do
      not. None keeps all.
    lines: specs of rules of lines by name, see `lm.corpus.lines`. The name is
      the last part of the code that counts the dropped lines.

  Raises:
    ValueError: for an unknown form, a bad name of a rule, or if `mojibake` is
      asked for and ftfy is not installed.
  """
  if unicode not in ('none', *_FORMS):
    raise ValueError(f'unicode={unicode!r} must be none, nfc or nfkc')
  for name in lines or {}:
    if not _RULE_NAME.fullmatch(name) or name in _OWN:
      raise ValueError(
        f'lines: the name {name!r} must be of small letters, digits and _, and '
        'none of this stage'
      )
  specs = config.plain(config.fill(lines or {}))
  packages = {'ftfy': mojibake_lib.version()} if mojibake else {}
  settings = {
    'mojibake': mojibake,
    'unicode': unicode,
    'controls': controls,
    'line_ends': line_ends,
    'trailing_space': trailing_space,
    'blank_lines': blank_lines,
    'lines': specs,
  }
  rules = [(name, config.build(specs[name])) for name in sorted(specs)]

  def run(x: stages.Document) -> stages.Document:
    text, counts = x.text, dict.fromkeys((*_OWN, *specs), 0)
    # One step can bring characters together that another step looks for.
    for _ in range(_ROUNDS):
      before = text
      text = _characters(text, settings, counts)
      text = _lines(text, settings, counts, rules)
      if text == before:
        break
    changes = tuple((f'normalise.{k}', n) for k, n in counts.items() if n)
    if not text.strip():
      # The text stays as it came, for reports to show.
      return x._replace(
        reason='normalise.empty', value=0.0, changes=x.changes + changes
      )
    return x._replace(text=text, changes=x.changes + changes)

  return stages.Stage(
    'normalise',
    1,
    settings,
    map=stages.each(run),
    packages=packages,
    loses=False,  # what it drops is empty
  )


def _characters(
  text: str, settings: Mapping[str, Any], counts: dict[str, int]
) -> str:
  """Normalises characters, and counts what it changes."""
  if settings['line_ends']:
    # U+0085 ends lines too, but belongs to mojibake first.
    text, count = _OTHER_LINE_ENDS.subn('\n', text)
    counts['line_ends'] += count
  if settings['mojibake']:
    text, count = mojibake_lib.fix(text)
    counts['mojibake'] += count
  if settings['line_ends'] and '\x85' in text:
    counts['line_ends'] += text.count('\x85')
    text = text.replace('\x85', '\n')
  if settings['controls']:
    text, count = _CONTROLS.subn('', text)
    counts['controls'] += count
  if (form := _FORMS.get(settings['unicode'])) and not text.isascii():
    normal = unicodedata.normalize(form, text)
    counts['unicode'] += normal != text
    text = normal
  return text


def _lines(
  text: str,
  settings: Mapping[str, Any],
  counts: dict[str, int],
  rules: list[tuple[str, Any]],
) -> str:
  """Normalises and drops lines, and counts what it changes."""
  if settings['trailing_space']:
    given = text.split('\n')
    bare = [x.rstrip() for x in given]
    if bare != given:
      counts['trailing_space'] += sum(
        a != b for a, b in zip(given, bare, strict=True)
      )
      text = '\n'.join(bare)
  if rules:
    text = _dropped(text, counts, rules)
  if (most := settings['blank_lines']) is not None:
    shorter, removed = _blank_lines(text, most)
    counts['blank_lines'] += removed
    text = shorter
  return text


def _dropped(
  text: str, counts: dict[str, int], rules: list[tuple[str, Any]]
) -> str:
  kept = []
  for line in text.split('\n'):
    bare = line.strip()
    name = next((k for k, rule in rules if bare and rule(bare)), None)
    if name is None:
      kept.append(line)
    else:
      counts[name] += 1
  return '\n'.join(kept)


def _blank_lines(text: str, most: int) -> tuple[str, int]:
  """Shortens runs of blank lines; returns the text and the number removed."""
  run = '\n' * (most + 2)
  if run not in text:
    return text, 0
  shorter = re.sub(f'{run}+', run[1:], text)
  return shorter, len(text) - len(shorter)

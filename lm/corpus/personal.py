"""Masks personal data in texts by placeholders that say what was there.

It finds what has a form of its own: e-mail addresses, telephone numbers, public
IP addresses, bank accounts (IBAN), payment cards, numbers of Chinese residents,
keys and passwords. Names and street addresses have none and stay.

The rules favour numbers that prove themselves by a checksum or a prefix. What
stays ambiguous is a number with the shape of a telephone number that means
something else.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lm.corpus import credentials, emails, identifiers, phones, stages

VERSION = 2
# Where findings overlap, the kind that stands first wins.
_FINDERS: dict[
  str, Callable[[identifiers.Narrow], Iterator[identifiers.Span]]
] = {
  'key': credentials.keys,
  'email': emails.emails,
  'iban': identifiers.ibans,
  'chinese_id': identifiers.chinese_ids,
  'card': identifiers.cards,
  'ip': identifiers.public_ips,
  'phone': phones.phones,
}
KINDS = tuple(_FINDERS)
# A placeholder may free what stood beside it, such as the second of two numbers
# that looked like one. More rounds than this are of no use to real text.
_ROUNDS = 4
_PLACEHOLDER = '<{}>'


def make(
  *,
  kinds: Sequence[str] = KINDS,
  placeholder: str = _PLACEHOLDER,
  keep_special_ips: bool = True,
  most: int | None = None,
) -> stages.Stage:
  """Makes the stage that masks personal data.

  Its changes are counted by kind, such as 'personal.email'.

  Args:
    kinds: that are masked, of `KINDS`.
    placeholder: form of a placeholder; {} stands for the kind in capitals.
    keep_special_ips: keeps IP addresses of private networks and of examples in
      documentation.
    most: drops a document with more findings than this; None drops none.

  Raises:
    ValueError: a setting cannot be used.
  """
  kinds = _known(kinds)
  if placeholder.count('{}') != 1:
    raise ValueError(
      f'personal.placeholder {placeholder[:40]!r} must hold {{}} once, for the '
      "kind, as '<{}>' does"
    )
  if most is not None and most < 0:
    raise ValueError(f'personal.most is {most}; give 0 or more, or None')

  def run(document: stages.Document) -> stages.Document:
    text, found = _mask(document.text, kinds, placeholder, keep_special_ips)
    if not found:
      return document
    changes = tuple((f'personal.{x}', found[x]) for x in KINDS if found[x])
    document = document._replace(
      text=text, changes=(*document.changes, *changes)
    )
    if most is not None and found.total() > most:
      # The text is masked all the same: reports show examples of it.
      return document._replace(
        reason='personal.findings', value=float(found.total())
      )
    return document

  return stages.Stage(
    'personal',
    VERSION,
    {
      'kinds': list(kinds),
      'placeholder': placeholder,
      'keep_special_ips': keep_special_ips,
      'most': most,
    },
    map=stages.each(run),
    loses=most is not None,
  )


def mask(
  text: str,
  kinds: Sequence[str] = KINDS,
  placeholder: str = _PLACEHOLDER,
  keep_special_ips: bool = True,
) -> str:
  """Returns a text with its personal data masked; see `make`."""
  return _mask(text, _known(kinds), placeholder, keep_special_ips)[0]


def mask_part(text: str, start: int, stop: int) -> str:
  """Masks text[start:stop], whose neighbours say what its ends belong to.

  What is only partly in there is masked whole.
  """
  stop = min(stop, len(text))
  for _ in range(_ROUNDS):
    found = find(text)
    if not found:
      break
    for a, b, kind in reversed(found):  # so that earlier places stay
      word = _PLACEHOLDER.format(kind.upper())
      text = text[:a] + word + text[b:]
      if b <= start:
        start += len(word) - (b - a)
        stop += len(word) - (b - a)
      elif a < stop:
        start = min(start, a)
        stop = max(stop, b) + len(word) - (b - a)
  return text[start:stop]


def find(
  text: str, kinds: Sequence[str] = KINDS, keep_special_ips: bool = True
) -> list[tuple[int, int, str]]:
  """Lists (start, end, kind) of the personal data of a text, in its order."""
  narrow = identifiers.Narrow(text)
  found = []
  for rank, (kind, finder) in enumerate(_FINDERS.items()):
    if kind in kinds:
      if kind == 'ip' and not keep_special_ips:
        finder = identifiers.all_ips
      found += [(x.start, x.end, rank, kind) for x in finder(narrow)]
  if not found:
    return []
  taken = bytearray(len(text))
  kept = []
  for start, end, _, kind in sorted(found, key=lambda x: (x[2], x[0], -x[1])):
    if not any(taken[start:end]):
      taken[start:end] = b'\1' * (end - start)
      kept.append((start, end, kind))
  return sorted(kept)


def _mask(
  text: str, kinds: Sequence[str], placeholder: str, keep_special_ips: bool
) -> tuple[str, Counter[str]]:
  """Returns the masked text and the findings by kind."""
  counts: Counter[str] = Counter()
  for _ in range(_ROUNDS):
    found = find(text, kinds, keep_special_ips)
    if not found:
      break
    pieces = []
    last = 0
    for start, end, kind in found:
      pieces += [text[last:start], placeholder.replace('{}', kind.upper())]
      last = end
      counts[kind] += 1
    text = ''.join([*pieces, text[last:]])
  return text, counts


def _known(kinds: Sequence[str]) -> tuple[str, ...]:
  """Returns the kinds in their order.

  Raises:
    ValueError: one is unknown.
  """
  if isinstance(kinds, str):
    kinds = (kinds,)
  for kind in kinds:
    if kind not in _FINDERS:
      raise ValueError(
        f'personal.kinds: unknown {kind[:40]!r}; choose from {", ".join(KINDS)}'
      )
  return tuple(x for x in KINDS if x in kinds)

"""Rules of lines, for the configs of the data factory."""

from typing import Any


def c4_lines() -> dict[str, Any]:
  """C4's rules that drop lines, for `lm.corpus.normalise`; English web alone.

  The code of C4 has the phrases about cookies; its paper has "lorem ipsum" drop
  the document, which `c4` does.
  """
  cookies = (
    'terms of use',
    'privacy policy',
    'cookie policy',
    'uses cookies',
    'use of cookies',
    'use cookies',
  )
  return {
    'javascript': _line('contains', phrases=('javascript',)),
    'cookies': _line('contains', phrases=cookies),
    'lorem_ipsum': _line('contains', phrases=('lorem ipsum',)),
    'unfinished': _line('unfinished'),
    'few_words': _line('few_words', least=3),
    'long_words': _line('long_words', most=1000),
  }


def _line(name: str, **settings: Any) -> dict[str, Any]:
  return {'fn': f'lm.corpus.lines:{name}'} | settings

"""Stages of quality, for the configs of the data factory.

Each call makes a new dict; a config adds a rule by a line, takes one away by
`del`, and changes one by its key:

  quality = rules.english()
  quality['rules']['words']['least'] = 20
  del quality['rules']['stop_words']
"""

from collections.abc import Mapping
from typing import Any

_RULES = 'lm.corpus.rules'
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def english() -> dict[str, Any]:
  """The rules of Gopher and FineWeb, for texts that are not Chinese.

  Gopher's texts begin at 50 words and FineWeb takes the same rules before its
  own. C4's are in `c4`, since they drop code and much else that is good.
  """
  return {
    'fn': 'lm.corpus.quality:make',
    'rules': gopher() | repetition() | fineweb(),
    'languages': ('', 'en'),
    'longest': 2_000_000,
  }


def chinese() -> dict[str, Any]:
  """A set for Chinese, in characters."""
  return {
    'fn': 'lm.corpus.quality:make',
    'rules': {
      'characters': _rule('chinese:characters', least=20, most=1_000_000),
      'chinese_share': _rule('chinese:share', least=0.4),
      'punctuation': _rule('chinese:punctuation', least=0.02, most=0.4),
      'debris': _rule('chinese:debris', most=5.0),
      'symbols': _rule('gopher:symbols', most=0.1),
      'short_lines': _rule('chinese:short_lines', most=0.67, length=8),
      'lorem_ipsum': _rule('c4:phrases', words=('lorem ipsum',)),
    }
    | repetition(
      # Short poems have refrains; ten characters are some six words.
      top={2: 0.20, 4: 0.20},
      duplicate={10: 0.15, 20: 0.10},
    ),
    'languages': ('zh',),
    'longest': 2_000_000,
  }


def gopher() -> dict[str, Any]:
  """Gopher's rules of quality."""
  return {
    'words': _rule('gopher:words', least=50, most=100_000),
    'word_length': _rule('gopher:word_length', least=3.0, most=10.0),
    'symbols': _rule('gopher:symbols', most=0.1),
    'bullets': _rule('gopher:bullets', most=0.9),
    'ellipses': _rule('gopher:ellipses', most=0.3),
    'alphabetic': _rule('gopher:alphabetic', least=0.8),
    'stop_words': _rule('gopher:stop_words', least=2),
  }


def repetition(
  top: Mapping[int, float] = _TOP, duplicate: Mapping[int, float] = _DUPLICATE
) -> dict[str, Any]:
  """Gopher's rules against repetition; in Chinese a word is a character.

  Args:
    top: share that the most frequent n-gram may have, by n.
    duplicate: share that all repeated n-grams may have, by n.
  """
  parts = {
    'duplicate_lines': 0.30,
    'duplicate_line_characters': 0.20,
    'duplicate_paragraphs': 0.30,
    'duplicate_paragraph_characters': 0.20,
  }
  return {
    **{x: _rule(f'repetition:{x}', most=most) for x, most in parts.items()},
    **{
      f'top_{n:02}gram': _rule('repetition:top_ngram', n=n, most=most)
      for n, most in top.items()
    },
    **{
      f'duplicate_{n:02}gram': _rule(
        'repetition:duplicate_ngrams', n=n, most=most
      )
      for n, most in duplicate.items()
    },
  }


def fineweb() -> dict[str, Any]:
  """FineWeb's own rules."""
  return {
    'punctuated_lines': _rule('fineweb:punctuated_lines', least=0.12),
    'short_lines': _rule('fineweb:short_lines', most=0.67, characters=30),
    'duplicate_characters': _rule('fineweb:duplicate_characters', most=0.1),
    'newlines': _rule('fineweb:newlines', most=0.3),
  }


def c4() -> dict[str, Any]:
  """C4's rules that drop documents."""
  return {
    'sentences': _rule('c4:sentences', least=5),
    'curly_brackets': _rule('c4:curly_brackets', most=0),
    'lorem_ipsum': _rule('c4:phrases', words=('lorem ipsum',)),
    'long_words': _rule('c4:long_words', most=1000),
  }


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


def _rule(name: str, **settings: Any) -> dict[str, Any]:
  return {'fn': f'{_RULES}.{name}'} | settings

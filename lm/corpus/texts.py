"""Views of a text that several rules share: its words and its lines."""

import functools
import re

# Letters and digits between two breaks are a word, and each Chinese character
# is one, because Chinese is written without spaces.
_WORD = re.compile(r'[\u3400-\u9fff]|[^\W\u3400-\u9fff]+')
_CHINESE = re.compile(r'[\u3400-\u9fff]')
_LOOKED_AT = 2000  # characters that tell whether a text is Chinese


class Text:
  """A text, with what rules ask about it, found once and when it is asked.

  Attributes:
    text: the text itself.
  """

  def __init__(self, text: str):
    self.text = text

  @functools.cached_property
  def words(self) -> list[str]:
    """The words in lower case; each Chinese character is one."""
    return _WORD.findall(self.text.lower())

  @functools.cached_property
  def lines(self) -> list[str]:
    """The lines that hold more than white space, without it at their ends."""
    return [x for line in self.text.split('\n') if (x := line.strip())]

  @functools.cached_property
  def is_chinese(self) -> bool:
    """Whether more than a fifth of its first characters are Chinese."""
    head = self.text[:_LOOKED_AT]
    return len(_CHINESE.findall(head)) > 0.2 * len(head)


@functools.lru_cache(maxsize=1024)
def view(text: str) -> Text:
  """Returns the view of a text, the same one to each stage of a batch.

  `view.cache_clear()` after a batch lets its memory go.
  """
  return Text(text)

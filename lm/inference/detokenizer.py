"""Turns tokens into text as they come, and holds back what may still change.

A character can take several tokens, and the beginning of a stop string is not
text until it turns out to be no stop string.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lm import types


class Token(NamedTuple):
  """A token whose text can no longer change.

  Attributes:
    text: what the token adds to the text. It is empty for an end of text and
      for a part of a character: the last part brings the whole character.
    offset: where that begins, in characters from the text's beginning.
    name: the token decoded alone.
    logprob: log p of the token under the model alone, without a sampler; None
      where it was not asked for, or where a model has none.
    top_logprobs: log p by name, of the likeliest tokens there and of this one.
  """

  text: str
  offset: int
  name: str
  logprob: float | None
  top_logprobs: dict[str, float]


def cut(text: str, stop: Sequence[str]) -> str:
  """Cuts a text before the first stop string in it."""
  places = [text.index(word) for word in stop if word in text]
  return text[: min(places, default=len(text))]


def stable_length(text: str, stop: Sequence[str]) -> int:
  """Counts the characters that stay, whatever follows them.

  Those after them may become a stop string, or are a part of a character.
  """
  text = text.rstrip('\ufffd')
  held = (
    n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])
  )
  return len(text) - max(held, default=0)


class Detokenizer:
  """Builds one text from its tokens.

  Attributes:
    finish_reason: why the text has ended, 'stop' or 'length'; None while it
      goes on.
  """

  def __init__(
    self, tokenizer: types.Tokenizer, stop: Sequence[str], eos: int | None
  ):
    """Begins an empty text.

    Args:
      tokenizer: decodes the ids.
      stop: strings that end the text and are left out of it.
      eos: the id that ends it; None if no id does.
    """
    self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
    self._ids: list[int] = []
    # Tokens that are not returned yet, each with the end of its text.
    self._waiting: list[tuple[int, Token]] = []
    self._decoded = 0  # characters that are whole
    self._returned = 0  # those of them that tokens already returned have
    self.finish_reason: str | None = None

  def add(
    self,
    token: int,
    logprob: float | None,
    top: Sequence[tuple[int, float]],
    *,
    last: bool,
  ) -> list[Token]:
    """Adds a token, and returns the tokens whose texts have become certain.

    Args:
      token: its id.
      logprob: log p of it; None if it is unknown.
      top: ids of the likeliest tokens in its place, with their log p.
      last: whether the text ends here for its length.
    """
    if token != self._eos:
      self._ids.append(token)
    # All ids are decoded anew: what a token says depends on those before it.
    whole = self._tokenizer.decode(self._ids)
    text = cut(whole, self._stop)
    if token == self._eos or len(text) < len(whole):
      self.finish_reason = 'stop'
    elif last:
      self.finish_reason = 'length'
    ended = self.finish_reason is not None
    # A part of a character decodes as U+FFFD, and is no text yet.
    self._decoded = len(text if ended else text.rstrip('\ufffd'))
    name = self._name(token)
    names: dict[str, float] = {}
    if logprob is not None:
      for i, score in (*top, (token, logprob)):
        names.setdefault(self._name(i), score)  # of one name, the likelier
    self._waiting.append((self._decoded, Token('', 0, name, logprob, names)))
    certain = len(text) if ended else stable_length(text, self._stop)
    ready = []
    while self._waiting and (ended or self._waiting[0][0] <= certain):
      end, waiting = self._waiting.pop(0)
      start = self._returned
      self._returned = max(start, min(end, len(text)))
      # Tokens of a stop string are left out.
      if start < len(text) or len(text) == len(whole):
        new = text[start : self._returned]
        ready.append(waiting._replace(text=new, offset=start))
    return ready

  def _name(self, token: int) -> str:
    if token == self._tokenizer.eos:
      return '<eos>'
    return self._tokenizer.decode([token]) or f'<{token}>'

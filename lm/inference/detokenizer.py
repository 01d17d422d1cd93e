"""Turns tokens into text as they come, and holds back what may still change.

A character can take several tokens, and the beginning of a stop string is not
text until it turns out to be no stop string.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lm import types

_PART = '\ufffd'  # what a part of a character is decoded as


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
      Of tokens that spell alike, all but the first have their id in the name.
    utf8: by name, the bytes of the token's own text; None where they are not
      known, as of a part of a character, or it has no text.
  """

  text: str
  offset: int
  name: str
  logprob: float | None
  top_logprobs: dict[str, float]
  utf8: Mapping[str, bytes | None] = MappingProxyType({})


def cut(text: str, stop: Sequence[str]) -> str:
  """Cuts a text before the first stop string in it."""
  places = [text.index(word) for word in stop if word in text]
  return text[: min(places, default=len(text))]


def stable_length(text: str, stop: Sequence[str]) -> int:
  """Counts the characters that stay, whatever follows them.

  Those after them may become a stop string, or are a part of a character.
  """
  text = text.rstrip(_PART)
  held = (
    n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])
  )
  return len(text) - max(held, default=0)


def until_end(ids: Sequence[int], tokenizer: types.Tokenizer) -> list[int]:
  """Cuts ids before the first one that ends a text."""
  ends = (n for n, i in enumerate(ids) if i in tokenizer.ends)
  return list(ids[: next(ends, len(ids))])


def decode(
  ids: Sequence[int], tokenizer: types.Tokenizer, *, follows: bool
) -> str:
  """Decodes ids, without a part of a character at their end.

  Args:
    ids: of the text.
    tokenizer: of the ids.
    follows: whether the text follows other text, so that its first space stays.
  """
  decode = tokenizer.decode_next if follows else tokenizer.decode
  ids = list(ids)
  text = decode(ids)
  whole = text.rstrip(_PART)
  spelled = tokenizer.encode(_PART) if len(whole) < len(text) else []
  if not spelled:
    return whole
  # The text may contain this character itself. Only its last place matters, so
  # that a long row of parts costs no more than one decoding more.
  size = len(spelled)
  for end in range(len(ids), size - 1, -1):
    if ids[end - 1] == spelled[-1] and ids[end - size : end] == spelled:
      left = decode(ids[:end])
      return left if len(left) > len(whole) else whole
  return whole


class Detokenizer:
  """Builds one text from its tokens.

  Attributes:
    finish_reason: why the text has ended, 'stop' or 'length'; None while it
      goes on.
  """

  def __init__(
    self,
    tokenizer: types.Tokenizer,
    stop: Sequence[str],
    ends: int | Sequence[int] | None,
    *,
    follows: bool = False,
  ):
    """Begins an empty text.

    Args:
      tokenizer: decodes the ids.
      stop: strings that end the text and are left out of it.
      ends: the id or ids that end it; None if no id does.
      follows: whether the text follows other text, see `decode`.
    """
    self._tokenizer, self._stop, self._follows = tokenizer, stop, follows
    self._ends = (ends,) if isinstance(ends, int) else ends or ()
    self._ids: list[int] = []
    # Tokens that are not returned yet, each with the end of its text.
    self._waiting: list[tuple[int, Token]] = []
    self._returned = 0  # characters that tokens already returned have
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
    if token not in self._ends:
      self._ids.append(token)
    # All ids are decoded anew: what a token says depends on those before it. A
    # part of a character is no text yet, and never becomes one at the end.
    whole = decode(self._ids, self._tokenizer, follows=self._follows)
    text = cut(whole, self._stop)
    if token in self._ends or len(text) < len(whole):
      self.finish_reason = 'stop'
    elif last:
      self.finish_reason = 'length'
    ended = self.finish_reason is not None
    names = self._names([token, *(i for i, _ in top)])
    scores: dict[str, float] = {}
    if logprob is not None:
      scores = {names[i]: score for i, score in (*top, (token, logprob))}
    utf8 = {name: self._utf8(i) for i, name in names.items()}
    new = Token('', 0, names[token], logprob, scores, utf8)
    self._waiting.append((len(text), new))
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

  def _names(self, tokens: Sequence[int]) -> dict[int, str]:
    """Names tokens, those that spell alike by their ids too."""
    names: dict[int, str] = {}
    for i in dict.fromkeys(tokens):
      name = '<eos>' if i == self._tokenizer.eos else ''
      name = name or self._tokenizer.decode_next([i]) or f'<{i}>'
      names[i] = f'{name}<{i}>' if name in names.values() else name
    return names

  def _utf8(self, token: int) -> bytes | None:
    """Returns the bytes of a token's text; None if they are not known."""
    text = self._tokenizer.decode_next([token])
    # A part of a character reads like this character, which may be meant, too.
    if _PART in text and self._tokenizer.encode(text) != [token]:
      return None
    return text.encode() or None

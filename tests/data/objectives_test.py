"""Objectives: what is read, what is scored, and that chance obeys its key.

Ids are written as text here: `|` is eos, `^` bos, `_` padding, `#` the mask,
a digit a sentinel. A row begins with the token before its window.
"""

import collections
import itertools
from typing import Any

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from lm.data import corruption, masking, objectives, windows
from lm.data.tokenizers import utf8_bytes

WORDS = utf8_bytes.make(reserved=9)
MASK = WORDS.size - 9
SIGNS = {WORDS.eos: '|', WORDS.bos: '^', WORDS.pad: '_', MASK: '#'}
SIGNS |= {WORDS.size - 1 - n: str(n) for n in range(8)}
SIGNS |= {i: bytes([i - 3]).decode('latin-1') for i in range(3, MASK)}
# backwards, so that a sign means the special id and not the letter
IDS = {sign: i for i, sign in reversed(SIGNS.items())}
DISTINCT = [chr(c) for c in range(0x80, 0x100)]

KINDS = {
  'causal': (objectives.causal, {}),
  'prefix_lm': (objectives.prefix_lm, {}),
  'masked': (masking.masked, {}),
  'masked words': (masking.masked, {'whole_words': True}),
  'masked spans': (masking.masked, {'span': 4.0, 'whole_words': True}),
  'next_sentence': (masking.next_sentence, {}),
  'span_corruption': (corruption.span_corruption, {'source': 40}),
  'one_span': (corruption.one_span, {}),
  'continuation': (corruption.continuation, {'source': 40}),
  'bidirectional': (objectives.bidirectional, {}),
  'skip_gram': (objectives.skip_gram, {'negatives': 2}),
}
EVERY = pytest.mark.parametrize('kind', KINDS)


def of(kind: str) -> Any:
  factory, settings = KINDS[kind]
  return factory(tokenizer=WORDS, length=24, **settings)


def show(ids) -> str:
  return ''.join(SIGNS[int(i)] for i in ids)


def digits(values) -> str:
  return ''.join(str(int(v)) for v in values)


def make(objective, text: str, keys=(0,)) -> Any:
  """Makes a batch, an example of one row for each key.

  It is Any, and not a Batch, because the tests know which fields are there.
  """
  assert len(text) <= objective.window + 1, 'the text is longer than the row'
  row = [IDS[c] for c in text.ljust(objective.window + 1, '|')]
  rows = np.asarray([row] * len(keys), np.int32)
  sizes = np.full(len(keys), len(text) - 1, np.int64)
  return objective.make(rows, sizes, np.asarray(keys, np.uint64))


def random_rows(objective, count: int, seed: int = 0):
  random = np.random.default_rng(seed)
  signs = [IDS[c] for c in 'abcdefg  |']
  rows = random.choice(signs, (count, objective.window + 1)).astype(np.int32)
  sizes = random.integers(objective.window // 2, objective.window + 1, count)
  return rows, sizes, random.integers(2**63, 2**64, count, np.uint64)


def assert_same(one: Any, two: Any) -> None:
  for x, y in zip(one, two, strict=True):
    np.testing.assert_array_equal(x, y)


def plain(batch: Any) -> tuple[str, ...]:
  """Gives tokens, targets, weights, positions and segments of the first row."""
  ids = [show(batch.tokens[0]), show(batch.targets[0])]
  rest = (batch.weights, batch.positions, batch.segments)
  return (*ids, *[digits(field[0]) for field in rest])


@EVERY
def test_an_example_depends_on_its_own_row_size_and_key_alone(kind):
  objective = of(kind)
  rows, sizes, keys = random_rows(objective, 8)
  whole = objective.make(rows.copy(), sizes, keys)
  order = np.asarray([5, 0, 7, 3])
  part = objective.make(rows[order], sizes[order], keys[order])
  for x, y in zip(whole, part, strict=True):
    np.testing.assert_array_equal(x if x is None else x[order], y)
  assert_same(whole, objective.make(rows.copy(), sizes, keys))


@EVERY
def test_another_key_makes_another_example(kind):
  objective = of(kind)
  rows, sizes, keys = random_rows(objective, 64)
  one = objective.make(rows.copy(), sizes, keys)
  for bit in (0, 63):
    changed = keys ^ np.uint64(1 << bit)
    two = objective.make(rows.copy(), sizes, changed)
    same = [np.array_equal(x, y) for x, y in zip(one, two, strict=True)]
    fixed = ('causal', 'one_span', 'bidirectional', 'continuation')
    assert all(same) == (kind in fixed)


@EVERY
@hypothesis.settings(max_examples=25)
@hypothesis.given(
  sizes=st.lists(st.integers(0, 24), min_size=1, max_size=5),
  seed=st.integers(0, 99),
)
def test_what_lies_beyond_the_size_does_not_matter(kind, sizes, seed):
  objective = of(kind)
  rows, _, keys = random_rows(objective, len(sizes), seed)
  sizes = np.asarray(sizes) * objective.window // 24
  beyond = np.arange(objective.window + 1) > sizes[:, None]
  random = np.random.default_rng(seed)
  garbage = random.integers(0, WORDS.size, rows.shape, np.int32)
  other = np.where(beyond, garbage, rows)
  one = objective.make(rows.copy(), sizes, keys)
  two = objective.make(other, sizes, keys)
  assert_same(one, two)
  np.testing.assert_array_equal(other[~beyond], rows[~beyond])
  padding = one.segments == 0
  assert (one.weights[padding] == 0).all() and padding[sizes == 0].all()
  assert (one.tokens[padding] == WORDS.pad).all()
  assert (one.positions[padding] == 0).all()
  if one.source is not None:
    assert (one.source[one.source_segments == 0] == WORDS.pad).all()


@EVERY
def test_the_example_of_a_batch_has_its_shapes_and_types(kind):
  objective = of(kind)
  batch = objective.make(*random_rows(objective, 3))
  zeros = objectives.example(objective, 3)
  dtypes = ['int32'] * 9
  dtypes[2], dtypes[5] = 'float32', 'bool'
  for x, zero, dtype in zip(batch, zeros, dtypes, strict=True):
    assert (x is None) == (zero is None)
    if zero is not None:
      assert x.shape == zero.shape and x.dtype == zero.dtype == dtype
      assert not zero.any()
  width = 48 if kind == 'bidirectional' else 24
  assert {x.shape for x in batch[:5]} == {(3, width)}


def test_causal_targets_are_the_input_shifted():
  got = make(objectives.causal(tokenizer=WORDS, length=8), '|abc|de')
  assert plain(got) == (
    '^abc^d__',
    'abc|de__',
    '11111100',
    '01230100',
    '11112200',
  )
  objective = of('causal')
  rows, sizes, keys = random_rows(objective, 9)
  expected = windows.pack(rows.copy(), sizes, WORDS)
  assert_same(objective.make(rows, sizes, keys), expected)


def test_a_prefix_ends_anywhere_and_its_inside_is_not_scored():
  objective = objectives.prefix_lm(tokenizer=WORDS, length=7)
  got = make(objective, '|abc||d', range(600))
  assert show(got.tokens[0]) == '^abc^^_' and show(got.targets[0]) == 'abc||d_'
  seen = collections.Counter(
    (digits(got.prefix[b]), digits(got.weights[b])) for b in range(600)
  )
  # documents of one position have no prefix
  assert set(seen) == {
    ('1000000', '1111110'),
    ('1100000', '0111110'),
    ('1110000', '0011110'),
  }
  # 200 expected; 6 deviations of 11.5 either way
  assert min(seen.values()) > 131 and max(seen.values()) < 269


@hypothesis.settings(max_examples=50)
@hypothesis.given(text=st.text('ab|', min_size=2, max_size=25))
def test_what_a_position_can_see_is_not_scored(text):
  batch = make(of('prefix_lm'), text)
  inputs, segments, prefix = batch.tokens[0], batch.segments[0], batch.prefix[0]
  for place in range(24):
    later = range(place + 1, 24)
    same = [l for l in later if 0 < segments[l] == segments[place]]
    # the region is a beginning of each document, and never all of it
    assert prefix[place] or not any(prefix[l] for l in same)
    assert same or not prefix[place]
    sees = bool(same) and prefix[place] and prefix[same[0]]
    assert batch.weights[0][place] == (segments[place] > 0 and not sees)
    if same:
      assert batch.targets[0][place] == inputs[same[0]]
      assert prefix[place] or batch.positions[0][place] > 0


def test_masked_tokens_are_scored_on_what_they_were():
  def objective(**settings):
    return masking.masked(tokenizer=WORDS, length=8, share=1, **settings)

  rest = ('^abc^d__', '01110100', '01230100', '11112200')
  masks = make(objective(mask_share=1, random_share=0), '|abc|de')
  assert plain(masks) == ('^###^#__', *rest)
  same = make(objective(mask_share=0, random_share=0), '|abc|de')
  assert plain(same) == ('^abc^d__', *rest)


def test_the_number_of_masked_tokens_is_exact():
  def count(text, **settings):
    objective = masking.masked(tokenizer=WORDS, length=100, **settings)
    return make(objective, text, range(5)).weights.sum(axis=1).tolist()

  assert count('|' + 'a' * 100) == [15] * 5  # bos takes the place of the last
  assert count('a' * 101, share=0.3) == [30] * 5
  assert count('a' * 101, share=0.3, span=4) == [30] * 5
  assert count('a' * 101, share=1, span=4) == [100] * 5
  assert count('|abc') == [1] * 5  # of two, but never none
  assert count('|||') == [0] * 5


def test_masks_fall_on_all_places_and_have_three_fates():
  objective = masking.masked(tokenizer=WORDS, length=200)
  got = make(objective, 'x' + 'xyz|' * 50, range(400))
  letters = got.targets[0] != WORDS.bos
  chosen = got.weights > 0
  assert chosen.sum() == 400 * round(0.15 * letters.sum())
  assert not chosen[:, ~letters].any()
  # 60 expected at each place; 6 deviations of 7.1 either way
  tally = chosen.sum(axis=0)[letters]
  assert tally.min() > 17 and tally.max() < 103
  np.testing.assert_array_equal(got.tokens[~chosen], got.targets[~chosen])
  is_mask = (got.tokens == MASK)[chosen].mean()
  is_kept = (got.tokens == got.targets)[chosen].mean()
  # 9200 draws: 5 deviations; one random id in 256 is the token itself
  assert abs(is_mask - 0.8) < 0.021 and abs(is_kept - 0.1 - 0.1 / 256) < 0.016


def test_a_random_token_is_any_of_ordinary_text():
  objective = masking.masked(
    tokenizer=WORDS, length=100, share=1, mask_share=0, random_share=1
  )
  got = make(objective, 'a' * 101, range(100))
  tally = np.bincount(got.tokens.ravel(), minlength=WORDS.size)
  assert np.flatnonzero(tally).tolist() == list(range(3, MASK))
  # 39 expected of each; 5 deviations
  assert tally[3:MASK].min() > 8 and tally.max() < 71


def test_whole_words_are_masked_whole():
  objective = masking.masked(
    tokenizer=WORDS, length=9, mask_share=1, random_share=0, whole_words=True
  )
  got = make(objective, 'ab cd|ef!', range(100))
  # a word begins at the window's edge, with its space, and with a document
  assert {show(ids) for ids in got.tokens} == {
    '## cd^ef_',
    'ab###^ef_',
    'ab cd^##_',
  }


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  text=st.text('ab |', min_size=2, max_size=65),
  share=st.floats(0.05, 1),
  span=st.one_of(st.none(), st.floats(1, 20)),
)
def test_words_are_chosen_until_the_budget_is_met(text, share, span):
  objective = masking.masked(
    tokenizer=WORDS, length=64, share=share, span=span, whole_words=True
  )
  batch = make(objective, text)
  chosen = batch.weights[0] > 0
  words, previous = [], '^'
  for place, sign in enumerate(show(batch.targets[0][: len(text) - 1])):
    if sign != '^':
      if previous == '^' or sign == ' ':
        words.append([])
      words[-1].append(place)
    previous = sign
  taken = [word for word in words if chosen[word[0]]]
  assert np.flatnonzero(chosen).tolist() == list(itertools.chain(*taken))
  if words:
    budget = max(1, round(share * sum(map(len, words))))
    held = sum(map(len, taken))
    assert held - max(map(len, taken)) < budget <= held


def test_spans_run_on_but_not_into_another_document():
  def runs(span):
    objective = masking.masked(
      tokenizer=WORDS, length=250, share=0.04, span=span
    )
    chosen = make(objective, 'a' * 251, range(300)).weights > 0
    return np.diff(chosen, axis=1, prepend=False).sum() / 300 / 2

  # 10 tokens of 250: alone as a rule, or in spans of 3.8 on average
  assert 9 < runs(None) < 10 and 9 < runs(1) < 10 and 2.2 < runs(5) < 4
  objective = masking.masked(
    tokenizer=WORDS, length=8, share=0.4, mask_share=1, random_share=0, span=99
  )
  got = make(objective, '|ab|cd|ef', range(400))
  seen = collections.Counter(show(ids) for ids in got.tokens)
  # 22 and 94 expected; 76 of the first if a span ran on into a document
  assert seen['^a#^#d^e'] < 45 < 60 < seen['^##^cd^e']


def test_next_sentence_pairs_neighbours_or_strangers():
  objective = masking.next_sentence(
    tokenizer=WORDS, length=6, share=1, mask_share=1, random_share=0
  )
  assert objective.window == 12
  # Three tokens go into a pair; eos is no text; the last half begins with f.
  got = make(objective, 'xab|cd|efghij', range(400))
  seen = {True: set(), False: set()}
  for b in range(400):
    label = int(got.targets[b, 0])
    seen[label == 1].add(show(got.targets[b, 1:]))
    split = show(got.targets[b, 1:]).index('|')
    fields = [digits(f[b]) for f in got[2:5]] + [digits(got.token_types[b])]
    expected = {
      1: ['110110', '012345', '111111', '000111'],
      2: ['111010', '012345', '111111', '000011'],
    }
    assert fields == expected[split]
    assert show(got.tokens[b]) == {1: '^#|##|', 2: '^##|#|'}[split]
  assert seen[True] == {'a|bc|', 'ab|c|'}
  pairs = {f'a|{two}|' for two in ('fg', 'gh', 'hi', 'ij')}
  assert seen[False] == pairs | {f'ab|{one}|' for one in 'fghij'}
  # 4 deviations of 10
  assert 160 < (got.targets[:, 0] == 1).sum() < 240


def test_no_word_runs_from_one_text_of_a_pair_into_another():
  objective = masking.next_sentence(
    tokenizer=WORDS,
    length=6,
    share=0.2,
    mask_share=1,
    random_share=0,
    whole_words=True,
  )
  got = make(objective, 'xa|bcdefghijk', range(200))
  follows = got.targets[:, 0] == 1
  # `ab` are two documents and two words, `bc` one word
  words = {'^#|bc|', '^a|##|', '^#b|c|', '^a#|c|', '^ab|#|'}
  assert {show(ids) for ids in got.tokens[follows]} == words


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  count=st.integers(0, 48),
  stops=st.sets(st.integers(0, 47), max_size=10),
  key=st.integers(0, 2**64 - 1),
)
def test_a_pair_is_cut_from_its_window(count, stops, key):
  raw = ''.join('|' if n in stops else DISTINCT[n] for n in range(count))
  text = raw.replace('|', '')
  batch = make(of('next_sentence'), 'x' + raw, [key])
  if len(text) < 4:
    assert not batch.weights.any() and not batch.segments.any()
    return
  size = int(batch.segments.sum())
  assert size == min(21, len(text) // 2) + 3
  body = show(batch.targets[0, 1:size])
  first, second, end = body.split('|')
  assert first and second and not end
  assert text.startswith(first)
  if batch.targets[0, 0]:
    assert text.startswith(first + second)
  else:
    assert second in text[len(text) // 2 :]
  assert digits(batch.token_types[0]) == ('0' * (len(first) + 2)).ljust(
    size, '1'
  ).ljust(24, '0')
  special = np.isin(batch.targets[0, 1:], (WORDS.eos, WORDS.pad))
  budget = max(1, round(0.15 * (size - 3)))
  assert batch.weights[0, 0] == 1 and batch.weights[0, 1:].sum() == budget
  assert not batch.weights[0, 1:][special].any()
  rest = batch.weights[0, 1:] == 0
  np.testing.assert_array_equal(
    batch.tokens[0, 1:][rest], batch.targets[0, 1:][rest]
  )
  assert batch.tokens[0, 0] == WORDS.bos


def test_masks_and_sentinels_may_stand_anywhere():
  special = {IDS['m'], IDS['x'], IDS['y'], WORDS.eos, WORDS.bos, WORDS.pad}
  words = WORDS._replace(mask=IDS['m'], sentinels=[IDS['x'], IDS['y']])
  objective = masking.masked(
    tokenizer=words, length=24, share=1, mask_share=0.2, random_share=0.8
  )
  got = make(objective, '|' + 'a' * 24, range(300)).tokens[:, 1:]
  assert 0.1 < (got == IDS['m']).mean() < 0.3
  drawn = set(got[got != IDS['m']].tolist())
  assert len(drawn) == len(set(range(MASK)) - special)
  assert not drawn & special and max(drawn) < MASK
  spans = corruption.span_corruption(
    tokenizer=words, length=7, source=6, noise=0.5, mean_span=1
  )
  got = make(spans, '|ab|d')
  assert show(got.targets[0]) == 'xbyd|__'
  assert show(got.source[0]) == 'ax|y|_'
  whole = corruption.one_span(tokenizer=words, length=4)
  assert show(make(whole, '|abc').tokens[0]) == '^xab'
  with pytest.raises(ValueError) as error:
    corruption.one_span(tokenizer=utf8_bytes.make(1), length=4)
  text = 'tokenizer: has no sentinel; set tokenizer.reserved to 2 or more'
  assert str(error.value) == text


def test_spans_are_replaced_by_sentinels():
  objective = corruption.span_corruption(
    tokenizer=WORDS, length=7, source=6, noise=0.5, mean_span=1
  )
  assert objective.window == 5
  got = make(objective, 'xab|d')
  assert plain(got) == ('^0b1d__', '0b1d|__', '1111100', '0123400', '1111100')
  assert show(got.source[0]) == 'a0|1|_'
  assert digits(got.source_segments[0]) == '111110'
  assert not make(objective, 'xa').segments.any()


def test_a_window_may_be_lost_as_one_span():
  objective = corruption.one_span(tokenizer=WORDS, length=5)
  assert objective.window == 4 and objective.likelihood
  batch = make(objective, 'zabcd')
  assert show(batch.tokens[0]) == '^0abc'
  assert show(batch.targets[0]) == '0abcd'
  assert digits(batch.weights[0]) == '01111'
  batch = make(objective, '|ab')
  assert show(batch.tokens[0]) == '^0a__'
  assert digits(batch.segments[0]) == '11100'
  assert digits(batch.weights[0]) == '01100'
  assert show(batch.source[0]) == '0|'
  assert objective.prompt is not None
  asked: Any = objective.prompt([[IDS['a'], IDS['b']]])
  assert show(asked.tokens[0]) == '^0ab' and show(asked.source[0]) == '0|'


def test_a_text_is_continued_by_the_decoder():
  objective = corruption.continuation(tokenizer=WORDS, length=3, source=5)
  assert objective.window == 6
  got = make(objective, 'xabcd|e')
  assert plain(got) == ('^|e', '|e|', '111', '012', '111')
  assert show(got.source[0]) == 'abcd|'
  got = make(objective, 'xab')
  assert plain(got) == ('^b_', 'b|_', '110', '010', '110')
  assert show(got.source[0]) == 'a|___'
  assert digits(got.source_segments[0]) == '11000'
  assert not make(objective, 'xa').segments.any()
  for size in range(2, 7):  # every part fits
    got = make(objective, 'xabcdef'[: size + 1])
    assert got.weights.sum() + got.source_segments.sum() == size + 2
  assert objective.prompt is not None
  asked: Any = objective.prompt([[IDS['a']]])
  assert show(asked.tokens[0]) == '^' and show(asked.source[0]) == 'a|'


def test_the_window_is_that_of_t5():
  # 568 raw tokens, of which 85 are lost in 28 spans: the paper's own sizes
  settings = {'length': 114, 'source': 512}
  enough = utf8_bytes.make(reserved=29)
  objective = corruption.span_corruption(tokenizer=enough, **settings)
  assert objective.window == 568
  got = make(objective, 'a' * 569)
  assert got.weights.sum() == 114 and got.source_segments.sum() == 512
  assert (got.source >= enough.size - 28).sum() == 28


@hypothesis.settings(max_examples=80)
@hypothesis.given(
  data=st.data(),
  length=st.integers(3, 40),
  source=st.integers(3, 40),
  noise=st.floats(0.02, 0.98),
  mean_span=st.floats(1, 6),
  key=st.integers(0, 2**64 - 1),
)
def test_source_and_targets_hold_the_whole_window(
  data, length, source, noise, mean_span, key
):
  words = utf8_bytes.make(reserved=50)
  objective = corruption.span_corruption(
    tokenizer=words,
    length=length,
    source=source,
    noise=noise,
    mean_span=mean_span,
  )
  size = data.draw(st.integers(2, objective.window))
  text = data.draw(st.text('abc|', min_size=size, max_size=size))
  got = make(objective, 'x' + text, [key])
  inputs = got.source[0][got.source_segments[0] > 0].tolist()
  targets = got.targets[0][got.weights[0] > 0].tolist()
  tokens = got.tokens[0][got.segments[0] > 0].tolist()
  assert tokens == [words.bos, *targets[:-1]]
  assert inputs.pop() == targets.pop() == words.eos
  spans = {}
  for token in targets:
    if token >= words.size - 50:
      spans[token] = []
    else:
      spans[words.size - len(spans)].append(token)
  assert all(spans.values())
  assert list(spans) == [words.size - 1 - n for n in range(len(spans))]
  whole = [spans.get(token, [token]) for token in inputs]
  assert list(itertools.chain(*whole)) == [IDS[c] for c in text]

  def counts(total):
    lost = min(max(1, round(total * noise)), total - 1)
    return lost, min(max(1, round(lost / mean_span)), total - lost)

  lost = sum(map(len, spans.values()))
  assert (lost, len(spans)) == counts(size)
  # One token more in the window, and something would not fit.
  lost, spans = counts(objective.window + 1)
  kept = objective.window + 1 - lost
  assert kept + spans + 1 > source or lost + spans + 1 > length


def test_spans_take_every_shape_alike():
  objective = corruption.span_corruption(
    tokenizer=WORDS, length=8, source=8, noise=0.5, mean_span=2
  )
  got = make(objective, 'xabcdefgh', range(900))
  seen = collections.Counter(show(ids) for ids in got.targets)
  # Four tokens in two parts, twice: 9 ways, 100 expected of each.
  assert len(seen) == 9
  assert min(seen.values()) > 50 and max(seen.values()) < 150


def test_both_ways_mirrors_the_row():
  objective = objectives.bidirectional(tokenizer=WORDS, length=6)
  kinds = make(objective, '|abc|de').token_types
  assert kinds is not None and kinds.tolist() == [[0] * 6 + [1] * 6]
  assert plain(make(objective, '|abc|de')) == (
    '^abc^d' + 'ed^cba',
    'abc|de' + 'd|cba|',
    '111111' + '111111',
    '012301' + '010123',
    '111122' + '112222',
  )
  assert plain(make(objective, 'xab|')) == (
    'xab___' + '^ba___',
    'ab|___' + 'bax___',
    '111000' + '111000',
    '012000' + '012000',
    '111000' + '111000',
  )


@hypothesis.settings(max_examples=50)
@hypothesis.given(text=st.text('ab|', min_size=2, max_size=25))
def test_every_neighbour_predicts_the_other(text):
  batch = make(of('bidirectional'), text)
  scored = batch.weights[0] > 0
  pairs = collections.Counter()
  for half, step in ((slice(24), 1), (slice(24, None), -1)):
    here = scored[half]
    inputs = show(batch.tokens[0, half][here])
    targets = show(batch.targets[0, half][here])
    pairs.update((step, *pair) for pair in zip(inputs, targets, strict=True))
  expected = collections.Counter()
  for left, right in itertools.pairwise(text):
    expected[1, left.replace('|', '^'), right] += 1
    expected[-1, right.replace('|', '^'), left] += 1
  assert pairs == expected


def test_skip_gram_pairs_neighbours_and_noise():
  objective = objectives.skip_gram(
    tokenizer=WORDS, length=6, context=1, negatives=1
  )
  got = make(objective, 'xab|c', range(200))
  seen = set()
  for b in range(200):
    tokens, source = show(got.tokens[b]), show(got.source[b])
    seen.add((tokens, source[0], source[2]))
    weights = [1, source[1] != source[0], 1, source[3] != source[2], 0, 0]
    assert got.weights[b].tolist() == weights
    assert set(source[:4]) <= set('abc') and source[4:] == '__'
    assert digits(got.targets[b]) == '101000'
  assert seen == {('aabb__', 'b', 'a'), ('bbaa__', 'a', 'b')}
  assert {show(source)[1] for source in got.source} == set('abc')
  assert digits(got.segments[0]) == digits(got.source_segments[0]) == '111100'
  assert not got.positions.any()


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  count=st.integers(0, 60),
  stops=st.sets(st.integers(0, 59), max_size=20),
  context=st.integers(1, 6),
  negatives=st.integers(1, 4),
  key=st.integers(0, 2**64 - 1),
)
def test_a_center_meets_all_words_within_its_reach(
  count, stops, context, negatives, key
):
  text = ''.join('|' if n in stops else DISTINCT[n] for n in range(count))
  objective = objectives.skip_gram(
    tokenizer=WORDS, length=60, context=context, negatives=negatives
  )
  batch = make(objective, 'x' + text, [key])
  used = batch.segments[0] > 0
  centers, others = show(batch.tokens[0][used]), show(batch.source[0][used])
  block = 1 + negatives
  assert (batch.targets[0][used] == (np.arange(used.sum()) % block == 0)).all()
  met = {}
  for n, (center, other) in enumerate(zip(centers, others, strict=True)):
    if n % block == 0:
      met.setdefault(center, set()).add(other)
    assert center == centers[n - n % block] and other in text.replace('|', '')
    hit = n % block > 0 and other == others[n - n % block]
    assert batch.weights[0][n] == (not hit)
  for center, words in met.items():
    place = text.index(center)
    reach = max(abs(text.index(w) - place) for w in words)
    assert reach <= context
    left, right = text[max(0, place - reach) : place + reach + 1].split(center)
    near = set(left.split('|')[-1] + right.split('|')[0])
    # the list may end amid the words of the last center
    assert words == near or (center == centers[-1] and words < near)
  assert not batch.weights[0][~used].any()
  if used.sum() < 60:
    assert set(met) == {w for part in text.split('|') if part[1:] for w in part}


def test_skip_gram_reaches_and_noise_follow_their_laws():
  objective = objectives.skip_gram(
    tokenizer=WORDS, length=238, context=3, negatives=6
  )
  got = make(objective, 'x' + ('a' * 16 + 'b') * 14, range(60))
  assert got.segments.all()  # full: 34 pairs, each with its noise
  noise = got.source[got.targets == 0]
  # 16 and 1 in 17, to the power 0.75, are 8 and 1 in 9; 12240 draws
  assert len(noise) == 60 * 34 * 6
  assert abs((noise == IDS['b']).mean() - 1 / 9) < 0.015
  line = make(
    objectives.skip_gram(tokenizer=WORDS, length=120, context=3, negatives=1),
    'x' + ''.join(DISTINCT[:120]),
    range(400),
  )
  is_true = line.targets == 1
  apart = np.abs(line.tokens[is_true] - line.source[is_true])
  tally = np.bincount(apart, minlength=4)
  # reach 1, 2 or 3 alike: distances 1, 2 and 3 come as 3 : 2 : 1
  share = tally / tally.sum()
  np.testing.assert_allclose(share, [0, 1 / 2, 1 / 3, 1 / 6], atol=0.02)


@pytest.mark.parametrize(
  ('kind', 'settings', 'text'),
  [
    ('causal', {'length': 0}, 'length=0 must be a whole number from 1 on'),
    (
      'prefix_lm',
      {'length': 2.0},
      'length=2.0 must be a whole number from 1 on',
    ),
    (
      'bidirectional',
      {'length': -1},
      'length=-1 must be a whole number from 1 on',
    ),
    ('masked', {'length': 0}, 'length=0 must be a whole number from 1 on'),
    ('masked', {'share': 0}, 'share=0 must be above 0 and at most 1'),
    (
      'next_sentence',
      {'share': 1.5},
      'share=1.5 must be above 0 and at most 1',
    ),
    (
      'masked',
      {'mask_share': 0.8, 'random_share': 0.3},
      'mask_share=0.8 and random_share=0.3 must be at least 0 and at most 1 '
      'together',
    ),
    (
      'masked',
      {'mask_share': -0.1},
      'mask_share=-0.1 and random_share=0.1 must be at least 0 and at most 1 '
      'together',
    ),
    ('masked', {'span': 0.5}, 'span=0.5 must be at least 1, or None'),
    (
      'masked',
      {'tokenizer': utf8_bytes.make()},
      'tokenizer: has no id for the mask; set tokenizer.reserved to 1 or more',
    ),
    (
      'next_sentence',
      {'length': 4},
      'length=4 must be a whole number from 5 on',
    ),
    (
      'span_corruption',
      {'length': 2},
      'length=2 must be a whole number from 3 on',
    ),
    (
      'span_corruption',
      {'source': 2},
      'source=2 must be a whole number from 3 on',
    ),
    ('span_corruption', {'noise': 1}, 'noise=1 must be above 0 and below 1'),
    ('span_corruption', {'mean_span': 0.9}, 'mean_span=0.9 must be at least 1'),
    (
      'span_corruption',
      {'length': 114, 'source': 512, 'tokenizer': utf8_bytes.make(28)},
      'tokenizer: has 27 sentinels, too few for 28 spans; set '
      'tokenizer.reserved to 29 or more, or take a shorter source',
    ),
    ('skip_gram', {'length': 0}, 'length=0 must be a whole number from 1 on'),
    ('skip_gram', {'context': 0}, 'context=0 must be a whole number from 1 on'),
    (
      'skip_gram',
      {'negatives': 0},
      'negatives=0 must be a whole number from 1 on',
    ),
  ],
)
def test_a_setting_out_of_range_is_refused(kind, settings, text):
  factory, usual = KINDS[kind]
  with pytest.raises(ValueError) as error:
    factory(**{'tokenizer': WORDS, 'length': 24} | usual | settings)
  assert str(error.value) == text

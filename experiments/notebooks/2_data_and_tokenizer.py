# %% [markdown]
# # Look at data and tokenizer
#
# This notebook shows what a model really reads: pieces of words, packed rows,
# masks, and the batch of any step. It takes about a minute on any machine;
# nothing is trained but tokenizers.

# %%
import glob
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = 'https://example.org/exactlm/lm.git'
SOURCE = os.environ.get('LM_SOURCE', 'lm-source')
if importlib.util.find_spec('lm') is None:  # Colab, Kaggle, or a new machine
  extra = '[tpu]' if glob.glob('/dev/vfio/[0-9]*') else ''
  extra = '[cuda]' if shutil.which('nvidia-smi') else extra
  install = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run(['git', 'clone', '--depth=1', REPOSITORY, SOURCE], check=True)
  subprocess.run([*install, f'./{SOURCE}{extra}'], check=True)
QUICK = bool(os.environ.get('QUICK'))  # a test runs this notebook shortened

# %% [markdown]
# ## Text
#
# Python's own language reference, one topic a line. Every tenth topic is kept
# apart to measure tokenizers on.

# %%
import json
from pydoc_data.topics import topics

texts = [*topics.values()]
held_out = texts[::10]
with open('train.jsonl', 'w') as file:
  for n, text in enumerate(texts):
    if n % 10:
      print(json.dumps({'text': text}), file=file)
print(len(texts), 'topics,', sum(map(len, texts)), 'characters')

# %% [markdown]
# ## Tokenizers
#
# Byte pair encoding (BPE) merges frequent pairs of pieces until the vocabulary
# has the size that we ask for. With a larger vocabulary a text becomes fewer
# tokens, but each step gains less.

# %%
from lm.corpus import prepare

sizes = (400, 512, 1024, 2048, 4096)
found = {}
for size in sizes:
  found[size] = prepare.train_tokenizer(
    ['train.jsonl'], f'bpe-{size}.model', vocab=size
  ).tokenizer


def bytes_per_token(tokenizer, texts):
  """Divides the bytes of texts by the tokens that they become."""
  tokens = sum(map(len, tokenizer.encode_batch(texts)))
  return sum(len(text.encode()) for text in texts) / tokens


for size, tokenizer in found.items():
  print(f'{size:5} pieces: {bytes_per_token(tokenizer, held_out):.2f} bytes')

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(5, 3))
plt.semilogx(
  sizes, [bytes_per_token(x, held_out) for x in found.values()], 'o-'
)
plt.xticks(sizes, sizes)
plt.minorticks_off()
plt.xlabel('pieces in the vocabulary')
plt.ylabel('bytes a token')
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Pieces
#
# The same sentence in three vocabularies. A bar marks where a token ends.

# %%
sentence = 'The while statement is used for repeated execution.'
for size in (400, 1024, 4096):
  tokenizer = found[size]
  ids = tokenizer.encode(sentence)
  print(f'{size:5}:', '|'.join(tokenizer.decode_next([i]) for i in ids))

# %% [markdown]
# ## Fertility
#
# *Fertility* is the number of tokens a word. It is high for a language that the
# tokenizer has hardly seen: such text is spelled in bytes, which costs more
# steps and fills more of the context.

# %%
greetings = {
  'English': 'The weather is very fine today, so we walk in the park.',
  'German': 'Das Wetter ist heute sehr schön, also gehen wir in den Park.',
  'Russian': 'Сегодня прекрасная погода, поэтому мы гуляем в парке.',
  'Chinese': '今天天气很好，所以我们去公园散步。',
}
tokenizer = found[1024]
english = len(tokenizer.encode(greetings['English']))
for language, text in greetings.items():
  count = len(tokenizer.encode(text))
  print(f'{language:8} {count:3} tokens, {count / english:.1f} times English')
  assert tokenizer.decode(tokenizer.encode(text)) == text

# %% [markdown]
# The last line of the cell is a promise: whatever the text, decoding gives it
# back, because a character without a piece is spelled in bytes.
#
# ## Packed rows
#
# Documents are laid end to end and cut into rows. Where a row begins or ends in
# the middle of a document, so be it. To see many documents in a row, we take
# each paragraph for one. `setup.assemble` builds all that a config describes,
# and trains nothing.

# %%
import lm
from lm.training import setup

with open('paragraphs.jsonl', 'w') as file:
  for text in texts:
    for paragraph in text.split('\n\n'):
      print(json.dumps({'text': paragraph}), file=file)
prepare.write_dataset('paragraphs.jsonl', 'data/train', 'bpe-1024.model')
changes = {
  'batch_size': 8,
  'tokenizer.path': 'bpe-1024.model',
  'data.sources.train.path': 'data/train',
  'data.length': 256,
}
c = lm.config.load('configs/gpt/tiny.py', changes)
run = setup.assemble(setup.fill(c))
batch = run.data.batch(0)
for field in ('tokens', 'targets', 'weights', 'positions', 'segments'):
  value = getattr(batch, field)
  print(f'{field:9} {value.dtype!s:8} {value.shape}')

# %% [markdown]
# `segments` numbers the documents of a row. Each colour below is one document.

# %%
plt.figure(figsize=(7, 2))
plt.imshow(batch.segments, aspect='auto', cmap='tab20', interpolation='none')
plt.xlabel('position in the row')
plt.ylabel('row')
plt.show()

# %% [markdown]
# The target of a token is the token after it. The last token of a document has
# the end of text as its target.

# %%
for row in range(2):
  print(repr(run.tokenizer.decode(batch.tokens[row, :24].tolist())))
  print(
    repr(run.tokenizer.decode(batch.targets[row, :24].tolist())), end='\n\n'
  )

# %% [markdown]
# ## Masks
#
# A token sees the earlier tokens of its own document. The mask is never stored
# whole; `AttentionMask` makes the part of it that is needed. Here it is for the
# row with most documents: all that is seen, and with a window of 32 tokens.

# %%
from lm.layers import masks

row = int(batch.segments.max(axis=1).argmax())
about = {
  'segments': batch.segments[row : row + 1],
  'positions': batch.positions[row : row + 1],
}
figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
for axis, window in zip(axes, (None, 32), strict=True):
  seen = masks.AttentionMask(**about, window=window).materialize()
  axis.imshow(seen[0, 0], cmap='Greys', interpolation='none')
  axis.set_title('no window' if window is None else f'a window of {window}')
  axis.set_xlabel('key')
axes[0].set_ylabel('query')
plt.tight_layout()
plt.show()

# %% [markdown]
# ## A batch by its step
#
# Data has no state: the batch of a step is a function of the step, the seed and
# the data. So nothing has to be read first to know what step 1,000,000 reads,
# and the same is read by two hosts that take half of it each.

# %%
import numpy as np

late = run.data.batch(1_000_000)
again = setup.assemble(setup.fill(c)).data.batch(1_000_000)
halves = [run.data.batch(1_000_000, host, 2).tokens for host in range(2)]
assert np.array_equal(late.tokens, again.tokens)
assert np.array_equal(late.tokens, np.concatenate(halves))
print(run.tokenizer.decode(late.tokens[0].tolist())[:200])

# %% [markdown]
# This is why a run that is killed can go on with the same numbers: see the
# [first run](1_first_run.ipynb). Next:
# [a sweep with a plot](5_sweep.ipynb).

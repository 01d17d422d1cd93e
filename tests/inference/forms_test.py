"""A run that was tuned by a form is sampled and served through that form."""

import contextlib
import http.client
import json
from typing import Any

import pytest

from lm import sample, train
from lm.data.finetuning import pair_forms, records
from lm.data.tokenizers import utf8_bytes
from lm.inference import engine, prompts
from lm.inference import service as service_lib
from tests import programs

TOKEN = 'a-token-of-the-tests'
BYTES = utf8_bytes.make()
TURNS = [('system', 'be brief'), ('user', 'hi'), ('assistant', 'ho')]
TURNS += [('user', 'and?')]
MESSAGES = [{'role': role, 'content': text} for role, text in TURNS]
LENGTH, POSITIONS = 64, 96


def tuned(folder, form, **settings):
  """Trains a decoder for three steps on a few pairs or conversations."""
  lines = folder / 'records.jsonl'
  if form == 'chat':
    fn = 'crosswoz'
    rows = [
      {'id': str(n), 'messages': [{'content': x} for x in ('hi', f'{n} ho')]}
      for n in range(8)
    ]
  else:
    fn = 'alpaca'
    rows = [
      {'instruction': f'count to {n}', 'input': '', 'output': f'1 to {n}'}
      for n in range(8)
    ]
  lines.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  c = programs.on_eight(folder, steps=3, save_every=3, optim__warmup=1)
  c = c.copy_and_resolve_references().unlock()
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': {
      'fn': f'lm.data.finetuning.pair_readers:{fn}',
      'path': str(lines),
    },
    'form': {'fn': f'lm.data.finetuning.pair_forms:{form}', **settings},
    'length': LENGTH,
    'pack': False,
  }
  c.batch_size, c.model.length, c.evals = 8, POSITIONS, {}
  train.train(c.lock(), folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
  return tuned(tmp_path_factory.mktemp('chat'), 'chat')


@pytest.fixture(scope='module')
def reply(tmp_path_factory):
  folder = tmp_path_factory.mktemp('reply')
  return tuned(folder, 'reply', template='{source}\n\nAnswer:\n')


@pytest.fixture(scope='module')
def service(chat):
  with service_lib.serving(chat, token=TOKEN) as made:
    yield made


def post(service, path, **fields):
  connection = http.client.HTTPConnection(
    *service.server_address, timeout=programs.PATIENCE_SECONDS
  )
  with contextlib.closing(connection):
    given = {'Authorization': f'Bearer {TOKEN}'}
    connection.request('POST', path, json.dumps(fields), given)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def ask(service, **fields):
  status, text = post(service, '/v1/chat/completions', **fields)
  return status, json.loads(text)


def ids_of_form(turns):
  """The ids by which an evaluator asks, without bos."""
  form = pair_forms.chat(tokenizer=BYTES, length=LENGTH)
  assert form.prompt is not None
  made = form.prompt([records.Chat('x', (*turns, ('assistant', '')))])
  return made.tokens[0].tolist()[1:]


def test_a_prompt_is_put_through_the_form(chat, reply):
  run = engine.restore(reply)
  assert run.read('count') == BYTES.encode('count\n\nAnswer:\n')
  run = engine.restore(chat)
  assert run.read('hi') == BYTES.encode('User: hi\nAssistant: ')
  assert run.form is not None and run.form(TURNS) == ids_of_form(TURNS)
  for workdir in (chat, reply):
    how = {'length': 5, 'temperature': 0.0}
    (answer,) = sample.sample(workdir, 'hi', **how)
    run = engine.restore(workdir)
    # the same as a run without a form, given what the form makes
    plain = run._replace(form=None)
    text = BYTES.decode(run.read('hi'))
    deltas = list(
      engine.stream(
        plain,
        [BYTES.encode(text)],
        engine.Settings(**how),
        capacity=POSITIONS,
      )
    )
    pieces = [token.text for step in deltas for x in step for token in x.tokens]
    assert answer == ''.join(pieces)
    (searched,) = sample.sample(workdir, 'hi', beams=1, length=5)
    assert not searched.startswith('hi')


def test_a_chat_is_answered_in_the_words_of_the_interface(service, chat):
  how = {'messages': MESSAGES, 'temperature': 0, 'max_completion_tokens': 4}
  status, answer = ask(service, **how, user='me', tools=[])
  assert status == 200 and answer['object'] == 'chat.completion'
  assert answer['id'].startswith('chatcmpl-') and answer['model'] == 'run'
  (choice,) = answer['choices']
  assert choice['message']['role'] == 'assistant'
  assert choice['finish_reason'] in ('stop', 'length')
  assert choice['logprobs'] is None
  assert answer['usage']['prompt_tokens'] == len(ids_of_form(TURNS))
  # the same text as of completions, which take its ids
  status, text = post(
    service,
    '/v1/completions',
    prompt=ids_of_form(TURNS),
    temperature=0,
    max_tokens=4,
  )
  assert status == 200
  content = choice['message']['content']
  assert json.loads(text)['choices'][0]['text'] == content
  # parts of a message, and the newer word for system
  parts = [{'type': 'text', 'text': 'be '}, {'type': 'text', 'text': 'brief'}]
  first = {'role': 'developer', 'content': parts}
  _, same = ask(service, **how | {'messages': [first, *MESSAGES[1:]]})
  assert same['choices'][0]['message']['content'] == content
  # the probabilities of tokens
  _, told = ask(service, **how, logprobs=True, top_logprobs=2)
  tokens = told['choices'][0]['logprobs']['content']
  assert ''.join(x['token'] for x in tokens).startswith(content)
  assert all(len(x['top_logprobs']) >= 1 for x in tokens)
  # as long as there is room, where the request does not say
  how.pop('max_completion_tokens')
  _, long = ask(service, **how)
  used = long['usage']['completion_tokens']
  ended = long['choices'][0]['finish_reason'] == 'stop'
  assert ended or used == POSITIONS - len(ids_of_form(TURNS)) - 1


def test_a_streamed_chat_has_the_same_text(service):
  how = {'messages': MESSAGES, 'temperature': 0, 'max_tokens': 4, 'n': 2}
  _, answer = ask(service, **how)
  usage = {'stream': True, 'stream_options': {'include_usage': True}}
  status, text = post(service, '/v1/chat/completions', **how, **usage)
  assert status == 200
  *events, last, done, rest = text.split('\n\n')
  assert (done, rest) == ('data: [DONE]', '')
  chunks = [json.loads(x.removeprefix('data: ')) for x in events]
  assert {x['object'] for x in chunks} == {'chat.completion.chunk'}
  for whole in answer['choices']:
    deltas = [
      choice
      for chunk in chunks
      for choice in chunk['choices']
      if choice['index'] == whole['index']
    ]
    assert deltas[0]['delta']['role'] == 'assistant'
    assert all('role' not in x['delta'] for x in deltas[1:])
    content = ''.join(x['delta']['content'] for x in deltas)
    assert content == whole['message']['content']
    assert deltas[-1]['finish_reason'] == whole['finish_reason']
  assert json.loads(last.removeprefix('data: '))['usage'] == answer['usage']


def test_a_text_prompt_of_the_page_gets_the_form_too(service):
  how = {'temperature': 0, 'max_tokens': 4}
  _, text = post(service, '/v1/completions', prompt='hi', echo=True, **how)
  asked = 'User: hi\nAssistant: '
  found = json.loads(text)['choices'][0]['text']
  assert found.startswith(asked)
  one = [{'role': 'user', 'content': 'hi'}]
  _, answer = ask(service, messages=one, **how)
  assert answer['choices'][0]['message']['content'] == found[len(asked) :]


@pytest.mark.parametrize(
  ('fields', 'say'),
  [
    ({'messages': None}, 'messages: must be a list of one at least'),
    ({'messages': []}, 'messages: must be a list of one at least'),
    ({'messages': ['hi']}, 'messages[0]: must have one of the roles assis'),
    ({'messages': [{'role': ['user']}]}, 'messages[0]: must have one of'),
    ({'messages': [{'role': 'tool', 'content': 'x'}]}, 'messages[0]: must'),
    ({'messages': [{'role': 'user'}]}, 'messages[0]: the content must be text'),
    (
      {'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]},
      'messages[0]: the content must be text',
    ),
    ({'messages': MESSAGES[:3]}, 'messages: the last one must be of a user'),
    (
      {'messages': [{'role': 'user', 'content': '\ud800'}]},
      'messages: text has a lone surrogate',
    ),
    ({'prompt': 'hi'}, 'prompt: not known here; known: model, messages, max_'),
    ({'tools': [{}]}, 'tools: not known here'),
    ({'top_logprobs': 2}, 'top_logprobs: needs logprobs: true'),
    ({'logprobs': True, 'top_logprobs': 6}, 'top_logprobs: must be a whole'),
    ({'logprobs': 1}, 'logprobs: must be true or false'),
    ({'max_tokens': 1, 'max_completion_tokens': 1}, 'max_tokens: give max_co'),
    ({'max_tokens': 80}, 'max_tokens: '),
  ],
)
def test_a_chat_that_cannot_be_answered_is_one_line(service, fields, say):
  status, answer = ask(service, **{'messages': MESSAGES, **fields})
  assert status == 400
  message = answer['error']['message']
  assert message.startswith(say) and len(message) <= 200


@pytest.mark.parametrize(
  ('messages', 'say'),
  [
    (
      [MESSAGES[0], {'role': 'user', 'content': 'x' * LENGTH}],
      'messages: more tokens than the form has room for; shorten it',
    ),
    (MESSAGES[1:] * 9, 'messages: '),
    ([MESSAGES[1]] * 1025, 'messages: more than 1024; leave the oldest out'),
  ],
)
def test_a_chat_that_the_form_would_cut_is_refused(service, messages, say):
  status, answer = ask(service, messages=messages)
  assert (status, answer['error']['code']) == (400, 'context_length_exceeded')
  assert answer['error']['message'].startswith(say)


def test_a_text_that_the_form_would_cut_is_refused(service):
  # 'User: ', a line feed and 'Assistant: ' have 18, bos is one more.
  fields = {'max_tokens': 1, 'prompt': 'x' * (LENGTH - 19)}
  assert post(service, '/v1/completions', **fields)[0] == 200
  fields['prompt'] += 'x'
  status, text = post(service, '/v1/completions', **fields)
  error = json.loads(text)['error']
  assert (status, error['code']) == (400, 'context_length_exceeded')
  assert error['message'].startswith('prompt: more tokens than the form')


@pytest.mark.parametrize(
  ('form', 'most'),
  [
    (pair_forms.translate(tokenizer=BYTES, length=9, source=24), 23),
    (pair_forms.reply(tokenizer=BYTES, length=32, template='{source}='), 14),
    (
      pair_forms.chat(tokenizer=BYTES, length=32),
      32 - 1 - len('User: \nAssistant: '),
    ),
  ],
)
def test_every_form_says_what_does_not_fit(form, most):
  made = prompts._of_form(form, BYTES).form
  assert made is not None
  whole = 'x' * most
  assert whole in BYTES.decode(made([('user', whole)]))
  with pytest.raises(prompts.TooLong, match='more tokens than'):
    made([('user', whole + 'x')])


def test_ids_that_an_encoder_has_no_room_for_are_refused(service, monkeypatch):
  form = pair_forms.translate(tokenizer=BYTES, length=9, source=24)
  batch = prompts._of_form(form, BYTES).batch
  segments: Any = batch([[9] * 23]).source_segments
  assert segments.sum() == 24
  with pytest.raises(prompts.TooLong):
    batch([[9] * 24])
  serves: Any = service.routes['/v1/completions'].answer
  run = serves.__self__._run._replace(prompt=batch)
  monkeypatch.setattr(serves.__self__, '_run', run)
  status, text = post(service, '/v1/completions', prompt=[9] * 24)
  error = json.loads(text)['error']
  assert (status, error['code']) == (400, 'context_length_exceeded')


def test_special_tokens_are_written_by_name_where_that_is_asked_for(
  chat, trained, monkeypatch
):
  plain, special = (engine.restore(chat, special=x) for x in (False, True))
  eos, bos = BYTES.eos, BYTES.bos
  written = 'User: a<eos>\n<bos>b'
  want = [*BYTES.encode('User: a'), eos, *BYTES.encode('\n'), bos, *b'b']
  want[-1] = BYTES.encode('b')[0]
  assert special.read(written) == want and special.form is None
  # By default no text can spell one.
  assert eos not in plain.read(written) and bos not in plain.read(written)[1:]
  assert engine.restore(trained).read('<eos>') == BYTES.encode('<eos>')
  assert special.read('') == [] and special.read('<eos>') == [eos]
  # What a program is given is what the engine reads.
  how = ['--length=4', '--temperature=0', f'--workdir={chat}']
  asked = []
  read = engine.Run.read
  monkeypatch.setattr(
    engine.Run, 'read', lambda *x: asked.append(read(*x)) or asked[-1]
  )
  sample.main([*how, '--special', f'--prompt={written}'])
  assert asked[-1] == want
  (text,) = sample.sample(
    chat, written, special=True, length=4, temperature=0.0
  )
  assert text.startswith(written)
  with service_lib.serving(chat, token=TOKEN, special=True) as made:
    fields = {'temperature': 0, 'max_tokens': 4}
    _, one = post(made, '/v1/completions', prompt=written, **fields)
    _, two = post(made, '/v1/completions', prompt=want, **fields)
    assert json.loads(one)['choices'] == json.loads(two)['choices']
    assert ask(made, messages=MESSAGES)[0] == 404


def test_a_run_without_a_form_has_no_chats(trained):
  with service_lib.serving(trained, token=TOKEN) as made:
    status, answer = ask(made, messages=MESSAGES)
    assert (status, answer['error']['code']) == (404, 'not_found')

"""The page of the service, in a browser without a screen."""

import re
import shutil

import pytest

from lm.inference import detokenizer, engine
from lm.inference import service as service_lib
from tests.inference import serve_test

gate = serve_test.gate
FAILED = 'Failed to load resource'  # the browser's word for 401 and the like


@pytest.fixture(scope='module')
def browser():
  """A headless Chromium."""
  api = pytest.importorskip('playwright.sync_api', reason='no playwright')
  path = shutil.which('chromium') or shutil.which('chromium-browser')
  if path is None:
    pytest.skip('no chromium here: apt-get install chromium')
  with api.sync_playwright() as playwright:
    # Its sandbox needs a user other than root.
    made = playwright.chromium.launch(
      executable_path=path, args=['--no-sandbox']
    )
    yield made
    made.close()


@pytest.fixture(scope='module')
def service(trained):
  with service_lib.serving(trained, token=serve_test.TOKEN) as made:
    yield made


@pytest.fixture
def window(browser):
  """Opens pages; no complaint of the browser is let pass."""
  said, context = [], browser.new_context()
  context.on('console', lambda message: said.append(message.text))
  context.on('weberror', lambda error: said.append(str(error.error)))
  context.set_default_timeout(60_000)
  yield context
  context.close()
  assert [text for text in said if FAILED not in text] == []


@pytest.fixture
def page(window, service):
  """The page as the address that the program prints opens it."""
  page = window.new_page()
  page.goto(f'{service.address}#token={serve_test.TOKEN}')
  page.get_by_text('run', exact=True).wait_for()
  page.get_by_label('Max tokens').fill('8')
  page.get_by_label('Temperature').fill('0')
  page.get_by_label('Prompt').fill('the ')
  return page


def choice_of(service):
  how = {'prompt': 'the ', 'max_tokens': 8, 'temperature': 0, 'logprobs': 5}
  (choice,) = serve_test.ask(service, **how)[1]['choices']
  return choice


def test_it_shows_a_text_and_its_probabilities(service, page):
  choice = choice_of(service)
  page.get_by_role('button', name='Generate').press('Enter')
  page.get_by_text(re.compile('(ended|full length): 8 tokens')).wait_for()
  tokens = page.locator('#text .token')
  assert tokens.all_text_contents() == list(choice['text'])
  assert page.locator('#text').text_content() == 'the ' + choice['text']
  # one stop for Tab; arrows go on from there, and tell of the next token
  assert page.locator('#text [tabindex="0"]').count() == 1
  tokens.nth(0).focus()
  page.keyboard.press('End')
  page.keyboard.press('ArrowLeft')
  assert tokens.nth(6).evaluate('x => x === document.activeElement')
  want = choice['logprobs']['top_logprobs'][6]
  rows = page.locator('#best tr').all_text_contents()
  assert len(rows) == len(want) == 5
  names = sorted(want, key=lambda name: -want[name])
  assert [row[0] for row in rows] == [x.replace(' ', '\u2423') for x in names]
  assert all(row.endswith(' %') for row in rows)
  # and so does the mouse
  before = page.locator('#detail').text_content()
  tokens.nth(1).hover()
  assert page.locator('#detail').text_content() != before

  # likelier tokens have less color, and the box takes it away
  def color(n):
    return tokens.nth(n).evaluate('x => getComputedStyle(x).backgroundColor')

  costs = choice['logprobs']['token_logprobs']
  assert color(costs.index(max(costs))) != color(costs.index(min(costs)))
  page.get_by_label('Color by probability').uncheck()
  assert color(0) == color(1) == 'rgba(0, 0, 0, 0)'


def test_its_token_stays_out_of_addresses(service, page):
  asked = []
  page.on('request', lambda request: asked.append(request.url))
  page.get_by_label('Prompt').press('Control+Enter')
  page.get_by_text('8 tokens').wait_for()
  assert page.url == service.address
  page.reload()  # and is still known
  page.get_by_text('run', exact=True).wait_for()
  # nor is anything asked of others
  assert {url.removeprefix(service.address) for url in asked} == {
    '',
    'v1/models',
    'v1/completions',
  }


def test_it_stops_a_text(page, gate):
  page.get_by_role('button', name='Generate').click()
  page.locator('.token').first.wait_for(state='attached')
  assert page.get_by_role('button', name='Generate').is_disabled()
  page.get_by_role('button', name='Stop').click()
  page.get_by_text(re.compile('stopped: [12] tokens')).wait_for()
  assert page.locator('#error').is_hidden()
  assert page.get_by_role('button', name='Generate').is_enabled()
  passes, _ = gate
  passes.release(1000)


def test_it_tells_errors(page):
  page.get_by_label('Prompt').fill('the quick brown fox')
  page.get_by_role('button', name='Generate').click()
  alert = page.get_by_role('alert')
  alert.get_by_text('are more than the 16 of the model').wait_for()
  page.get_by_label('Top p').fill('2')  # is not even sent
  page.get_by_role('button', name='Generate').click()
  assert page.locator('#top_p').evaluate('x => !x.checkValidity()')


def test_markup_is_text(page, monkeypatch):
  bad = '<img src=x onerror="document.title=1"><script>alert(1)</script>'

  def stream(*arguments, **settings):
    token = detokenizer.Token(bad, 0, bad, -0.5, {bad: -0.5, '</td>': -1.0})
    yield [engine.Delta(0, [token], 'length')]

  monkeypatch.setattr(engine, 'stream', stream)
  page.get_by_label('Prompt').fill('<b>x')
  page.get_by_role('button', name='Generate').click()
  page.get_by_text('full length').wait_for()
  assert page.locator('#text').text_content() == '<b>x' + bad
  page.locator('.token').focus()
  assert page.locator('#best td').all_text_contents()[0].startswith('<img')
  assert page.locator('main img, main script, main b').count() == 0
  assert page.title() == 'lm: run'


def test_parts_of_a_character_are_shown_as_one(page, monkeypatch):
  def stream(*arguments, **settings):
    half = detokenizer.Token('', 0, '\ufffd', -1.0, {'\ufffd': -1.0})
    rest = half._replace(text='\U0001f600', logprob=-2.0)
    last = half._replace(
      text='\n', offset=1, name='\n', top_logprobs={'\n': -0.1}
    )
    yield [engine.Delta(0, [half], None)]
    yield [engine.Delta(0, [rest, last], None)]
    yield [engine.Delta(0, [half._replace(name='<eos>')], 'stop')]

  monkeypatch.setattr(engine, 'stream', stream)
  page.get_by_role('button', name='Generate').click()
  page.get_by_text('ended: 4 tokens').wait_for()
  tokens = page.locator('.token')
  assert tokens.all_text_contents() == ['\U0001f600', '\n', '']
  tokens.nth(0).focus()
  page.get_by_text('4.98 %, 4.33 bits, in 2 tokens').wait_for()


def test_it_asks_for_a_token(window, service):
  page = window.new_page()
  page.goto(service.address)
  page.get_by_role('alert').get_by_text('with the token of this').wait_for()
  page.get_by_label('Access token').fill(serve_test.TOKEN)
  page.get_by_label('Max tokens').fill('2')
  page.get_by_role('button', name='Generate').click()
  page.get_by_text('2 tokens').wait_for()
  assert page.get_by_label('Access token').is_hidden()
  assert page.locator('#model').text_content() == 'run'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_can_be_read(window, service, scheme):
  page = window.new_page()
  page.emulate_media(color_scheme=scheme)
  page.goto(f'{service.address}#token={serve_test.TOKEN}')
  lights = page.evaluate(LIGHTS)
  assert len(lights) > 8
  for name, (front, back) in lights.items():
    high, low = max(front, back), min(front, back)
    assert (high + 0.05) / (low + 0.05) >= 4.5, name  # WCAG 2.2, 1.4.3
    assert (front > back) == (scheme == 'dark') or name == 'Generate'
  assert page.evaluate(
    "[...document.querySelectorAll('input, textarea')].every(x => x.labels[0])"
  )


# The relative luminance of texts and of what is behind them.
LIGHTS = """() => {
  const light = rgb => rgb.map(x => x / 255)
    .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, n) => sum + x * [.2126, .7152, .0722][n], 0);
  const numbers = color => color.match(/[0-9.]+/g).map(Number);
  const found = {};
  for (const x of document.querySelectorAll(
      'h1, label, kbd, button:enabled, textarea, input, #name, #hint')) {
    let back = x;
    while (numbers(getComputedStyle(back).backgroundColor)[3] === 0)
      back = back.parentElement;
    found[x.id || x.textContent.trim()] = [getComputedStyle(x).color,
      getComputedStyle(back).backgroundColor].map(
        color => light(numbers(color).slice(0, 3)));
  }
  return found;
}"""


def test_its_policy_allows_nothing_else(service):
  _, headers, _ = serve_test.call(service, 'GET', '/', Authorization=None)
  policy = headers['Content-Security-Policy']
  assert policy.startswith("default-src 'none'; script-src 'sha256-")
  assert 'unsafe' not in policy and '*' not in policy
  assert headers['X-Content-Type-Options'] == 'nosniff'
  assert headers['Referrer-Policy'] == 'no-referrer'

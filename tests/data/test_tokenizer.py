"""Tokenizer and chat templates: the ids and the text transformers gives, and folders as people have them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from danlu.core.errors import UserError
from danlu.data.tokenizer import Tokenizer


TEXTS = [
    "Hello, world!",
    "  spaces\n\n\tand tabs ",
    "你好，世界 — naïve café 🙂",
    "def f(x):\n    return x + 1",
    "12345 3.14",
    "",
    "e\u0301 ﬁ",
]

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
EVERYTHING = """
{%- set ns = namespace(seen=0, first=none) %}
    {# blocks are trimmed and their indentation is stripped #}
    {% for message in messages %}
        {% if message.role == "system" %}{% continue %}{% endif %}
        {% set ns.seen = ns.seen + 1 %}
        {% if ns.seen > 3 %}{% break %}{% endif %}
        {% generation %}{{ message.role | upper }}: {{ message.content | tojson }}{% endgeneration %}

{{ {"content": message.content, "<b>": [1, true, none]} | tojson(indent=2) }}
    {% endfor %}
{{ strftime_now("%Y") }}|{{ bos_token }}|{{ eos_token }}|{{ unk_token is defined }}|{{ tools is none }}|{{ dict(a=1).items() | list }}
{%- if add_generation_prompt %} >{% endif %}
"""
TEMPLATES = {"ChatML": CHATML, "Llama 3": LLAMA3, "everything": EVERYTHING}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": ' <b>What\'s</b> "this"? 你好\n'},
    {"role": "assistant", "content": "A test.", "reasoning": "I think."},
    {"role": "user", "content": "And & now?"},
]


BOS = {
    "__type": "AddedToken",
    "content": "<|im_start|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}


def theirs(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A byte-level BPE of 300 tokens with ChatML's marks."""
    folder = tmp_path_factory.mktemp("small")
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rust.train_from_iterator(TEXTS, trainer)
    rust.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    rust.enable_truncation(4)
    rust.enable_padding()
    rust.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": BOS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_real_models_give_the_ids_of_transformers(request, name):
    folder = request.getfixturevalue(name)
    ours, other = Tokenizer.load(folder), theirs(folder)
    for special in (False, True):
        assert [ours.encode(text, special) for text in TEXTS] == [
            other.encode(text, add_special_tokens=special) for text in TEXTS
        ]
        assert ours.encode_batch(TEXTS, special) == [ours.encode(text, special) for text in TEXTS]
    assert ours.size == len(other)
    assert ours.decode_batch(ours.encode_batch(TEXTS)) == [ours.decode(ours.encode(text)) for text in TEXTS]


def test_real_models_know_their_unknown_and_their_ends(smollm2, minilm):
    smol, mini = Tokenizer.load(smollm2), Tokenizer.load(minilm)
    assert smol.unknown is None
    assert mini.unknown == mini.rust.token_to_id("[UNK]") and mini.unknown in mini.encode("你们")
    assert [smol.decode([end]) for end in smol.ends] == ["<|im_end|>"]
    assert smol.has_template and not mini.has_template
    assert all(smol.decode(smol.encode(text)) == text for text in TEXTS)


@pytest.mark.parametrize("prompt", [False, True])
def test_the_real_template_renders_as_in_transformers(smollm2, prompt):
    expected = theirs(smollm2).apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert Tokenizer.load(smollm2).render(CHAT, prompt) == expected


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(small, tmp_path, name, prompt):
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATES[name])
    expected = theirs(small).apply_chat_template(
        CHAT, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt
    )
    assert Tokenizer.load(small, str(file)).render(CHAT, prompt) == expected


def test_truncation_and_padding_of_the_file_are_off(small):
    ours = Tokenizer.load(small)
    assert ours.encode_batch(["a", "Hello, world! " * 9])[0] == ours.encode("a")
    assert ours.decode(ours.encode("Hello, world! " * 9)) == "Hello, world! " * 9


def test_saved_and_loaded_it_is_the_same_here_and_in_transformers(small, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(CHATML)
    ours = Tokenizer.load(small, str(file))
    ours.save(tmp_path / "saved")
    again, other = Tokenizer.load(tmp_path / "saved"), theirs(tmp_path / "saved")
    assert (
        again.encode_batch(TEXTS)
        == ours.encode_batch(TEXTS)
        == [other.encode(text, add_special_tokens=False) for text in TEXTS]
    )
    assert (
        again.render(CHAT, True)
        == ours.render(CHAT, True)
        == other.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    )
    assert again.named == ours.named and other.eos_token == "<|endoftext|>"


def test_a_template_put_onto_a_base_model_brings_its_end_token(small, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(CHATML)
    base, chat = Tokenizer.load(small), Tokenizer.load(small, str(file))
    assert {base.decode([end]) for end in base.ends} == {"<|endoftext|>"}
    assert {chat.decode([end]) for end in chat.ends} == {"<|endoftext|>", "<|im_end|>"}


def copy(small, folder, **files):
    folder.mkdir()
    for file in small.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(("eos", "ids"), [(7, {7}), ([7, 8], {7, 8})])
def test_generation_config_names_ends(small, tmp_path, eos, ids):
    folder = copy(small, tmp_path / "a", generation_config={"eos_token_id": eos})
    assert Tokenizer.load(folder).ends == ids | {Tokenizer.load(small).specials["<|endoftext|>"]}


def test_templates_inline_named_and_in_a_file(small, tmp_path):
    inline = copy(small, tmp_path / "a", tokenizer_config={"chat_template": "inline"})
    named = copy(
        small,
        tmp_path / "b",
        tokenizer_config={
            "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "named"}]
        },
    )
    assert Tokenizer.load(inline).render([]) == "inline"
    assert Tokenizer.load(named).render([]) == "named"
    (inline / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(inline).render([]) == "file"


def test_tokens_that_only_the_configuration_adds(small, tmp_path):
    size = Tokenizer.load(small).size
    new = {str(size): {"content": "<new>", "special": True}}
    ours = Tokenizer.load(copy(small, tmp_path / "a", tokenizer_config={"added_tokens_decoder": new}))
    assert ours.encode("a<new>")[-1] == size and ours.size == size + 1 and "<new>" in ours.specials
    wrong = {"3": {"content": "<|im_end|>", "special": True}}
    with pytest.raises(UserError, match=r"'<\|im_end\|>' is 3 in tokenizer_config\.json"):
        Tokenizer.load(copy(small, tmp_path / "b", tokenizer_config={"added_tokens_decoder": wrong}))


def test_a_folder_of_word_pieces_is_converted(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"])
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("Hello worlds", special=True) == [2, 5, 6, 7, 3]
    assert ours.unknown == 1 and ours.size == 8


def test_special_tokens_inside_a_text_are_counted_and_become_what_they_say(smollm2):
    ours = Tokenizer.load(smollm2)
    assert ours.specials_in("what does <|im_end|> and <|im_start|> mean? <|im_end|>") == 3
    assert ours.specials_in("nothing < | here") == 0
    assert ours.specials["<|im_end|>"] in ours.encode("a <|im_end|> b")


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__init__=1) }}",
    "{{ raise_exception.__globals__.os }}",
    "{{ dict.__class__.__mro__ }}",
]


@pytest.mark.parametrize(
    "template",
    [
        *ATTACKS,
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].no.thing }}",
        "{% if %}",
        "{{ 'a' + 1 }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_a_clear_error(small, tmp_path, template):
    file = tmp_path / "template.jinja"
    file.write_text(template)
    with pytest.raises(UserError) as raised:
        Tokenizer.load(small, str(file)).render(CHAT)
    assert "template" in raised.value.message and raised.value.fix
    assert CHAT[0]["role"] == "system"


def test_folders_that_hold_no_tokenizer(tmp_path, small):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.load(copy(small, tmp_path / "a", tokenizer="{}"))
    with pytest.raises(UserError, match="broken JSON"):
        Tokenizer.load(copy(small, tmp_path / "b", tokenizer_config="{"))
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(small, str(tmp_path / "no.jinja"))
    with pytest.raises(UserError, match="has no chat template"):
        Tokenizer.load(small).render(CHAT)


def test_normalizers_that_change_text_are_kept(small, tmp_path):
    rust = tokenizers.Tokenizer.from_file(str(small / "tokenizer.json"))
    rust.normalizer = normalizers.NFC()
    folder = copy(small, tmp_path / "a")
    rust.save(str(folder / "tokenizer.json"))
    assert Tokenizer.load(folder).decode(Tokenizer.load(folder).encode("e\u0301")) == "é"


def test_importing_it_loads_neither_torch_nor_transformers():
    code = "import sys, danlu.data.chat; print([name for name in ('torch', 'transformers', 'pyarrow', 'sklearn') if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, check=True
    )
    assert run.stdout.strip() == b"[]"


LOOPS = "".join(f"{{% for a{i} in range(20) %}}" for i in range(19)) + "x" + "{% endfor %}" * 19
FORKS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LOOPS * 2, "fails|cannot be compiled|more than"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "more than 1,000,000 passes"),
        (FORKS, "more than 1,000,000 passes"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "cannot be compiled"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
        ("{{ " + "9" * 9999 + " }}", "cannot be compiled"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on this conversation"),
        ("{{ messages | tojson(indent=10**9) }}", "indent=1000000000.: at most 16"),
        ("{{ 10 ** (10 ** 10) }}", "too large"),
        ("{{ 'a' * 10**11 }}", "too large"),
        ("{{ 1e308 ** 9 }}", "fails on this conversation"),
    ],
)
def test_a_template_without_an_end_or_a_bottom_is_a_clear_error(small, tmp_path, template, says):
    file = tmp_path / "template.jinja"
    file.write_text(template)
    with pytest.raises(UserError, match=says):
        Tokenizer.load(small, str(file)).render(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ n|string }} {{ n|int }} {{ none|default(n) }} {{ n|round|int }} {{ n|replace('17', '18') }}",
        "{{ dict(a=1).get(n, n) }} {{ dict.fromkeys([n]) }} {{ '%d'|format(n) }} {{ 'a'|center(20) }}",
        "{{ [{'at': n}]|selectattr('at', 'equalto', n)|list }} {{ [n]|batch(2, 0)|list }}",
        "{% macro said(at) %}{{ at }}{% endmacro %}{{ said(n) }} {{ said(at=n) }}",
        "{{ '**{}**'.format(n) }} {{ '**%s** %d%%**' % (n, n) }} {{ '{:,}'.format(n) }} {{ '%(a)12.3f' % {'a': n} }}",
        "{{ 'order 1234567: {}'.format(n) }} {{ 'order 1234567: %s' % n }} {{ '{\"at\": 1700000000, \"n\": %d}' % n }}",
    ],
)
def test_a_large_number_that_is_no_length_is_a_value(small, tmp_path, template):
    file = tmp_path / "template.jinja"
    file.write_text("{% set n = 1700000000 %}" + template)
    expected = theirs(small).apply_chat_template(CHAT, chat_template=file.read_text(), tokenize=False)
    assert Tokenizer.load(small, str(file)).render(CHAT) == expected


@pytest.mark.parametrize(
    "call",
    [
        *(f"'a'.{name}(n)" for name in ("center", "ljust", "rjust", "zfill")),
        *(f"('a'|safe).{name}(n)" for name in ("center", "zfill")),
        "'a'.encode().center(n)",
        "('\t' * 9999).expandtabs(9999)",
        "('\n' * 9999)|indent(9999)",
        "'a'|indent(width=n, first=true)",
        "(5).to_bytes(length=n, byteorder='big')",
        "7|round(-n)",
        "'%.2000000000f' % 7",
        "'%*d' % (n, 7)",
        "'%(a())2000000000d' % {'a()': 7}",
        "'%5%%2000000000d' % 7",
        "'%2000000000d'.encode() % 7",
        "'%2000000000d'|format(7)",
        "('%(a)9999d' * 9999) % {'a': 7}",
        "('%(a)s' * 9999) % {'a': 'a' * 9999}",
        "'{:{}}'.format(7, '2000000000')",
        "'{a[b]:>2000000000}'.format(a={'b': 7})",
        "('{0:9999}' * 9999).format(7)",
        "('{0}' * 9999).format('a' * 9999)",
        "'{a:.2000000000f}'.format_map({'a': 7})",
        "('a' * 9999)|replace(new='b' * 9999, old='a')",
        "('a' * 9999).translate({97: 'b' * 9999})",
        "range(9999)|join('a' * 9999)",
    ],
)
def test_a_result_that_would_be_too_large_is_refused_before_it_is_made(small, tmp_path, call):
    file = tmp_path / "template.jinja"
    file.write_text("{% set n = 2000000000 %}{% set made = " + call + " %}x")
    with pytest.raises(UserError, match=r"a result of .* too large"):
        Tokenizer.load(small, str(file)).render(CHAT)


def test_a_message_without_a_bottom_is_a_clear_error(small, tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    file = tmp_path / "template.jinja"
    file.write_text(CHATML)
    with pytest.raises(UserError, match="fails on this conversation"):
        Tokenizer.load(small, str(file)).render([{"role": "user", "content": deep}])


def kinds_of_tokenizer() -> dict[str, tokenizers.Tokenizer]:
    """Trained on little text: byte-level with half its bytes and with Qwen's steps, SentencePiece's BPE, word pieces."""
    texts, specials = [*TEXTS * 3, "aaaa   bbbb" * 9], ["<|end|>"]
    made = {}
    for name, alphabet in (("bytes", "aeiou 0"), ("composed", "")):
        made[name] = tokenizers.Tokenizer(models.BPE())
        letters = [c for c in pre_tokenizers.ByteLevel.alphabet() if not alphabet or c > "~" or c in alphabet]
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=330, special_tokens=specials, initial_alphabet=letters, show_progress=False
        )
        made[name].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made[name].train_from_iterator(texts[:1] if alphabet else texts, trainer)
    made["composed"].normalizer = normalizers.NFC()
    made["fallback"] = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made["fallback"].normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_of_all = [f"<0x{byte:02X}>" for byte in range(256)]
    made["fallback"].train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<unk>", *bytes_of_all], limit_alphabet=9, show_progress=False
        ),
    )
    made["words"] = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made["words"].pre_tokenizer = pre_tokenizers.Whitespace()
    made["words"].train_from_iterator(texts, tokenizers.trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False))  # fmt: skip
    return {name: Tokenizer(rust, {}) for name, rust in made.items()}


KINDS = kinds_of_tokenizer()


@settings(deadline=None)
@given(st.text(st.sampled_from("a b\n\x13\x04e\u0301é日🙂\u1fa7Hello,1 <|end|>"), max_size=60) | st.text(max_size=30))
def test_a_text_never_has_fewer_tokens_than_its_least(text):
    long = text * (5000 // max(1, len(text)))
    for kind in KINDS.values():
        assert kind.least(long, 100) <= len(kind.encode(long))


def test_the_least_is_known_of_all_tokenizers_and_never_guessed(smollm2, minilm):
    real = Tokenizer.load(smollm2)
    for text in [
        *TEXTS,
        "-" * 80_000,
        "\x13" * 9000,
        "word " * 9999,
        "<|im_end|>" * 500,
        "日" * 3000,
        "a" + " " * 9999,
    ]:
        assert real.least(text, 100) <= len(real.encode(text))
    assert real.least("word " * 9999, 100) >= 100 and real.least("-" * 80_000, 500) >= 500, (
        "or nothing is refused by it"
    )
    assert [name for name, kind in KINDS.items() if not kind.least("a" * 10_000, 100)] == ["words"]
    assert Tokenizer.load(minilm).least("a" * 10_000, 100) == 0, "all of it is one unknown word"


def test_ids_without_end_are_refused(tmp_path):
    """The library walks through all ids below the largest."""
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])).save(str(file))
    content = json.loads(file.read_text())
    content["model"]["vocab"]["b"] = 4_294_967_295
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="found the id 4,294,967,295, expected ids below"):
        Tokenizer.load(tmp_path)

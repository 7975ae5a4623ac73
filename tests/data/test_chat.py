"""What is learned of a conversation: every assistant turn with its end token, behind the text it will stand behind in use."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from danlu.core.errors import UserError
from danlu.data.chat import Taught, conversation, recognise, teach_all
from danlu.data.source import Row, read
from danlu.data.tokenizer import Tokenizer


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
# As Qwen3's: what was thought is written for the answers behind the last question, and left out of the ones before it.
THINKING = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- set said = m.content %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + said + '<|im_end|>\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def byte_level():
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.train_from_iterator(["Hello world, how are you? <think>"] * 3, tokenizers.trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    return rust


def tokenizer(template=CHATML, rust=None):
    rust = rust or byte_level()
    rust.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"])
    return Tokenizer(rust, {"eos_token": "<|endoftext|>"}, template=template)


def turns(*contents, system=None):
    """user, assistant, user, …"""
    made = [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *made] if system else made


def teach(messages, tok):
    """One conversation; its error is raised."""
    (result,) = teach_all([messages], tok)
    if isinstance(result, UserError):
        raise result
    return result


def learned(example, tok):
    """The learned stretches, as text."""
    found, last = [], False
    for number, flag in zip(example.ids, example.learned, strict=True):
        if flag and not last:
            found.append([])
        if flag:
            found[-1].append(number)
        last = flag
    return [tok.decode(ids) for ids in found]


# ------------------------------------------------------------------------------------------------------------- learning


def test_all_answers_with_their_end_token_and_nothing_else():
    tok = tokenizer()
    messages = turns("Hi", "Hello.", "How are you?", "Well!", system="Be kind.")
    (example,) = teach(messages, tok)
    assert learned(example, tok) == ["Hello.<|im_end|>", "Well!<|im_end|>"]
    assert tok.decode(example.ids) == tok.render(messages)
    assert (example.turns, example.dropped) == (2, 0)


def test_the_real_template_and_tokenizer(smollm2):
    tok = Tokenizer.load(smollm2)
    messages = turns("What is 2 + 2?", "4", "And in words?", "Four.\n\nReally.")
    (example,) = teach(messages, tok)
    assert learned(example, tok) == ["4<|im_end|>", "Four.\n\nReally.<|im_end|>"]
    assert example.ids == tok.encode(tok.render(messages))
    # The prompt's tokens are those the model is given in use.
    prompt = tok.encode(tok.render(messages[:1], generation_prompt=True))
    assert example.ids[: len(prompt)] == prompt and example.learned[: len(prompt) + 1] == [False] * len(prompt) + [True]


def test_an_answer_that_starts_with_white_space_stands_behind_the_prompt_as_in_use(smollm2):
    tok = Tokenizer.load(smollm2)
    (example,) = teach(turns("Hi", "\n\n  indented"), tok)
    prompt = tok.encode(tok.render(turns("Hi"), generation_prompt=True))
    assert example.ids[: len(prompt)] == prompt and not any(example.learned[: len(prompt)])
    assert learned(example, tok) == ["\n\n  indented<|im_end|>"]


def test_a_template_that_rewrites_history_gives_an_example_for_each_rewritten_turn():
    tok = tokenizer(THINKING)
    messages = turns("Hi", "<think>\nA greeting.\n</think>\n\nHello.", "Bye", "See you.")
    first, whole = teach(messages, tok)
    assert learned(first, tok) == ["<think>\nA greeting.\n</think>\n\nHello.<|im_end|>"]
    assert tok.decode(first.ids) == tok.render(messages[:2])
    assert learned(whole, tok) == ["<think>\n\n</think>\n\nSee you.<|im_end|>"]
    assert tok.decode(whole.ids) == tok.render(messages)
    assert "greeting" not in tok.decode(whole.ids)
    assert [first.turns, whole.turns] == [1, 1]


def test_each_turn_is_learned_exactly_once_behind_what_is_seen_in_use():
    tok = tokenizer(THINKING)
    # Two answers behind one question are not rewritten, so they stay together.
    messages = [*turns("Hi", "Hello.", "Look it up"), {"role": "assistant", "content": "Looking."}, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "42."}]  # fmt: skip
    examples = teach(messages, tok)
    assert [learned(example, tok) for example in examples] == [
        ["<think>\n\n</think>\n\nHello.<|im_end|>"],
        ["<think>\n\n</think>\n\nLooking.<|im_end|>", "<think>\n\n</think>\n\n42.<|im_end|>"],
    ]


def test_messages_behind_the_last_answer_are_left_out_and_counted():
    tok = tokenizer()
    (example,) = teach(turns("Hi", "Hello.", "And?"), tok)
    assert tok.decode(example.ids) == tok.render(turns("Hi", "Hello."))
    assert example.dropped == 1


def test_turns_marked_as_context_and_empty_answers_are_not_learned():
    tok = tokenizer()
    messages = turns("a", "A", "b", "B", "c", " ", "d", "D")
    messages[1]["learn"] = False
    (example,) = teach(messages, tok)
    assert learned(example, tok) == ["B<|im_end|>", "D<|im_end|>"]
    assert "learn" not in tok.decode(example.ids)
    assert teach(turns("a", ""), tok) == []


def test_text_behind_the_end_token_is_not_learned():
    """As Phi-3's: a conversation that is not continued ends in one more token."""
    tok = tokenizer(CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}")
    (example,) = teach(turns("a", "A", "b", "B"), tok)
    assert learned(example, tok) == ["A<|im_end|>", "B<|im_end|>"]
    assert tok.decode(example.ids).endswith("<|im_end|>\n<|endoftext|>")


def test_an_end_token_written_inside_an_answer_does_not_end_it():
    tok = tokenizer()
    (example,) = teach(turns("a", "It is <|im_end|> there."), tok)
    assert learned(example, tok) == ["It is <|im_end|> there.<|im_end|>"]


def test_tool_calls_are_learned_up_to_the_end_of_the_turn():
    tok = tokenizer("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}{{ '<|user|>' + c.name + '<|user|>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")  # fmt: skip
    messages = [*turns("a"), {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}, {"role": "tool", "content": "9"}, {"role": "assistant", "content": "Nine."}]  # fmt: skip
    (example,) = teach(messages, tok)
    assert learned(example, tok) == ["<|user|>clock<|user|><|im_end|>", "Nine.<|im_end|>"]


REFUSED = {
    "no end token": (CHATML.replace("+ '<|im_end|>'", ""), "would never learn to stop"),
    "answer left out": (CHATML.replace("m['content']", "m['role']"), "does not write the answer as it is"),
    "prompt and answer part": (
        CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif"),
        "writes '<think>",
    ),
    "refuses": ("{{ raise_exception('no chat today') }}", "no chat today"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_would_teach_something_else_is_an_error(name):
    template, message = REFUSED[name]
    with pytest.raises(UserError) as raised:
        teach(turns("Hi", "Hello."), tokenizer(template))
    assert message in raised.value.message + raised.value.fix and raised.value.fix


def test_one_conversation_that_fails_does_not_stop_the_others():
    tok = tokenizer("{% if messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    results = teach_all([turns("a", "A"), turns("no", "B"), turns("c", "C")] * 300, tok)
    assert len(results) == 900
    assert all(isinstance(result, UserError) == (number % 3 == 1) for number, result in enumerate(results))
    assert results[-1] == teach(turns("c", "C"), tok)


# Tokenizers that do not give every text back as it was.


def test_a_tokenizer_that_normalises_text():
    rust = byte_level()
    rust.normalizer = normalizers.NFC()
    tok = tokenizer(rust=rust)
    (example,) = teach(turns("a", "cafe\u0301"), tok)
    assert learned(example, tok) == ["café<|im_end|>"]


def sentencepiece(first):
    vocabulary = {"<unk>": 0, "▁": 1, **{chr(code): code for code in range(33, 127)}}
    rust = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first)
    rust.decoder = decoders.Metaspace(prepend_scheme=first)
    return rust


@pytest.mark.parametrize("first", ["always", "first", "never"])
def test_a_tokenizer_that_marks_the_start_of_a_text(first):
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    tok = tokenizer(template, sentencepiece(first))
    (example,) = teach(turns("one two", "three four", "five", "six"), tok)
    assert [text.strip() for text in learned(example, tok)] == ["three four<|im_end|>", "six<|im_end|>"]
    assert example.ids == tok.encode(tok.render(turns("one two", "three four", "five", "six")))


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)


@given(contents=st.lists(TEXT, min_size=2, max_size=7), template=st.sampled_from([CHATML, THINKING]))
@settings(deadline=None, max_examples=150)
def test_whatever_is_said_every_answer_is_learned_once_and_the_text_is_whole(contents, template):
    tok = TOKENIZERS[template]
    messages = turns(*contents)
    examples = teach(messages, tok)
    answers = [content for content in contents[1::2] if content.strip()]
    assert sum(example.turns for example in examples) == len(answers)
    spoken = [text for example in examples for text in learned(example, tok)]
    assert len(spoken) == len(answers)
    for text, answer in zip(spoken, answers, strict=True):
        assert text.endswith("<|im_end|>") and answer.strip("\n") in text
    for example in examples:
        assert len(example.ids) == len(example.learned)


TOKENIZERS = {template: tokenizer(template) for template in (CHATML, THINKING)}


# ---------------------------------------------------------------------------------------------------------------- forms

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
FORMS = {
    "messages": ({"messages": MESSAGES}, "messages"),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                MESSAGES[1],
            ]
        },
        "messages",
    ),
    "written as JSON": ({"messages": json.dumps(MESSAGES)}, "messages"),
    "another name": ({"conversations": MESSAGES}, "messages"),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, "ShareGPT"),
    "prompt/completion": ({"prompt": "Hi", "completion": "Hello."}, "prompt/completion"),
    "prompt/response": ({"prompt": "Hi", "response": "Hello."}, "prompt/completion"),
    "question/answer": ({"id": 7, "question": "Hi", "answer": "Hello."}, "prompt/completion"),
    "Alpaca": ({"instruction": "Hi", "input": "", "output": "Hello."}, "prompt/completion"),
    "lists": ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt/completion"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_recognised_and_gives_the_same_messages(name):
    row, form = FORMS[name]
    source = read([row])
    assert recognise(source) == form
    assert conversation(source.rows[0], form) == MESSAGES


def test_columns_a_person_names():
    source = read([{"en": "Hi", "de": "Hallo"}])
    assert recognise(source, ("en", "de")) == "prompt/completion"
    assert conversation(source.rows[0], "prompt/completion", columns=("en", "de"))[1] == {
        "role": "assistant",
        "content": "Hallo",
    }
    with pytest.raises(UserError, match=r"no column 'dee' \(label=dee\)"):
        recognise(source, ("en", "dee"))
    with pytest.raises(UserError, match="it has 'en', 'de'") as raised:
        recognise(source)
    assert raised.value.fix == "name the pair of columns: text=PROMPT label=ANSWER"


def test_what_the_instruction_is_about_follows_it():
    row = Row(1, {"instruction": "Translate.", "input": "Hallo", "output": "Hello"})
    assert conversation(row, "prompt/completion")[0]["content"] == "Translate.\n\nHallo"


def test_a_system_message_is_put_before_rows_that_have_none():
    system = {"role": "system", "content": "Be kind."}
    assert conversation(Row(1, {"messages": MESSAGES}), "messages", "Be kind.") == [system, *MESSAGES]
    assert conversation(Row(1, {"messages": [system, *MESSAGES]}), "messages", "Be rude.") == [system, *MESSAGES]
    assert conversation(
        Row(1, {"system": "Be kind.", "prompt": "Hi", "completion": "Hello."}), "prompt/completion", "Be rude."
    ) == [system, *MESSAGES]


def test_marks_of_what_is_not_learned():
    messages = [*MESSAGES, *MESSAGES, *MESSAGES]
    marked = [dict(message) for message in messages]
    marked[1]["weight"], marked[3]["train"], marked[5]["weight"] = 0, False, 1
    found = conversation(Row(1, {"messages": marked}), "messages")
    assert [message.get("learn", True) for message in found[1::2]] == [False, False, True]
    assert all("weight" not in message and "train" not in message for message in found)


def chat(*messages):
    return {"messages": list(messages)}


USER, ANSWER = MESSAGES
TROUBLES = [
    (chat(USER, {"role": "asistant", "content": "a"}), "messages", "messages[1].role: found \"asistant\", expected one of system"),
    (chat(USER, {"role": "assistant"}), "messages", "messages[1].content: found nothing, expected text"),
    (chat(USER, {"role": "assistant", "content": 7}), "messages", "messages[1].content: found 7, expected text"),
    (chat(USER, {"content": "a"}), "messages", "messages[1].role: found null"),
    (chat({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER), "messages", "a part that is not text (image_url)"),
    (chat(USER, "Hello"), "messages", "messages[1]: found \"Hello\", expected an object"),
    (chat(), "messages", "an empty conversation"),
    (chat(USER), "messages", "nothing to learn: no assistant turn"),
    (chat(USER, ANSWER | {"content": " "}), "messages", "nothing to learn: its 1 assistant turns are empty"),
    (chat(USER, ANSWER | {"weight": 0}), "messages", "marked as not to be learned"),
    (chat(USER, ANSWER | {"weight": 0.5}), "messages", "messages[1].weight: found 0.5, expected 0"),
    (chat(USER, ANSWER | {"train": "no"}), "messages", "messages[1].train: found \"no\""),
    ({"text": "a"}, "messages", "no column messages or conversations; the row has 'text'"),
    ({"messages": None}, "messages", "messages: found null"),
    ({"messages": "[{"}, "messages", "messages: found \"[{\", expected a list"),
    (chat(USER, ANSWER) | {"tools": [{"name": "clock"}]}, "messages", "found tool definitions"),
    (chat(USER, ANSWER) | {"history": '[["a", "b"]]'}, "messages", "found earlier turns in column 'history'"),
    (chat(USER, ANSWER) | {"system": 7}, "messages", "system: found 7, expected text"),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "ShareGPT", "conversations[0].from: found \"alien\", expected one of human"),
    ({"prompt": "a", "completion": None}, "prompt/completion", "completion: found null, expected text"),
    ({"prompt": " ", "completion": "b"}, "prompt/completion", "prompt: found \" \", expected text"),
    ({"prompt": "a"}, "prompt/completion", "no prompt and completion; the row has 'prompt'"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "form", "message"), TROUBLES)
def test_a_row_that_is_wrong_is_named_with_its_key(values, form, message):
    with pytest.raises(UserError) as raised:
        conversation(Row(17, values, "my.jsonl:"), form)
    assert raised.value.message.startswith("my.jsonl:17: ") and message in raised.value.message
    assert raised.value.fix


@pytest.mark.parametrize("history", ["", " ", "[]", "null", None, []])
def test_an_empty_history_is_none(history):
    assert conversation(Row(17, chat(USER, ANSWER) | {"history": history}, "my.jsonl:"), "messages") == [USER, ANSWER]


def test_taught_is_plain_data():
    assert Taught([1], [True], 1).dropped == 0

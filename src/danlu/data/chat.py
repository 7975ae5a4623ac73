"""Conversations: the form they come in, and which of their tokens are learned.

Learned are all assistant turns including their end token, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from danlu.core.errors import UserError, nearest
from danlu.data.source import Row, Source, column
from danlu.data.tokenizer import Tokenizer


Message: TypeAlias = dict[str, Any]
"""role, content, and `learn: False` on an assistant turn that is shown and not learned."""

ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {  # ShareGPT's, as data sets write them
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
LISTS = ("messages", "conversations", "conversation", "chat", "dialogue")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("instruction", "output"), ("instruction", "response"),
    ("instruction", "completion"), ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"), ("input", "output"),
)  # fmt: skip


@dataclass(frozen=True)
class Taught:
    """One example to learn from.

    ids: the whole rendered conversation.
    learned: for each id whether it is learned.
    turns: assistant turns learned in it.
    dropped: messages behind the last answer, which nothing is learned from and which are left out.
    """

    ids: list[int]
    learned: list[bool]
    turns: int
    dropped: int = 0


# ---------------------------------------------------------------------------------------------------------------- forms


def recognise(source: Source, columns: tuple[str, str] | None = None) -> str:
    """The form the rows are in: `messages`, `prompt/completion` or `ShareGPT`; to be said aloud.

    columns: prompt and completion, when the person named them (`text=` and `label=`).
    """
    names = source.columns
    if columns is not None:
        for name, key in zip(columns, ("text", "label"), strict=True):
            column(source, name, (), key)
        return "prompt/completion"
    for name in LISTS:
        if name in names:
            lists = (_turns(row.values.get(name)) for row in source.rows)
            turn = next((turn for turns in lists if isinstance(turns, list) for turn in turns), None)
            return "ShareGPT" if isinstance(turn, Mapping) and "from" in turn and "role" not in turn else "messages"
    if any(prompt in names and completion in names for prompt, completion in PAIRS):
        return "prompt/completion"
    raise UserError(
        f"{source.name}: no chat found: expected a column `messages` (a list of role and content), `conversations` (ShareGPT), "
        f"or a pair such as prompt and completion; it has {_listed(names)}",
        "name the pair of columns: text=PROMPT label=ANSWER",
    )


def conversation(
    row: Row, form: str, system: str | None = None, columns: tuple[str, str] | None = None, taught: bool = True
) -> list[Message]:
    """One row as messages.

    system: a system message for rows that have none of their own. taught: it must hold an answer to learn from.
    Raises UserError naming row and key: a missing column, an unknown role, content that is not text, nobody to learn from.
    """
    values = row.values
    if values.get("tools"):
        raise UserError(
            f"{row.place}: found tool definitions in column 'tools', which are not learned from",
            "remove the column, or write the tools into the system message",
        )
    history = values.get("history")
    if history and not (isinstance(history, str) and history.strip() in ("", "[]", "null")):  # as CSV has it
        raise UserError(
            f"{row.place}: found earlier turns in column 'history', which are not learned from",
            "write the conversation as `messages`, or remove the column",
        )
    if form == "prompt/completion":
        messages = _pair(row, columns)
    else:
        name = next((name for name in LISTS if name in values), None)
        if name is None:
            raise UserError(
                f"{row.place}: no column {' or '.join(LISTS[:2])}; the row has {_listed(values)}",
                "give it one, or remove the row",
            )
        messages = _messages(row, name, _turns(values[name]), form)
    own = values.get("system", values.get("system_prompt"))
    if own is not None and not isinstance(own, str):
        raise UserError(f"{row.place}: system: found {_short(own)}, expected text", "mend the row")
    system = own or system
    if system and not any(message["role"] in ("system", "developer") for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    if taught and not any(_is_learned(message) for message in messages):
        answers = sum(message["role"] == "assistant" for message in messages)
        found = (
            f"its {answers} assistant turns are empty or marked as not to be learned"
            if answers
            else "no assistant turn"
        )
        raise UserError(f"{row.place}: nothing to learn: {found}", "give it an answer, or remove the row")
    return messages


def _turns(value: Any) -> Any:
    """A list of turns; in CSV it is written as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _messages(row: Row, name: str, turns: Any, form: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        found = "an empty conversation" if turns == [] else _short(turns)
        raise UserError(
            f"{row.place}: {name}: found {found}, expected a list of messages", "mend the row, or remove it"
        )
    speaker, said = ("from", "value") if form == "ShareGPT" else ("role", "content")
    roles = SPEAKERS if form == "ShareGPT" else {role: role for role in ROLES}
    messages = []
    for number, turn in enumerate(turns):
        place = f"{row.place}: {name}[{number}]"
        if not isinstance(turn, Mapping):
            raise UserError(
                f"{place}: found {_short(turn)}, expected an object with {speaker} and {said}",
                "mend the row, or remove it",
            )
        role = turn.get(speaker)
        if not isinstance(role, str) or role.lower() not in roles:
            raise UserError(
                f"{place}.{speaker}: found {_short(role)}, expected one of {', '.join(roles)}",
                nearest(str(role), roles),
            )
        message = {
            key: value
            for key, value in turn.items()
            if key not in (speaker, said, "weight", "train") and value is not None
        }
        message |= {"role": roles[role.lower()], "content": _content(turn, said, place)}
        if not _counts(turn, place):
            message["learn"] = False
        messages.append(message)
    return messages


def _content(turn: Mapping[str, Any], said: str, place: str) -> str | None:
    content = turn.get(said)
    if isinstance(content, str):
        return content
    if content is None and turn.get("tool_calls"):
        return None  # as it came: templates write an empty answer where they find text
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
                kind = part.get("type", "?") if isinstance(part, Mapping) else _short(part)
                raise UserError(
                    f"{place}.{said}: found a part that is not text ({kind})",
                    "only text is learned from here: remove the part or the row",
                )
        return "".join(part["text"] for part in content)
    found = "nothing" if said not in turn else _short(content)
    raise UserError(f"{place}.{said}: found {found}, expected text", "mend the row, or remove it")


def _counts(turn: Mapping[str, Any], place: str) -> bool:
    """OpenAI's `weight: 0` and others' `train: false`: the turn is context only."""
    weight, train = turn.get("weight"), turn.get("train")
    if weight not in (None, 0, 1):
        raise UserError(
            f"{place}.weight: found {_short(weight)}, expected 0 (not learned) or 1 (learned)", "write 0 or 1"
        )
    if train not in (None, True, False):
        raise UserError(f"{place}.train: found {_short(train)}, expected true or false", "write true or false")
    return weight != 0 and train is not False


def _pair(row: Row, columns: tuple[str, str] | None) -> list[Message]:
    pair = columns or next(
        ((prompt, answer) for prompt, answer in PAIRS if prompt in row.values and answer in row.values), None
    )
    if pair is None:
        raise UserError(
            f"{row.place}: no prompt and completion; the row has {_listed(row.values)}", "mend the row, or remove it"
        )
    asked, answered = (row.values.get(name) for name in pair)
    turns = [*(_as_turns(asked, "user")), *(_as_turns(answered, "assistant"))]
    for name, value in zip(pair, (asked, answered), strict=True):
        if not isinstance(value, list) and not (isinstance(value, str) and value.strip()):
            raise UserError(f"{row.place}: {name}: found {_short(value)}, expected text", "mend the row, or remove it")
    messages = _messages(row, "/".join(pair), turns, "messages")
    more = row.values.get("input")
    if pair[0] == "instruction" and isinstance(more, str) and more.strip():  # Alpaca: what the instruction is about
        messages[0]["content"] += f"\n\n{more}"
    return messages


def _as_turns(value: Any, role: str) -> list[Any]:
    """A prompt or a completion may be a list of messages itself."""
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _is_learned(message: Message) -> bool:
    """An empty answer would teach the model to say nothing."""
    return (
        message["role"] == "assistant"
        and message.get("learn", True)
        and bool((message["content"] or "").strip() or message.get("tool_calls"))
    )


# ------------------------------------------------------------------------------------------------------------- learning


@dataclass(frozen=True)
class _Marked:
    """A rendered text and the spans of it that are learned, ascending, as (first character, behind the last)."""

    text: str
    spans: tuple[tuple[int, int], ...]
    dropped: int = 0

    def segments(self) -> Iterator[tuple[str, bool]]:
        place = 0
        for first, behind in self.spans:
            if place < first:
                yield self.text[place:first], False
            yield self.text[first:behind], True
            place = behind
        if place < len(self.text):
            yield self.text[place:], False


def teach_all(conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer) -> list[list[Taught] | UserError]:
    """Each conversation as examples: usually one, more when the template rewrites history. All are tokenized together.

    For each assistant turn the text the model would be given (the turns before it, with the generation prompt) and the
    text up to and including the turn are rendered; what the second adds, up to the end token, is learned. If the whole
    conversation goes on from that text it is a span of it. If not, the template rewrites the turn once another follows
    (Qwen3 leaves out what was thought), and the conversation cut behind the turn is an example of its own: so the model
    learns each turn behind exactly the text it will see.

    Learned and other text are tokenized apart, as in use, where the prompt is tokenized alone.

    A conversation that cannot be taught gives its error in its place, for the caller knows its row and whether bad rows may be
    left out: when the template's generation prompt and its answer disagree, when no end token follows an answer, when the
    answer is not in the text, or when tokens and text do not agree.
    """
    results: list[list[Taught] | UserError] = []
    waiting = iter(conversations)
    while chunk := list(islice(waiting, 512)):
        marked: list[list[_Marked] | UserError] = []
        for messages in chunk:
            try:
                marked.append(_mark(messages, tokenizer))
            except UserError as error:
                marked.append(error)
        taught = iter(_tokenize([one for item in marked if not isinstance(item, UserError) for one in item], tokenizer))
        for item in marked:
            if isinstance(item, UserError):
                results.append(item)
                continue
            examples = list(islice(taught, len(item)))
            results.append(
                next((example for example in examples if isinstance(example, UserError)), None)
                or [example for example in examples if not isinstance(example, UserError)]
            )
    return results


def _mark(messages: Sequence[Message], tokenizer: Tokenizer) -> list[_Marked]:
    learned = [number for number, message in enumerate(messages) if _is_learned(message)]
    if not learned:
        return []
    shown = [
        {key: value for key, value in message.items() if key != "learn"} for message in messages[: learned[-1] + 1]
    ]
    full = tokenizer.render(shown)
    spans: list[tuple[int, int]] = []
    alone: list[_Marked] = []
    for number in learned:
        prompt = tokenizer.render(shown[:number], generation_prompt=True)
        until = full if number == learned[-1] else tokenizer.render(shown[: number + 1])
        first, behind = _span(prompt, until, shown[number], number, tokenizer)
        if full.startswith(until[:behind]):
            spans.append((first, behind))
        else:
            alone.append(_Marked(until, ((first, behind),)))
    whole = _Marked(full, tuple(spans), len(messages) - len(shown))
    return [*alone, whole]  # the last turn is always in the whole


def _span(prompt: str, until: str, message: Message, number: int, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where turn `number` is learned: behind the generation prompt, up to and including its end token."""
    if not until.startswith(prompt):
        apart = next((at for at, pair in enumerate(zip(prompt, until, strict=False)) if pair[0] != pair[1]), len(until))
        raise UserError(
            f"messages[{number}]: the chat template writes {prompt[apart : apart + 40]!r} before an answer is generated, "
            f"and {until[apart : apart + 40]!r} in its place once the answer is there (character {apart})",
            "the model would be taught behind a text it never sees in use; name a template whose two forms agree: template=FILE.jinja",
        )
    said = until[len(prompt) :]
    content, calls = message["content"] or "", message.get("tool_calls")
    place = _behind(content, said, tokenizer)
    if place is None:
        raise UserError(
            f"messages[{number}]: the chat template does not write the answer as it is: found {_short(said)}, expected {_short(content.strip())} in it",
            "name a template that writes it whole: template=FILE.jinja, or change the answer to what the template keeps",
        )
    end = tokenizer.first_special(said, place)
    while calls and end and (later := tokenizer.first_special(said, end[1])):  # a call has marks of its own inside
        end = later
    if end is None:
        raise UserError(
            f"messages[{number}]: the chat template writes no end token behind an answer (it ends {until[-20:]!r}), so the model would never learn to stop",
            f"put one behind assistant turns, such as {tokenizer.named.get('eos_token', '<|im_end|>')}, in your own template=FILE.jinja",
        )
    return len(prompt), len(prompt) + end[1]


def _behind(content: str, said: str, tokenizer: Tokenizer) -> int | None:
    """The place behind the answer in what the template says. Templates trim and re-wrap answers, so white space does not count.

    The last place counts, but not one inside the marks behind the answer: `d` stands in `<|im_end|>` too.
    """
    content = content.strip()
    if not content:
        return 0
    inside = tokenizer.first_special(content)
    marks: list[tuple[int, int]] = []
    while not inside and (mark := tokenizer.first_special(said, marks[-1][1] if marks else 0)):
        marks.append(mark)
    for limit in [len(said)] if not marks else [first for first, _ in reversed(marks)]:
        at = said.rfind(content, 0, limit)
        if at >= 0 and not any(first < at + len(content) and at < behind for first, behind in marks):
            return at + len(content)
    limit = marks[-1][0] if marks else len(said)
    letters = [place for place, character in enumerate(said[:limit]) if not character.isspace()]
    squeezed = "".join(content.split())
    at = "".join(said[place] for place in letters).rfind(squeezed)
    return letters[at + len(squeezed) - 1] + 1 if at >= 0 else None


def _tokenize(marked: Sequence[_Marked], tokenizer: Tokenizer) -> list[Taught | UserError]:
    segments = [list(one.segments()) for one in marked]
    encoded = iter(tokenizer.encode_batch([text for parts in segments for text, _ in parts]))
    made = []
    for one, parts in zip(marked, segments, strict=True):
        ids: list[int] = []
        learned: list[bool] = []
        for _, is_learned in parts:
            new = next(encoded)
            ids += new
            learned += [is_learned] * len(new)
        made.append(Taught(ids, learned, len(one.spans), one.dropped))
    texts = tokenizer.decode_batch([example.ids for example in made])
    return [
        example if text == one.text else _verify(one, example, text, tokenizer)
        for one, example, text in zip(marked, made, texts, strict=True)
    ]


def _verify(one: _Marked, apart: Taught, text: str, tokenizer: Tokenizer) -> Taught | UserError:
    """The tokens do not spell the text. Either the tokenizer changes every text (Unicode normal form, lower case), or it
    marks the start of each text it is given (SentencePiece): then the whole is tokenized at once and cut by characters."""
    ids, offsets = tokenizer.offsets(one.text)
    if text == tokenizer.decode(ids):
        return apart
    learned = []
    for first, behind in offsets:
        inside = [low <= first and behind <= high for low, high in one.spans]
        across = [first < high and behind > low for low, high in one.spans]
        if any(across) and not any(inside):
            low = max(0, first - 20)
            return UserError(
                f"a token stands half in an answer and half outside of it: {one.text[low : behind + 20]!r}",
                "the chat template does not fit the tokenizer: name one that puts a special token or a line break before answers",
            )
        learned.append(any(inside) and behind > first)
    return Taught(ids, learned, apart.turns, apart.dropped)

"""Cleaning: each step and each rule with a text that falls under it and one that stays, in English and in Chinese."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.core.errors import UserError
from danlu.data.options import CleaningOptions
from danlu.data.quality import RULES, SETS, judged
from danlu.data.steps import KINDS, NEEDS, Against, Cleaned, Cleaner, derived, described


ROOT = Path(__file__).parents[2]
ALL = CleaningOptions(quality=("repetition",))
STORY = (
    "Every morning the baker opens the shop before the sun is up, and the smell of warm bread fills the narrow street. People come "
    "with small coins and long stories. A boy asks that his loaf be cut in two halves. An old woman wants to have what her mother "
    "used to buy here. Nobody leaves without a word for the weather, the harvest or the price of flour this year."
)
NOVEL = (
    "清晨的小镇还没有完全醒来，面包师已经在灶前忙了两个小时。热气从窗缝里钻出去，沿着石板路一直飘到河边。第一个进门的是送报的少年，他把硬币放在柜台上，"
    "笑着说今天要两个最大的。后来下起了雨，屋檐下站满躲雨的人，谁也不急着走。有人谈收成，有人抱怨路难行，老人只是望着远处的山，等云散开。"
)


def one(text: str, step: str, **settings: object) -> Cleaned:
    return Cleaner(replace(CleaningOptions(cleaning=(step,), quality=()), **settings))(text)


# -------------------------------------------------------------------------------------------------------------- mending


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("cafÃ© fÃ¼r alle", "café für alle"),
        ("è¿™æ˜¯ä¸€ä¸ªæµ‹è¯•", "这是一个测试"),
        ("It’s “fine” — ｆｕｌｌ １２３", None),
        ("屋檐下——谁也不急着走……“好”", None),
        ("Größe, naïve, Ångström", None),
    ],
)
def test_a_wrong_encoding_is_mended_and_nothing_else(found: str, expected: str | None):
    assert one(found, "encoding") == Cleaned(expected or found, changed=("encoding",) if expected else ())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("a <b>bold</b> word<br>and a new line &amp; more", "a bold word\nand a new line & more"),
        ("第一段&nbsp;<strong>重点</strong><br/>第二段", "第一段\xa0重点\n第二段"),
        ("<p>One.</p><p>Two.</p><script>var x = 1;</script>", "One.\n\nTwo."),
        ("if a < b and b > c: List<String> x; Vec<u8>", None),
        ("write to <email> or AT&T; https://x.org/?a=1&copy=2", None),
        ("中文 <书名> 与 a&b", None),
        ("One `<li>` an item:\n\n#include <stdio.h>\nA <p> begins a paragraph.", None),
        ("`<ul>`, `<ol>`, `<p>`, `</p>`, `<b>` and `<!--` to `-->`\nare tags", None),
        ("The <body> tag\nholds what is seen", None),
        ("write <!-- before\na remark", None),
        ("kept <!-- a\nremark -->here\nand there", "kept here\nand there"),
        ("one<p>two<p>three<p>four", "one\n\ntwo\n\nthree\n\nfour"),
    ],
)
def test_markup_goes_and_what_only_looks_like_it_stays(found: str, expected: str | None):
    assert one(found, "html").text == (expected or found)


def test_of_a_whole_page_the_main_text_stays():
    menu = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("Home", "Shop", "Contact"))
    page = f"<!DOCTYPE html><html><body><nav><ul>{menu}</ul></nav><article><p>{STORY}</p></article></body></html>"
    cleaned = one(page, "html")
    assert STORY in cleaned.text
    assert "Contact" not in cleaned.text
    assert one(f'<?xml version="1.0"?>\n<!-- <b> -->{page}', "html").text.strip() == cleaned.text


def test_a_page_nested_without_end_is_dropped():
    step, rule, what = one("<div>" * 100_000, "html").dropped or ("", "", "")
    assert (step, rule) == ("html", "elements nested too deeply")
    assert "512" in what


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("cafe\u0301", "café"),
        ("ＧＰＵ １２，价格：３元。（好）", "GPU 12，价格：3元。（好）"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("zero\u200bwidth\ufeff soft\u00adhyphen\x00\x1b[31mred\x1b[0m", "zerowidth softhyphenred"),
        ("a\u00a0b\u3000c   \n\n\n\n\n\nd  ", "a b c\n\n\nd"),
        ("x" + " " * 2_000_000 + "y", "x" + " " * 256 + "y"),
        ("x" + " \t" * 500_000 + "y", "x" + " \t" * 128 + "y"),
        ("=" * 5000, "=" * 256),
        ("می\u200cخواهم 👨\u200d👩\u200d👧 这是“好”的……", None),
        ("  indented\n\tcode", "indented\n\tcode"),
        ("-" * 256 + "\n\n\n" + "table   with   columns", None),
    ],
    ids=range(11),
)
def test_characters_have_one_form(found: str, expected: str | None):
    cleaned = one(found, "unicode")
    assert cleaned.text == (found if expected is None else expected)
    assert one(cleaned.text, "unicode").text == cleaned.text


def test_chinese_is_brought_to_one_script_and_japanese_is_left_alone():
    assert one("電腦裡的檔案壞了", "chinese", chinese="simplified").text == "电脑里的档案坏了"
    assert one("电脑里的文件坏了", "chinese", chinese="traditional").text == "電腦裏的文件壞了"
    assert one("電腦壞了", "chinese").changed == ()
    japanese = "彼は電車に乗って学校へ行きました。"
    assert one(japanese, "chinese", chinese="simplified").text == japanese


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (STORY, "en"),
        (NOVEL, "zh"),
        ("屏幕很清楚", "zh"),
        ("Das Wetter ist heute besser als gestern, aber morgen soll es regnen.", "de"),
        ("彼は電車に乗って学校へ行きました。", "ja"),
        ("Ce livre raconte la vie d'un boulanger dans un petit village.", "fr"),
        ("12345 67890", ""),
        ("……！！", ""),
    ],
)
def test_the_language_is_told(text: str, language: str):
    assert one(text, "language").language == language


def test_other_languages_are_dropped_only_when_asked():
    german = "Das Wetter ist heute besser als gestern, aber morgen soll es regnen."
    assert one(german, "language").dropped is None
    assert one(german, "language", language=("zh", "en")).dropped == ("language", "not zh or en", "de")
    assert one("12345", "language", language=("zh",)).dropped == ("language", "it cannot be told", "unknown")
    assert one(NOVEL, "language", language=("zh", "en")).dropped is None


# -------------------------------------------------------------------------------------------------------- personal data

PERSONAL = [
    ("email", "write to joe.doe+x@mail.example.com, please", "write to <email>, please"),
    ("email", "邮箱abc@163.com谢谢", "邮箱<email>谢谢"),
    ("phone", "电话13812345678，或138-1234-5678", "电话<phone>，或<phone>"),
    ("phone", "call +49 30 901820 or (212) 555-0123 or 010-62782345", "call <phone> or <phone> or <phone>"),
    ("ip", "from 93.184.216.34:8080", "from <ip>:8080"),
    ("ipv6", "from 2001:4860:4860::8888 on", "from <ipv6> on"),
    ("card", "card 4111 1111 1111 1111 or 4111111111111111", "card <card> or <card>"),
    ("iban", "to DE89 3704 0044 0532 0130 00, or GB82WEST12345698765432", "to <iban>, or <iban>"),
    ("id", "身份证号11010519491231002X，男", "身份证号<id>，男"),
]


@pytest.mark.parametrize(("kind", "found", "expected"), PERSONAL)
def test_personal_data_becomes_a_placeholder(kind: str, found: str, expected: str):
    cleaned = one(found, "personal")
    assert cleaned.text == expected
    assert cleaned.personal == {kind: expected.count("<")}
    assert one(cleaned.text, "personal").changed == ()
    assert one(cleaned.text, "html").changed == ()  # a placeholder is no markup


def test_every_kind_of_personal_data_is_tried():
    assert {kind for kind, _, _ in PERSONAL} == KINDS.keys()


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, Linux 2.6.32.8, 10.0.19041.1",
        "192.168.1.1, 127.0.0.1 and 255.255.255.0 are no one's",
        "ISBN 978-3-16-148410-0, ISBN 7-111-12345-6",
        "2024-01-15 12:30:45, 15.01.2024, 2024年1月15日13点45分",
        "$1,234,567.89 or ￥13,812,345",
        "card 4111 1111 1111 1112 has a wrong check digit",
        "11010519491231002X1 and 110105194912310021 are no resident's",
        "DE89 3704 0044 0532 0130 01 is no account",
        "std::vector<std::pair> at 00:1b:44:11:3a:b7",
        "0.13812345678 3.14159265358979",
        "@user and user@localhost",
        "订单号12345678901234567890",
    ],
)
def test_other_numbers_stay(text: str):
    assert one(text, "personal") == Cleaned(text)


# -------------------------------------------------------------------------------------------------------------- quality


def falls(text: str, sets: str, language: str = "en") -> str:
    why = judged(text, language, (sets,))[1]
    return why[0] if why else ""


@pytest.mark.parametrize("name", ["gopher", "repetition", "fineweb"])
@pytest.mark.parametrize(("text", "language"), [(STORY, "en"), (NOVEL, "zh")])
def test_running_text_stays(name: str, text: str, language: str):
    assert falls(text, name, language) == ""


LINES = STORY.replace(". ", ".\n")
FALLING = [
    ("gopher", "a short one", "en", "fewer than 50 words"),
    ("gopher", NOVEL[:60], "zh", "fewer than 50 words"),
    ("gopher", STORY * 1500, "en", "more than 100,000 words"),
    ("gopher", "I am so he is on a it to be " * 20, "en", "fewer than 3 characters a word"),
    ("gopher", "Donaudampfschifffahrt " * 60, "de", "more than 10 characters a word"),
    ("gopher", STORY + " #" * 30, "en", "# signs a word"),
    ("gopher", NOVEL + " #" * 30, "zh", "# signs a word"),
    (
        "gopher",
        STORY.replace(" a ", " a ... ").replace(" the ", " the ... ").replace("and", "and …"),
        "en",
        "ellipses a word",
    ),
    ("gopher", "\n".join(f"- {line}" for line in LINES.split("\n")), "en", "begin with a bullet"),
    ("gopher", LINES.replace(".\n", "...\n"), "en", "end with an ellipsis"),
    ("gopher", STORY + " 12 34" * 30, "en", "words with a letter"),
    ("gopher", NOVEL + " 12 34" * 30, "zh", "words with a letter"),
    ("gopher", "Warm bread fills narrow streets, bakers smile " * 12, "en", "commonest words"),
    ("gopher", "面包" * 60, "zh", "commonest words"),
    ("repetition", "One line.\nOne line.\nTwo lines.", "en", "lines that stood there before"),
    ("repetition", "好评如潮！\n好评如潮！\n不错。", "zh", "lines that stood there before"),
    ("repetition", f"{STORY}\n\n{STORY}\n\nA.\nB.\nC.\nD.\nE.\nF.", "en", "paragraphs that stood there before"),
    ("repetition", f"{STORY}\nA.\nB.\nC.\n{STORY}\nD.\nE.\nF.", "en", "characters in lines that stood there before"),
    (
        "repetition",
        "\n\n".join(f"{part}\nx{at}\ny{at}" for at, part in enumerate("abc")) + f"\n\n{LINES}\n\n{LINES}",
        "en",
        "",
    ),
    ("repetition", STORY + " warm bread" * 10, "en", "commonest run of 2 words"),
    ("repetition", NOVEL + "真不错，" * 40, "zh", "commonest run of 2 words"),
    ("repetition", STORY + " and " + STORY[40:200], "en", "runs of 5 words that stood there before"),
    ("repetition", NOVEL + NOVEL[20:70], "zh", "runs of 5 words that stood there before"),
    ("fineweb", LINES.replace(".\n", "\n").replace(".", "") + "\nx" * 3, "en", "end with punctuation"),
    (
        "fineweb",
        "\n".join(["A short line."] * 1 + ["Another one.", "And more."]),
        "en",
        "lines of 30 characters or less",
    ),
    ("fineweb", f"{STORY}\n{STORY}", "en", "characters in lines that stood there before"),
    ("fineweb", "\n".join(f"Onomatopoetically{at} speaking{at}." for at in range(20)), "en", "line ends a word"),
    ("fineweb", "\n".join(f"第{at}项：很好。" for at in range(30)), "zh", "line ends a word"),
]


@pytest.mark.parametrize(("name", "text", "language", "rule"), FALLING, ids=range(len(FALLING)))
def test_what_breaks_a_rule_falls_and_is_told_why(name: str, text: str, language: str, rule: str):
    assert rule in falls(text, name, language)


def test_runs_of_words_are_asked_of_long_texts_only():
    assert falls("good product, good product, at a good price", "repetition") == ""
    assert falls("质量很好，质量很好，下次再来", "repetition", "zh") == ""


PAGE = "\n".join(f"This is sentence number {at} of the page." for at in ("one", "two", "three", "four", "five"))


@pytest.mark.parametrize(
    "line",
    [
        "Home | Shop | Contact",
        "It ends too early...",
        "Too short.",
        "Please turn on JavaScript to see this page.",
        "By staying here you accept our privacy policy and more.",
        "x" * 1001 + " is a very long word.",
    ],
)
def test_c4_takes_out_lines(line: str):
    cleaned = one(f"{PAGE}\n{line}", "quality", quality=("c4",))
    assert cleaned == Cleaned(PAGE, changed=("quality",))


def test_c4_drops_texts_and_reads_chinese():
    assert falls(PAGE + "\nfunction() { return 1; }", "c4") == "c4: a curly bracket"
    assert falls(PAGE + "\nLorem ipsum dolor sit amet.", "c4") == "c4: lorem ipsum"
    assert falls("One sentence is here.\nTwo sentences are here.", "c4") == "c4: fewer than 5 sentences"
    assert (
        judged(PAGE + "\nIt is the [1] last [citation needed] line.", "en", ("c4",))[0]
        == PAGE + "\nIt is the  last  line."
    )
    five = "\n".join(f"这是文章里的第{at}句话。" for at in "一二三四五")
    assert judged(five + "\n首页 产品 联系我们\n好。", "zh", ("c4",)) == (five, None)


def test_without_being_told_only_web_pages_are_held_to_rules_of_web_pages():
    reviews = ["质量很好，物流也快，下次还会再来买的", "屏幕太暗，用了两天就退了，客服态度还行"]
    options, why = derived(CleaningOptions(), web=False)
    assert options.quality == ("repetition",) and "web pages" in why
    assert all(cleaned.dropped is None for cleaned in map(Cleaner(options), reviews))
    assert derived(CleaningOptions(), web=True)[0].quality == ("gopher", "repetition", "fineweb")
    given = CleaningOptions(quality=("c4",))
    assert derived(given, web=True) == (given, "given")


# -------------------------------------------------------------------------------------------------------- contamination


def test_a_text_that_holds_a_row_of_a_test_set_is_dropped():
    question = "What does the old woman want to buy when she comes into the shop early on Monday morning?"
    clean = Cleaner(
        CleaningOptions(cleaning=("against",)),
        Against([question, "short row", "屋檐下站满躲雨的人谁也不急着走有人谈收成"], places=["a:1", "a:2", "a:3"]),
    )
    words = question.split()
    assert clean("He asked: " + " ".join(words[2:15]).upper() + "!").dropped == (
        "against",
        "holds a row of a test set",
        "1 of the 6 runs of 13 words of a:1",
    )
    assert clean("He asked: " + " ".join(words[2:14]) + "!").dropped is None
    assert (clean(NOVEL).dropped or ("",))[0] == "against"
    assert clean(STORY).dropped is None


def test_what_all_rows_begin_with_is_no_leak():
    head = "Received from mail one by mail two with smtp id one two three for the list on Monday morning. "
    bodies = [" ".join(f"w{row}x{word}" for word in range(60)) for row in range(3)]
    rule = Against([head + body for body in bodies[:2]], share=0.2)
    assert rule.shared(head + bodies[2]) == ""
    assert rule.shared(head + bodies[2] + " " + bodies[1][:200]).endswith("runs of 13 words of row 2")
    assert Against([head + bodies[0]]).shared(head + bodies[2]) != ""


def test_of_shorter_rows_of_a_test_set_the_whole_is_looked_for():
    clean = Cleaner(
        CleaningOptions(cleaning=("against",)), Against(["one two three four five six seven eight", "yes", ""])
    )
    assert clean("zero one two three, four five six seven eight nine").dropped is not None
    assert clean("zero one two three four five six seven nine eight").dropped is None
    assert clean("He said yes.").dropped is None  # `yes` stands in every text
    assert clean("Yes!").dropped is not None


# ------------------------------------------------------------------------------------------------------------- together


def test_steps_are_taken_in_their_order_and_named():
    text = "<b>電腦</b>壞了，找ａｂｃ@163.com，电话13812345678。cafÃ©"
    cleaned = Cleaner(replace(ALL, chinese="simplified"))(text)
    assert cleaned == Cleaned(
        "电脑坏了，找<email>，电话<phone>。café",
        changed=("encoding", "html", "unicode", "chinese", "personal"),
        language="zh",
        personal={"email": 1, "phone": 1},
    )


def test_a_cleaner_pickles():
    clean = Cleaner(replace(ALL, chinese="simplified"), Against([STORY]))
    clean("電腦 and " + NOVEL)  # whatever is loaded late stays behind
    again = pickle.loads(pickle.dumps(clean))
    assert again(STORY).dropped == clean(STORY).dropped is not None
    assert pickle.loads(pickle.dumps(clean(STORY))) == clean(STORY)


def test_an_empty_text_is_dropped():
    assert Cleaner(ALL)(" \n").dropped == ("encoding", "no text is left", "2 characters came in")
    assert one("\u200b\x00", "unicode").dropped == ("unicode", "no text is left", "2 characters came in")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cleaning": ("unicod",)}, "cleaning: found 'unicod'"),
        ({"cleaning": ("html", "html")}, "'html' stands there twice"),
        ({"quality": ("gofer",)}, "quality: found 'gofer'"),
    ],
)
def test_a_wrong_setting_is_told(settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        Cleaner(replace(ALL, **settings))


@settings(deadline=None)
@given(st.text() | st.text(alphabet='<>&;/div p="@.+0123456789 -:#\n\t\u3000的好。aé\u0301\ud800\u200b\x1b['))
@example("\ud800" * 300)
@example("1" * 5000 + "@")
@example("a@" * 3000)
@example("<p " * 3000)
@example("<!--" * 30_000)
@example("-->" + "<!--" * 30_000)
@example("<!---->" * 30_000)
@example(".!" * 30_000 + "x")
@example("٣" * 40)
def test_no_text_is_too_much(text: str):
    options = CleaningOptions(chinese="traditional", quality=SETS, language=("en",))
    for step in (*((step,) for step in NEEDS), options.cleaning):
        cleaned = Cleaner(replace(options, cleaning=step), Against([STORY]))(text)
        cleaned.text.encode()  # what is written must be valid Unicode
    for step in ("unicode", "personal"):
        cleaned = one(text, step)
        assert one(cleaned.text, step).text == cleaned.text


def test_what_is_declared_is_what_is_done_and_what_the_documents_say():
    declared = described(CleaningOptions(quality=SETS))
    assert list(dict.fromkeys(each["step"] for each in declared)) == list(CleaningOptions().cleaning) == list(NEEDS)
    assert [each["about"] for each in declared if "bounds" in each] == [rule.what for rule in RULES]
    assert all(each["about"] and each["source"] for each in declared)
    json.dumps(declared)
    rules = [(each["rule"], bounds(each["bounds"]), bounds(each["spaceless"])) for each in declared if "bounds" in each]
    english, chinese = ((ROOT / "docs" / folder / "cleaning.md").read_text("utf-8") for folder in (".", "zh"))
    for text in (english, chinese):
        rows = [
            [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")
        ]
        assert [(row[0], row[2], row[3]) for row in rows if row[0] in SETS and len(row) == 5] == rules
        assert {row[0] for row in rows} >= NEEDS.keys() | {f"<{kind}>" for kind in KINDS}
    assert all(f"| {each['about']} |" in english for each in declared if "bounds" in each)


def bounds(found: tuple[float | None, float | None] | None) -> str:
    """As the tables of the documents say it."""
    least, most = found or (None, None)
    if least is None:
        return "—" if most is None else f"≤ {most:,.6g}"
    return f"≥ {least:,.6g}" if most is None else f"{least:,.6g} … {most:,.6g}"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"cleaning=encoding needs ftfy.*\n.*danlu\[corpus\]"):
        Cleaner(ALL)
    assert Cleaner(replace(ALL, cleaning=("unicode",)))("a\r\nb").text == "a\nb"


def test_an_address_in_angle_brackets_is_no_tag():
    text = "From: <s@host.org>, <b.smith@host.org>, <p-q@host.org> and <br.n@host.org>"
    assert one(text, "html").text == text
    assert one("<b>bold</b><br/>and <a href='u'>a link</a>", "html").text == "bold\nand a link"

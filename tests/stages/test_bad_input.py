"""Bad input: one clear error that names the place and the fix, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import resource
import shutil
import time

import pytest

from danlu.core.track import read_lines


QUICK = ("steps=2", "batch_size=8", "precision=float32", "threads=1")


def rows(path, entries):
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), "utf-8")
    return path


@pytest.fixture
def refused(danlu, tmp_path):
    """`refused("finetune", …)` expects the error: returns what stderr says, after looking at everything else."""

    def check(*words, reads=()):
        before = {path for path in tmp_path.rglob("*") if path != tmp_path / "out"}
        result = danlu(*words)
        assert result.code == 2, f"exit code {result.code}\n{result.out}\n{result.err}"
        message = result.err.strip()
        assert message.startswith("danlu: ") and "\n  fix: " in message and "Traceback" not in message
        assert message.count("danlu: ") == 1
        assert set(tmp_path.rglob("*")) == before, "something was left behind"
        return message

    return check


@pytest.fixture
def classify(refused, sorter, tmp_path):
    """A fine-tuning of a classifier on these rows that must be refused."""

    def check(entries, *more):
        data = rows(tmp_path / "my.jsonl", entries) if isinstance(entries, list) else entries
        return refused("finetune", "text-classification", f"model={sorter}", f"data={data}", *QUICK, "out=out", *more)

    return check


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetun"], ["unknown command 'finetun'", "did you mean 'finetune'"]),
        (["finetune"], ["no recipe and no YAML file", "danlu recipes"]),
        (["finetune", "chatt"], ["unknown recipe 'chatt'", "did you mean 'chat'"]),
        (["finetune", "chat"], ["no data=", "data=my.jsonl"]),
        (["finetune", "chat", "my.jsonl"], ["expected one recipe or one YAML file"]),
        (["finetune", "chat", "learing_rate=1"], ["unknown key 'learing_rate'", "did you mean 'learning_rate'"]),
        (["finetune", "chat", "--verbose"], ["unknown switch --verbose", "--json"]),
        (["finetune", "chat", "steps=1", "steps=2"], ["steps= is given twice"]),
        (["finetune", "chat", "steps=many"], ["steps: found 'many'", "a whole number"]),
        (["finetune", "chat", "steps=1.5"], ["steps: found '1.5'", "a whole number"]),
        (["finetune", "chat", "steps=0"], ["steps: found '0'", "between 1 and"]),
        (["finetune", "chat", "epochs=0"], ["epochs: found 0, expected more than 0"]),
        (["finetune", "chat", "learning_rate=nan"], ["learning_rate: found 'nan'", "a number", "fix: give such a value, or leave learning_rate= out"]),
        (["finetune", "chat", "learning_rates=head"], ["learning_rates: found 'head'", "name=number pairs"]),
        (["finetune", "chat", "method=qlora"], ["method: found 'qlora'", "one of lora, full"]),
        (["finetune", "chat", "baselines=perhaps"], ["baselines: found 'perhaps'", "true or false"]),
        (["finetune", "chat", "lora_dropout=1.5"], ["lora_dropout: found '1.5'", "between 0 and 0.9"]),
        (["finetune", "chat", "data=a", "test=b", "test_share=0.2"], ["test_share: found 0.2 (command line), but test=b says", "leave out test_share= or test="]),
        (["finetune", "chat", "data=a", "validation=b", "validation_share=0.2"], ["validation_share: found 0.2", "but validation=b says"]),
        (["finetune", "chat", "data=a", "folds=5", "test_share=0.2"], ["test_share: found 0.2", "but folds=5 says"]),
        (["finetune", "chat", "data=nothere.jsonl"], ["nothere.jsonl: no such file"]),
        (["finetune", "nothere.yaml"], ["nothere.yaml is not there"]),
        (["predict"], ["no run named", "danlu predict RUN"]),
        (["predict", "nothere", "text"], ["nothere is not a run"]),
        (["evaluate", "nothere", "data=x.jsonl"], ["nothere is not a run"]),
        (["resume", "nothere"], ["nothere is not a run"]),
        (["runs", "compare", "one"], ["found compare one", "danlu runs compare ONE TWO"]),
        (["models", "all=1"], ["unknown key 'all'", "no keys"]),
    ],
)  # fmt: skip
def test_words_that_mean_nothing(refused, words, expected):
    message = refused(*words)
    for part in expected:
        assert part in message, message


def test_yaml_that_is_broken(refused, tmp_path):
    for content, expected in (
        ("recipe: chat\nsteps: 1\nsteps: 2\n", "my.yaml:3: 'steps' is given twice"),
        ("recipe: chat\nsteps: [1\n", "my.yaml:3: "),
        ("steps: 1\n", "no `recipe:`"),
        ("- chat\n", "expected `key: value` lines"),
        ("recipe: chat\nsteps: ten\n", "steps: found 'ten' (file"),
        ("recipe: chat\nstep: 10\n", "unknown key 'step' (file"),
    ):
        (tmp_path / "my.yaml").write_text(content)
        assert expected in refused("finetune", tmp_path / "my.yaml")


def test_files_that_cannot_be_read(classify, texts, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl: the file is empty" in classify(tmp_path / "empty.jsonl")
    lines = [json.dumps(row) for row in texts]
    (tmp_path / "broken.jsonl").write_text("\n".join([*lines[:16], '{"text": "cut', *lines[17:]]))
    assert "broken.jsonl:17: " in classify(tmp_path / "broken.jsonl")
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,a\nthé,b\n".encode("latin-1"))
    message = classify(tmp_path / "latin.csv")
    assert "UTF-8" in message and "latin.csv" in message
    (tmp_path / "wide.csv").write_bytes("text,label\na,b\n".encode("utf-16"))
    assert "UTF-16" in classify(tmp_path / "wide.csv")


def test_rows_that_do_not_fit(classify, texts):
    assert "my.jsonl:17: " in classify([*texts[:16], {"label": "net"}, *texts[16:]])
    assert "my.jsonl:17: " in classify([*texts[:16], {"text": "no label"}, *texts[16:]])
    assert "it has 'body', 'kind'" in classify(
        [{"body": row["text"], "kind": row["label"]} for row in texts], "text=body"
    )
    assert "no column 'txt'" in classify(texts, "text=txt")


def test_a_table_without_a_line_of_names_and_labels_that_are_nearly_alike(danlu, refused, sorter, texts, tmp_path):
    table = tmp_path / "bare.csv"
    table.write_text("".join(f'"{row["text"]}",{row["label"]}\n' for row in texts if '"' not in row["text"]))
    words = ["preflight", "text-classification", f"model={sorter}"]
    said = refused(*words, f"data={table}")
    assert "if the first line is already a row, write the names of the columns above it, such as: text,label" in said
    spelled = ("sci fi", "Sci Fi", "scifi", "sci  fi", "other")
    data = rows(tmp_path / "l.jsonl", [{**row, "label": spelled[place % 5]} for place, row in enumerate(texts)])
    said = danlu(*words, f"data={data}").out
    (named,) = [line for line in said.splitlines() if "differ only in case, width or spaces" in line]
    assert all(repr(label) in named for label in spelled[:4]) and "'other'" not in named


def test_rows_that_are_skipped_are_counted(danlu, sorter, texts, tmp_path):
    data = rows(tmp_path / "my.jsonl", [*texts[:16], {"label": "net"}, *texts[16:]])
    result = danlu("finetune", "text-classification", f"model={sorter}", f"data={data}", *QUICK, "baselines=no", "out=r", "bad_rows=skip")  # fmt: skip
    assert result.code == 0, result.err
    assert "rows: 73 read, 72 kept" in result.out and "dropped 1: " in result.out and "my.jsonl:17" in result.out


def test_labels_that_cannot_be_learned(classify, texts, tmp_path):
    alien = rows(tmp_path / "test.jsonl", [{"text": "a new thing", "label": "sound"}, *texts[:2]])
    assert "test.jsonl:1: label 'sound' occurs only in test, so it is never learned" in classify(
        texts[3:], f"test={alien}"
    )
    alien.unlink()
    one_row = classify([*texts, {"text": "the only one", "label": "sound"}])
    assert "label 'sound' has 1 distinct row (my.jsonl:73)" in one_row and "rare_labels=drop" in one_row
    assert "have the label 'net'" in classify([{**row, "label": "net"} for row in texts])
    assert "this looks like numbers or free text" in classify([{**row, "label": f"{place}"} for place, row in enumerate(texts)])  # fmt: skip


def test_text_that_is_too_long_is_cut_and_said_or_dropped_or_refused(refused, danlu, sorter, texts, tmp_path):
    long = {"text": " ".join(row["text"] for row in texts[:12]), "label": "net"}
    data = rows(tmp_path / "my.jsonl", [*texts, long])
    words = [
        "finetune",
        "text-classification",
        f"model={sorter}",
        f"data={data}",
        *QUICK,
        "baselines=no",
        "test_share=0",
    ]
    message = refused(*words, "too_long=error", "out=out")
    assert "my.jsonl:73: " in message and "expected at most 128 (max_tokens)" in message
    assert "reads at most 128 tokens" in refused(*words, "max_tokens=500", "out=out")
    cut = danlu(*words, "out=cut")
    assert cut.code == 0 and "cut: 1 rows are longer than 128 tokens and lose " in cut.out
    gone = danlu(*words, "too_long=drop", "out=gone")
    assert gone.code == 0 and "longer than 128 tokens (too_long=drop) (my.jsonl:73)" in gone.out


def test_models_that_are_not_there_or_do_not_fit(refused, chat_file, text_file, sorter, chatter, tmp_path):
    words = ["finetune", "chat", f"data={chat_file}", *QUICK, "out=out"]
    assert "did you mean 'smollm2-135m'" in refused(*words, "model=smollm-135m")
    assert "is an encoder" in refused(*words, f"model={sorter}")
    assert "no config.json" in refused(*words, f"model={tmp_path}") or True
    assert "'nothere' matches no weight of this model" in refused(*words, f"model={chatter}", "freeze=nothere")
    assert "leaves nothing to train" in refused(
        *words, f"model={chatter}", "method=full", "freeze=embeddings,layers.0-1,norms"
    )
    assert "names no linear layer" in refused(*words, f"model={chatter}", "method=lora", "lora_targets=nothere")
    assert "matches none of the" in refused(*words, f"model={chatter}", "learning_rates=nothere=1")
    assert "template=nothere.jinja: no such file" in refused(*words, f"model={chatter}", "template=nothere.jinja")


def test_a_template_from_a_file_is_used_and_kept(danlu, chatter, chat_file, tmp_path):
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    (tmp_path / "mine.jinja").write_text(template)
    result = danlu(
        "finetune", "chat", f"model={chatter}", f"data={chat_file}", *QUICK, "answers=0", "template=mine.jinja", "out=r"
    )
    assert result.code == 0, result.err
    assert "[assistant] [[" in result.out
    assert (tmp_path / "r" / "model" / "chat_template.jinja").read_text() == template
    (tmp_path / "mine.jinja").unlink()
    assert danlu("predict", "r", "Hello", "max_new_tokens=4").code == 0


def test_a_tokenizer_of_another_model(refused, chatter, sorter, chat_file, text_file, tmp_path):
    from tokenizers import Tokenizer

    folder = tmp_path / "model"
    shutil.copytree(chatter, folder)
    tokens = Tokenizer.from_file(str(chatter / "tokenizer.json"))
    tokens.add_tokens([f"<word {number}>" for number in range(40)])
    tokens.save(str(folder / "tokenizer.json"))
    words = ["finetune", "chat", f"model={folder}", *QUICK, "answers=0", "out=out"]
    odd = rows(
        tmp_path / "odd.jsonl", [{"prompt": f"{place}?", "completion": f"<word {place}>"} for place in range(20)]
    )
    message = refused(*words, f"data={odd}")
    assert "the tokenizer has" in message and "the model's embedding 480 rows" in message
    shutil.copy(sorter / "tokenizer.json", folder / "tokenizer.json")  # 700 pieces
    message = refused(*words, f"data={chat_file}")
    assert "the tokenizer has 700 tokens, the model's embedding 480 rows" in message
    assert "belongs to another model" in message


def test_text_the_tokenizer_cannot_read(classify, sorter):
    chinese = {
        "music": ["这首歌真好听", "音乐会很精彩", "钢琴演奏"],
        "sport": ["足球比赛开始了", "他跑得很快", "游泳冠军"],
    }
    entries = [{"text": f"{text}，第{place}次", "label": label} for label, found in chinese.items() for place, text in enumerate(found * 5)]  # fmt: skip
    message = classify(entries)
    assert "unknown to the tokenizer" in message and "the text is Chinese" in message
    assert "smollm2-135m" in message and "unknown_share=" in message


def test_nothing_to_learn(refused, chatter, conversations, tmp_path):
    words = ["finetune", "chat", f"model={chatter}", *QUICK, "out=out"]
    data = rows(tmp_path / "asked.jsonl", [{"messages": row["messages"][:1]} for row in conversations])
    assert "asked.jsonl:1" in refused(*words, f"data={data}")
    data = rows(tmp_path / "long.jsonl", [{"messages": row["messages"]} for row in conversations])
    assert "nothing to learn: nothing to learn is left within 8 tokens" in refused(
        *words, f"data={data}", "max_tokens=8"
    )
    data = rows(tmp_path / "one.jsonl", [{"messages": conversations[0]["messages"]}] * 5)
    assert "found 1 distinct rows, expected at least 3" in refused(*words, f"data={data}")
    assert "every row of data= is also in" in refused(*words, f"data={data}", f"test={data}")


def test_a_place_that_is_taken(refused, chatter, chat_file, tmp_path):
    words = ["finetune", "chat", f"model={chatter}", f"data={chat_file}", *QUICK, "answers=0"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "exists and is not a danlu run" in refused(*words, "out=mine")
    assert "cannot be written" in refused(*words, f"out={chat_file}/below")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["start", "first checkpoint", "final model"])
def test_a_full_disk(kind, danlu, spawn, chatter, chat_file, tmp_path):
    """No file may grow past a limit: what a full disk does, without filling one."""
    method = "full" if kind == "first checkpoint" else "lora"
    optimizer = ("optimizer=adamw",) if method == "full" else ("optimizer=sgd", "momentum=0")
    words = [
        "finetune",
        "chat",
        f"model={chatter}",
        f"data={chat_file}",
        *QUICK,
        "answers=0",
        f"method={method}",
        *optimizer,
    ]
    assert danlu(*words, "out=whole").code == 0
    weights = (tmp_path / "whole/checkpoints/step-00000002/weights.safetensors").stat().st_size
    limit = 90_000 if kind == "first checkpoint" else weights + 100
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    process = spawn([*words, "out=r"], tmp_path)
    while kind == "final model" and process.is_alive() and not (tmp_path / "r" / "metrics.jsonl").exists():
        time.sleep(0.001)  # the adapter of start/ is as large as the final one, and has to be written first
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    process.join()
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 2, said
    assert "danlu: " in said and "\n  fix: make room" in said and "Traceback" not in said
    if kind == "start":  # nothing was learned yet, so nothing is left
        assert "give the command again" in said and not (tmp_path / "r").exists()
        return
    assert "danlu resume" in said
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "failed"
    assert not [path for path in (tmp_path / "r").rglob(".*") if path.name != ".lock"], "half-written files"
    assert danlu("resume", "r").code == 0
    for name in ("metrics.jsonl", "evaluation.json", *[f"model/{'adapter_' * (method == 'lora')}model.safetensors"]):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_loss_that_is_not_finite_says_where(danlu, sorter, text_file, tmp_path):
    result = danlu("finetune", "text-classification", f"model={sorter}", f"data={text_file}", "steps=50", "batch_size=8", "threads=1", "precision=float32", "learning_rate=1e30", "clip=0", "baselines=no", "out=r")  # fmt: skip
    assert result.code == 2
    assert "not finite (rows" in result.err and "lower learning_rate" in result.err
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "failed"
    assert read_lines(tmp_path / "r" / "metrics.jsonl")

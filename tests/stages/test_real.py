"""The same way with real weights: short, but the models are the ones a person gets."""

from __future__ import annotations

import json

from danlu.core.track import read_lines


def test_smollm2_learns_to_write_synopses(smollm2, danlu, conversations, tmp_path):
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps({"messages": row["messages"][:2]}) + "\n" for row in conversations))
    result = danlu("finetune", "chat", "model=smollm2-135m", f"data={data}", "steps=4", "batch_size=4", "learning_rate=5e-4", "lora_targets=q_proj,v_proj", "validate_every=4", "answers=1", "answer_tokens=12", "threads=1", "precision=float32", "out=r")  # fmt: skip
    assert result.code == 0, result.err
    losses = [line["loss"] for line in read_lines(tmp_path / "r" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 4
    evaluation = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert evaluation["metrics"]["loss"]["value"] < evaluation["before"]["metrics"]["loss"]["value"] < 6
    base = json.loads((tmp_path / "r" / "model" / "danlu_base.json").read_text())
    assert base["name"] == "smollm2-135m"
    answer = danlu("predict", "r", evaluation["examples"][0]["input"], "max_new_tokens=12", "--json").json[0]["answer"]
    assert answer == evaluation["examples"][0]["answer"]


def test_minilm_sorts_descriptions_and_is_compared_with_honest_baselines(minilm, danlu, text_file, tmp_path):
    result = danlu("finetune", "text-classification", "model=minilm", f"data={text_file}", "epochs=2", "batch_size=8", "learning_rate=3e-4", "test_share=0.3", "threads=1", "precision=float32", "out=r")  # fmt: skip
    assert result.code == 0, result.err
    evaluation = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    accuracy = evaluation["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    baselines = {each["name"]: each["metrics"]["accuracy"]["value"] for each in evaluation["baselines"]}
    assert len(baselines) == 2
    assert accuracy["value"] > min(baselines.values())
    assert danlu("predict", "r", "a turn-based strategy game", "--json").json[0]["label"] == "games"


def test_minilm_refuses_chinese(minilm, danlu, tmp_path):
    rows = [{"text": f"这个软件很好用，第{place}版", "label": "好"} for place in range(12)]
    rows += [{"text": f"屏幕一直是黑的，第{place}次", "label": "坏"} for place in range(12)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    result = danlu("finetune", "text-classification", "model=minilm", "data=my.jsonl", "out=r")
    assert result.code == 2
    assert "unknown to the tokenizer of minilm: the text is Chinese" in result.err
    assert "smollm2-135m (unfit for" in result.err
    assert not (tmp_path / "r").exists()

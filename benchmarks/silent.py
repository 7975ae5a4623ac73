"""What transformers, TRL, PEFT and datasets do in the situations of docs/silent-failures.md: stop, warn, or say nothing.

    python benchmarks/silent.py            all situations, each with a random network of two layers: about three minutes
    python benchmarks/silent.py 5 21       those of these numbers

They live in an environment of their own, .venv-trainers, which is made when it is first needed. Nothing is fetched while they run.
"stops": an exception; "warns": a logged or warned message that has to do with it (a progress bar is none); "silent": neither, and it happened; "right": it did not happen.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from peers import TRAINERS, interpreter


HERE = Path(__file__).parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = """{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- if m.role == 'assistant' and loop.index0 < ns.last %}{{- '<|im_start|>assistant\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


# ------------------------------------------------------------------------------------------------------------- material


def texts():
    lines = (HERE.parent / "examples" / "data" / "descriptions_chat.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return sorted(rows, key=lambda turns: sum(len(m["content"]) for m in turns))[:32]


def tokenizer(template=CHATML, bos=False, pad="<|endoftext|>"):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)  # fmt: skip
    rust.train_from_iterator([m["content"] for turns in texts() for m in turns], trainer)
    if bos:
        rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|im_end|>", pad_token=pad, bos_token="<s>", chat_template=template)  # fmt: skip


def settings(**more):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=480, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, eos_token_id=2, pad_token_id=0, bos_token_id=3, **more,
    )  # fmt: skip


def decoder(**more):
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(settings(**more))


def sorter(**more):
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    return LlamaForSequenceClassification(settings(num_labels=2, **more))


def sft(rows, folder, tok=None, model=None, **more):
    """TRL's trainer over these rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "gradient_checkpointing": False,
    } | more
    config = SFTConfig(str(folder), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", **options)  # fmt: skip
    return quiet(SFTTrainer(model or decoder(), config, train_dataset=Dataset.from_list(rows), processing_class=tok or tokenizer()))  # fmt: skip


def trainer(model, rows, folder, tests=None, collate=None, **more):
    """transformers' trainer over these rows."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    options = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"} | more
    config = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **options)
    return quiet(Trainer(model, config, train_dataset=Dataset.from_list(rows), eval_dataset=tests and Dataset.from_list(tests), data_collator=collate))  # fmt: skip


def quiet(found):
    """Without the lines of figures."""
    from transformers.trainer_callback import PrinterCallback

    found.remove_callback(PrinterCallback)
    return found


def learned(found, tok, row=0):
    """Text of the learned and of the other tokens of a row, as the trainer's own collator gives them."""
    batch = found.data_collator([found.train_dataset[row]])
    pairs = list(zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), strict=True))
    return tuple(tok.decode([i for i, label in pairs if (label != -100) is side]) for side in (True, False))


def losses(found, key="loss"):
    return [round(entry[key], 4) for entry in found.state.log_history if key in entry]


def finite(model):
    return all(parameter.isfinite().all() for parameter in model.parameters())


def pairs(extra=""):
    return [{"prompt": turns[0]["content"] + extra, "completion": turns[1]["content"]} for turns in texts()]


def messages():
    return [{"messages": turns} for turns in texts()]


def labelled():
    tok = tokenizer()
    return [{"input_ids": tok(turns[0]["content"])["input_ids"][:32], "labels": n % 2} for n, turns in enumerate(texts())]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- situations
# Each returns (whether the failure happened, what was seen). The peer, and what a message must say to be about it.


def every_label_masked(folder):
    found = sft(pairs(), folder, max_length=16)
    found.train()
    return True, f"trained to the end, loss {losses(found)}, weights {'finite' if finite(found.model) else 'NaN'}"


def answer_cut(folder):
    found = sft([{"prompt": "Say it. " * 150, "completion": f" {n} " + "and so on " * 200} for n in range(8)], folder)
    found.train()
    lengths = {len(row) for row in found.train_dataset["input_ids"]}
    return True, f"every row cut to {lengths} tokens by default, without its end"


def batch_without_labels(folder):
    rows = [{"input_ids": [5] * 8, "labels": [-100] * 8 if n % 2 else [5] * 8, "attention_mask": [1] * 8} for n in range(8)]  # fmt: skip
    found = trainer(decoder(), rows, folder, per_device_train_batch_size=1, max_steps=8)
    found.train()
    return not finite(found.model), f"loss {losses(found)}, weights {'finite' if finite(found.model) else 'NaN'}"


def rows_without_labels(folder):
    rows = [{"prompt": "What is it? " * (40 if n % 2 else 1), "completion": f" It is {n}."} for n in range(8)]
    found = sft(rows, folder, max_length=32)
    return len(found.train_dataset) < 8, f"{len(found.train_dataset)} of 8 rows are left, the others had no label"


def prompt_learned(folder):
    tok = tokenizer()
    yes, _ = learned(sft(messages(), folder, tok), tok)
    return "synopsis" in yes, f"learned begins {yes[:40]!r}"


def no_end_token(folder):
    tok = tokenizer(CHATML.replace("<|im_end|>", ""))
    found = sft(messages(), folder, tok)
    yes, _ = learned(found, tok)
    found.train()
    return "<|im_end|>" not in yes, f"learned ends {yes[-20:]!r}"


def padding_is_end(_):
    from transformers import DataCollatorForLanguageModeling

    tok = tokenizer(pad="<|im_end|>")
    ids = [tok.apply_chat_template(turns, return_dict=False) for turns in texts()[:2]]
    batch = DataCollatorForLanguageModeling(tok, mlm=False)([{"input_ids": each} for each in ids])
    kept = int((batch["labels"] == tok.eos_token_id).sum())
    return kept == 0, f"{kept} of {sum(each.count(tok.eos_token_id) for each in ids)} end tokens have a label"


def padding_is_end_trl(folder):
    tok = tokenizer(pad="<|im_end|>")
    yes, _ = learned(sft(messages(), folder, tok), tok)
    return "<|im_end|>" not in yes, f"learned ends {yes[-24:]!r}"


def doubled_bos(_):
    tok = tokenizer("<s>" + CHATML, bos=True)
    twice = tok(tok.apply_chat_template(texts()[0], tokenize=False))["input_ids"][:2] == [3, 3]
    return twice, f"tokenizer(apply_chat_template(…, tokenize=False)) begins with two BOS: {twice}"


def doubled_bos_trl(folder):
    tok = tokenizer("<s>" + CHATML, bos=True)
    begins = sft(messages(), folder, tok).train_dataset[0]["input_ids"][:3]
    return begins.count(3) > 1, f"a row begins {tok.convert_ids_to_tokens(begins)}"


def history_rewritten(folder):
    tok = tokenizer(THINKING)
    turns = [{"role": r, "content": c} for r, c in (("user", "one?"), ("assistant", "<think>FIRST</think>1"), ("user", "two?"), ("assistant", "<think>SECOND</think>2"))]  # fmt: skip
    found = sft([{"messages": turns}] * 8, folder, tok)
    yes, _ = learned(found, tok)
    return "FIRST" not in yes, f"the first answer is learned without its thought: {'FIRST' not in yes}"


def special_in_text(folder):
    tok = tokenizer()
    rows = [{"messages": [{"role": "user", "content": "What does <|im_end|> mean?"}, {"role": "assistant", "content": "The end."}]}]  # fmt: skip
    found = sft(rows * 8, folder, tok)
    count = found.train_dataset[0]["input_ids"].count(2)
    return count > 2, f"{count} end tokens in a conversation of two turns"


def packed(folder):
    import torch

    found = sft([{"text": turns[0]["content"]} for turns in texts()], folder, packing=True, max_length=256)
    batch = found.data_collator([found.train_dataset[0]])
    lengths = found.train_dataset[0].get("seq_lengths") or [0]
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "position_ids", "attention_mask")}
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 1] += 1  # inside the first document
    found.model.eval()
    with torch.no_grad():
        one, two = (found.model(**each).logits[0, lengths[0] :] for each in (inputs, other))
    apart = float((one - two).abs().max())
    return apart > 1e-6, f"a changed token moves the {len(one)} logits of the documents behind it by up to {apart:.1g}"


def mean_of_means(folder):
    import torch
    from transformers import DataCollatorForLanguageModeling

    tok = tokenizer()
    rows = [{"input_ids": tok(turns[0]["content"] * (1 + 5 * (n % 4 == 0)))["input_ids"][: 8 if n % 4 else None]} for n, turns in enumerate(texts()[:4])]  # fmt: skip
    after = []
    for size, count in ((4, 1), (1, 4)):
        model, collate = decoder(), DataCollatorForLanguageModeling(tok, mlm=False)
        run = trainer(model, rows, folder, collate=collate, per_device_train_batch_size=size, gradient_accumulation_steps=count, max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0)  # fmt: skip
        run.train()
        after.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in decoder().parameters()])
    off = float((after[0] - after[1]).norm() / (after[0] - start).norm())
    return off > 1e-3, f"the update of 1 x 4 rows and that of 4 x 1 differ by {off:.1g} of its length"


def unknown_key(folder):
    from trl import ModelConfig, SFTConfig, TrlParser

    (folder / "c.yaml").write_text("learning_rat: 0.1\nuse_cpu: true\nbf16: false\n")
    TrlParser((SFTConfig, ModelConfig)).parse_args_and_config(["--config", str(folder / "c.yaml"), "--output_dir", str(folder)])  # fmt: skip
    return True, "the key had no effect"


def nan_hidden(folder):
    from transformers import default_data_collator

    model = decoder()
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]} for _ in range(16)]

    found = trainer(model, rows, folder, collate=default_data_collator, max_steps=4)
    count = [0]

    def forward(*arguments, **named):
        count[0] += 1
        result = type(model).forward(model, *arguments, **named)
        if count[0] == 3:
            result.loss = result.loss * float("nan")
        return result

    model.forward = forward
    found._signature_columns = ["input_ids", "labels"]
    found.train()
    return (
        True,
        f"loss in the log {losses(found)}, norm of the gradient {losses(found, 'grad_norm')}, weights {'finite' if finite(model) else 'NaN'}",
    )


def resume_order(folder):
    from transformers import default_data_collator

    def run(place, **more):
        seen = []

        def collate(features):
            seen.append([int(each["input_ids"][1]) for each in features])
            return default_data_collator(features)

        rows = [{"input_ids": [4, 5 + n, 6], "labels": [4, 5 + n, 6]} for n in range(16)]
        found = trainer(decoder(), rows, place, collate=collate, max_steps=12, save_strategy="steps", save_steps=6)
        found.train(**more)
        return seen

    whole = run(folder / "a")
    resumed = run(folder / "b", resume_from_checkpoint=str(folder / "a" / "checkpoint-6"))
    same = resumed[-6:] == whole[6:12]
    return not same, f"steps 7 to 12 read the same rows as without the interruption: {same}"


def test_in_training(folder):
    rows = [{"input_ids": [5, 6, 7], "labels": n % 2} for n in range(8)]
    found = trainer(sorter(), rows, folder, tests=rows, eval_strategy="steps", eval_steps=2)
    found.train()
    return True, "the same rows as train_dataset and eval_dataset"


def label_order(folder):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value
    from transformers import Trainer, TrainingArguments

    model = sorter(id2label={0: "spam", 1: "ham"}, label2id={"spam": 0, "ham": 1})
    features = Features({"input_ids": Sequence(Value("int64")), "labels": ClassLabel(names=["ham", "spam"])})
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 8, "labels": [0, 1] * 4}, features=features)
    config = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, max_steps=1, save_strategy="no")  # fmt: skip
    quiet(Trainer(model, config, train_dataset=rows)).train()
    return True, f"data 0 = {rows.features['labels'].names[0]}, saved model 0 = {model.config.id2label[0]}"


def adapter_of_other_names(folder):
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file, save_file

    made = get_peft_model(decoder(), LoraConfig(target_modules=["q_proj"]))
    for name, parameter in made.named_parameters():
        parameter.data += "lora_B" in name
    made.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({key.replace("model.layers", "decoder.layers"): value for key, value in load_file(file).items()}, file)
    loaded = PeftModel.from_pretrained(decoder(), folder)
    none = all(not p.any() for name, p in loaded.named_parameters() if "lora_B" in name)
    return none, f"the answers are the base model's: {none}"


def head_not_saved(folder):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    found = get_peft_model(sorter(), LoraConfig(target_modules=["q_proj"]))
    trainer(found, labelled(), folder, per_device_train_batch_size=1).train()
    found.save_pretrained(folder / "a")
    saved = any("score" in name for name in load_file(folder / "a" / "adapter_model.safetensors"))
    return not saved, f"without task_type= the new head is in the saved adapter: {saved}"


def tied(folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = get_peft_model(decoder(tie_word_embeddings=True), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]))  # fmt: skip
    rows = [{"input_ids": [4, 5, 6, 7], "labels": [4, 5, 6, 7]} for _ in range(8)]
    trainer(found, rows, folder, learning_rate=0.1).train()
    merged = found.merge_and_unload().eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    before = merged(ids).logits
    merged.save_pretrained(folder / "m")
    after = AutoModelForCausalLM.from_pretrained(folder / "m").eval()(ids).logits
    apart = float((before - after).abs().max())
    return apart > 1e-3, f"logits before saving and after loading differ by up to {apart:.2g}"


def target_nothing(_):
    from peft import LoraConfig, get_peft_model

    found = get_peft_model(decoder(), LoraConfig(target_modules=["q_proj", "gate_porj"]))
    names = {name.split(".")[-4] for name, _ in found.named_parameters() if "lora_" in name}
    return True, f"adapted of q_proj and gate_porj: {', '.join(names)}"


def characters_dropped(_):
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.train_from_iterator(["a plain text"], trainers.BpeTrainer(vocab_size=30, show_progress=False))
    ids = PreTrainedTokenizerFast(tokenizer_object=rust)("text 你好")["input_ids"]
    return True, f"'text 你好' is read as {rust.decode(ids)!r}"


def accents(_):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "uber", "hacia"]
    tok = BertTokenizer(vocab={word: n for n, word in enumerate(words)})
    same = tok("Über hacía")["input_ids"] == tok("uber hacia")["input_ids"]
    return same, f"'Über hacía' and 'uber hacia' are the same tokens: {same}"


def broken_line(folder):
    from datasets import load_dataset

    (folder / "a.jsonl").write_text('{"text": "a"}\n{"text": "b\n{"text": "c"}\n')
    rows = load_dataset("json", data_files=str(folder / "a.jsonl"), split="train", cache_dir=str(folder))
    return True, f"{len(rows)} rows of three lines"


def column_ignored(folder):
    tok = tokenizer()
    rows = [{**row, "history": [["before", "SAID"]]} for row in pairs()]
    found = sft(rows, folder, tok)
    found.train()
    return "SAID" not in "".join(learned(found, tok)), "what stands in column history is in no row"


def majority(folder):
    rows = [{"input_ids": [5 + n % 9, 6, 7], "labels": int(n == 0)} for n in range(64)]
    found = trainer(sorter(), rows, folder, tests=rows[32:], max_steps=20)
    found.train()
    said = set(found.predict(found.eval_dataset).predictions.argmax(1).tolist())
    return len(said) == 1, f"one row of 64 is of the second class; answered: {said}"


def last_not_best(folder):
    rows = [{"input_ids": [5 + n, 6, 7], "labels": n % 2} for n in range(8)]
    tests = [{**row, "labels": 1 - row["labels"]} for row in rows]
    found = trainer(sorter(), rows, folder, tests=tests, max_steps=12, eval_strategy="steps", eval_steps=3, learning_rate=3e-2)  # fmt: skip
    found.train()
    seen = [round(entry["eval_loss"], 3) for entry in found.state.log_history if "eval_loss" in entry]
    kept = round(found.evaluate()["eval_loss"], 3)
    return kept > min(seen), f"validation losses {seen}, that of the model at the end {kept}"


def beyond_vocabulary(folder):
    tok = tokenizer()
    tok.add_tokens([f"<word {n}>" for n in range(9)])
    rows = [{"prompt": "a?", "completion": f"<word {n % 9}>"} for n in range(16)]
    found = sft(rows, folder, tok)
    size = found.model.get_input_embeddings().num_embeddings
    found.train()
    return True, f"embedding of {size} rows for {len(tok)} tokens"


CASES = {
    "1": ("TRL", every_label_masked, "label|mask|truncat|max_length"),
    "2": ("TRL", answer_cut, "truncat|max_length"),
    "3": ("transformers", batch_without_labels, "label|nan"),
    "3b": ("TRL", rows_without_labels, "mask|label|truncat|drop"),
    "4": ("TRL", prompt_learned, "prompt|assistant_only"),
    "5": ("TRL", no_end_token, "eos|stop|end"),
    "6": ("transformers", padding_is_end, "pad"),
    "6b": ("TRL", padding_is_end_trl, "pad"),
    "7": ("transformers", doubled_bos, "bos"),
    "7b": ("TRL", doubled_bos_trl, "bos"),
    "8": ("TRL", history_rewritten, "prefix|template|think"),
    "9": ("TRL", special_in_text, "special"),
    "11": ("TRL", packed, "pack|flash|contaminat"),
    "12": ("transformers", mean_of_means, "accumul"),
    "13": ("TRL", unknown_key, "learning_rat"),
    "14": ("transformers", nan_hidden, "nan|finite"),
    "15": ("transformers", resume_order, "order|shuffl"),
    "16": ("transformers", test_in_training, "leak|overlap|duplicate"),
    "17": ("transformers", label_order, "label"),
    "18": ("PEFT", adapter_of_other_names, "missing|adapter"),
    "19": ("PEFT", head_not_saved, "head|score|modules_to_save"),
    "20": ("PEFT", tied, "tie"),
    "21": ("PEFT", target_nothing, "target"),
    "22": ("transformers", characters_dropped, "unk"),
    "23": ("transformers", accents, "accent|lower"),
    "24": ("datasets", broken_line, "json|pars"),
    "25": ("TRL", column_ignored, "history|column"),
    "26": ("transformers", majority, "class|balance"),
    "27": ("transformers", last_not_best, "best"),
    "29": ("TRL", beyond_vocabulary, "embedding|vocab|resize"),
}


class Messages(logging.Handler):
    """What the libraries say at level warning."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def measure(wanted):
    import transformers

    versions = [f"{name} {__import__(name).__version__}" for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate")]  # fmt: skip
    print(", ".join(versions) + "\n")
    transformers.utils.logging.set_verbosity_warning()
    for number, (peer, situation, about) in CASES.items():
        if wanted and number not in wanted:
            continue
        heard = Messages()
        loggers = [logging.getLogger(name) for name in (None, "transformers", "trl", "peft", "datasets", "accelerate")]
        for each in loggers:
            each.addHandler(heard)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                happened, seen = situation(Path(folder))
                verdict = "silent" if happened else "right"
            except Exception as error:  # noqa: BLE001 (whatever a peer raises is the answer)
                verdict, seen = "stops", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"  # fmt: skip
                if "DEBUG" in os.environ:
                    traceback.print_exc()
        for each in loggers:
            each.removeHandler(heard)
        if "DEBUG" in os.environ:
            print(*heard.texts, *(each.message for each in caught), sep="\n      ")
        said = [text for text in (*heard.texts, *(str(each.message) for each in caught)) if re.search(about, text, re.IGNORECASE)]  # fmt: skip
        if verdict == "silent" and said:
            verdict, seen = "warns", f"{seen}; says {said[0][:200]!r}"
        print(f"{number:>3}  {peer:<13} {verdict:<7} {seen}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    else:
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
        sys.exit(
            subprocess.run(
                [interpreter(".venv-trainers", TRAINERS), __file__, "measure", *sys.argv[1:]], env=offline, check=False
            ).returncode
        )

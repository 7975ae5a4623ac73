"""One fine-tuning by TRL + PEFT (chat) or transformers' Trainer (classification), as a file of settings says. Run by finetune.py in the peers' environment.

Writes JSON: `steps`, of each its end on the clock, its real tokens and how many of them are learned (of a classifier: rows), and `heldout`, the mean
loss of the held-out rows.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **others):
        self.ends.append(time.time())


def settings(job):
    """What both trainers are told. A mode that is None is left at the trainer's default."""
    chosen = {
        "bf16": None if job["dtype"] is None else job["dtype"] == "autocast",
        "gradient_checkpointing": job["checkpointing"],
    }
    micro = job["micro"] or job["batch"]
    return {name: value for name, value in chosen.items() if value is not None} | {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job["batch"] // micro,
        "max_steps": job["steps"],
        "train_sampling_strategy": job["sampling"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "seed": job["seed"],
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def chat(job, rows):
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.chat_template = job["template"]
    more = {"model_init_kwargs": {"dtype": "bfloat16"}} if job["dtype"] == "bfloat16" else {}
    length = None if job["padding_free"] else job["max_tokens"]
    config = SFTConfig(**settings(job), **more, assistant_only_loss=True, max_length=length, padding_free=job["padding_free"])  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model=job["model"],
        args=config,
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["heldout"]),
        processing_class=tokenizer,
        peft_config=lora if job["method"] == "lora" else None,
    )


def classifier(job, rows):
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=len(job["labels"]))

    def encoded(part):
        found = tokenizer([row["text"] for row in part], truncation=True, max_length=job["max_tokens"])
        return Dataset.from_dict(dict(found) | {"labels": [job["labels"].index(row["label"]) for row in part]})

    return Trainer(
        model=model,
        args=TrainingArguments(**settings(job)),
        train_dataset=encoded(rows["train"]),
        eval_dataset=encoded(rows["heldout"]),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


@torch.no_grad()
def heldout(trainer, collate, labels):
    """Mean loss of the held-out rows: over all learned tokens, or over rows."""
    model, total, count = trainer.model.eval(), 0.0, 0
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for row in trainer.eval_dataset:
        batch = collate([row])
        wanted = batch.pop("labels")
        if labels:
            logits = model(**batch).logits
        else:
            logits = base.lm_head(base.model(batch["input_ids"]).last_hidden_state[0, :-1])
            wanted = wanted[0, 1:]
        total += float(torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"))
        count += int((wanted != -100).sum())
    return total / count


def main(place):
    job = json.loads(Path(place).read_text())
    rows = json.loads(Path(job["rows"]).read_text())
    clock, batches = Clock(), []
    trainer = (classifier if job["labels"] else chat)(job, rows)
    collate = trainer.data_collator

    def counted(features):
        batch = collate(features)
        tokens = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        batches.append((int(tokens), int((batch["labels"] != -100).sum())))
        return batch

    trainer.data_collator = counted
    trainer.add_callback(clock)
    trainer.train()
    each = trainer.args.gradient_accumulation_steps
    steps = [
        {"end": end, "tokens": sum(t for t, _ in made), "learned": sum(n for _, n in made)}
        for number, end in enumerate(clock.ends)
        for made in [batches[number * each : (number + 1) * each]]
    ]
    loss = heldout(trainer, collate, job["labels"]) if job["measure"] else None
    Path(job["out"]).write_text(json.dumps({"steps": steps, "heldout": loss}))


if __name__ == "__main__":
    main(sys.argv[1])

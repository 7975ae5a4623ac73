"""One fine-tuning of all weights by litgpt, as a file of settings says, on rows that are tokens already. Run by finetune.py in litgpt's environment.

Writes JSON as finetune_trainer.py does. A step ends where the first rows of the next are asked for, so one more is made than is counted.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule, get_sft_collate_fn
from litgpt.finetune.full import setup
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch.utils.data import DataLoader


PRECISIONS = {"float32": "32-true", "autocast": "bf16-mixed", None: None}


class Tokens(DataModule):
    """Rows of tokens in the order they come, with the time each micro-batch was asked for."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.asked, self.prompt_style = rows, [], Default()

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None, **_):
        self.size = batch_size

    def loader(self, rows, size, collate):
        ready = [
            {
                "input_ids": torch.tensor(row["ids"]),
                "labels": torch.tensor([i if yes else -100 for i, yes in zip(row["ids"], row["learned"], strict=True)]),
                "token_counts": {"raw": len(row["ids"]), "raw_plus_prompt_template": len(row["ids"])},
            }
            for row in rows
        ]
        return DataLoader(ready, batch_size=size, collate_fn=collate)

    def train_dataloader(self):
        collate = get_sft_collate_fn(pad_id=2)

        def timed(samples):
            tokens = sum(len(sample["input_ids"]) for sample in samples)
            learned = sum(int((sample["labels"] != -100).sum()) for sample in samples)
            self.asked.append((time.time(), tokens, learned))
            return collate(samples)

        return self.loader(self.rows["train"], self.size, timed)

    def val_dataloader(self):
        return self.loader(self.rows["heldout"][:2], 1, get_sft_collate_fn(pad_id=2))


def main(place):
    job = json.loads(Path(place).read_text())
    rows = json.loads(Path(job["rows"]).read_text())
    rows["train"] += rows["train"][: job["batch"]]
    checkpoint = Path(job["kept"])
    if not (checkpoint / "lit_model.pth").is_file():
        shutil.copytree(job["model"], checkpoint, dirs_exist_ok=True)
        convert_hf_checkpoint(checkpoint, model_name="SmolLM2-135M-Instruct")
    data, micro = Tokens(rows), job["micro"] or 1  # 1 is litgpt's default
    train = TrainArgs(
        save_interval=None, log_interval=1, global_batch_size=job["batch"], micro_batch_size=micro, lr_warmup_steps=1, epochs=2,
        max_steps=job["steps"] + 1, max_seq_length=None,
    )  # fmt: skip
    never = EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, initial_validation=False, final_validation=False)
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": job["learning_rate"], "weight_decay": 0.0}}
    setup(
        checkpoint,
        Path(job["scratch"]),
        PRECISIONS[job["dtype"]],
        data=data,
        train=train,
        eval=never,
        optimizer=adamw,
        seed=job["seed"],
    )
    each = job["batch"] // micro
    steps = [
        {
            "end": data.asked[(number + 1) * each][0],
            "tokens": sum(tokens for _, tokens, _ in made),
            "learned": sum(learned for _, _, learned in made),
        }
        for number in range(job["steps"])
        for made in [data.asked[number * each : (number + 1) * each]]
    ]
    Path(job["out"]).write_text(json.dumps({"steps": steps, "heldout": None}))


if __name__ == "__main__":
    main(sys.argv[1])

"""One training by litgpt, as a file of settings says, on rows that are tokens already. Run by race.py in litgpt's environment."""

import json
import math
import sys
import time
from pathlib import Path

import litgpt.pretrain
import numpy as np
import torch
from litgpt import GPT, Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from race import measured, padded, rate_at
from torch.utils.data import DataLoader, IterableDataset


class FusedAdamW(torch.optim.AdamW):
    """litgpt asks torch's own for the fused form on a GPU only."""

    def __init__(self, weights, lr, betas, weight_decay):
        super().__init__(weights, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


class Rows(IterableDataset):
    """Rows of context + 1 tokens, shuffled anew each pass, until the time is up. The clock starts behind the first update: compiling is not counted."""

    def __init__(self, file, context, first, seconds):
        self.ids = np.memmap(file, np.uint16, mode="r")
        self.context, self.first, self.seconds = context, first, seconds
        self.asked, self.started, self.dice = 0, math.inf, np.random.default_rng(0)

    def share(self):
        """Of the time that is over."""
        return max(0.0, min(1.0, (time.perf_counter() - self.started) / self.seconds))

    def __iter__(self):
        for row in self.dice.permutation((len(self.ids) - 1) // self.context):
            if self.asked == self.first:
                self.started = time.perf_counter()
            if self.share() == 1.0:
                return
            self.asked += 1
            at = row * self.context
            yield torch.from_numpy(self.ids[at : at + self.context + 1].astype(np.int64))


class Tokens(DataModule):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        self.size = batch_size

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.size, drop_last=True)

    def val_dataloader(self):
        return DataLoader(torch.zeros(self.size, self.rows.context + 1, dtype=torch.int64), batch_size=self.size)


def main(place):
    job = json.loads(Path(place).read_text())
    folder, width, context = Path(job["tokens"]), 64 * job["depth"], job["context"]
    torch.set_num_threads(job["threads"])
    config = Config(
        name="race", block_size=context, vocab_size=padded(job["vocabulary"]), padded_vocab_size=padded(job["vocabulary"]),
        n_layer=job["depth"], n_head=job["depth"], n_embd=width, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=64 * round(width * 8 / 3 / 64),
    )  # fmt: skip
    rows = job["batch"] // context
    micro = min(job["micro"], job["batch"]) // context
    data = Tokens(Rows(folder / "train.bin", context, rows, job["minutes"] * 60))
    trained = {}
    litgpt.pretrain.get_lr = lambda peak, *_: rate_at(data.rows.share(), peak)
    litgpt.pretrain.save_checkpoint = lambda _fabric, state, *_: trained.update(state)
    train = TrainArgs(
        save_interval=None, log_interval=100, global_batch_size=rows, micro_batch_size=micro, max_tokens=10**15, max_norm=1.0,
        lr_warmup_steps=0, tie_embeddings=False,
    )  # fmt: skip
    never = EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False)
    adamw = {"lr": job["learning_rate"], "betas": (0.9, 0.95), "weight_decay": 0.1}
    litgpt.pretrain.setup(
        "race", config, Path(job["place"]) / "out", {"bfloat16": "bf16-mixed", "float32": "32-true"}[job["precision"]], data=data,
        train=train, eval=never, optimizer={"class_path": "__main__.FusedAdamW", "init_args": adamw}, devices=1, logger_name="csv", seed=0,
    )  # fmt: skip
    seconds = time.perf_counter() - data.rows.started
    model = GPT(config).eval()
    weights = trained["model"].state_dict()
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in weights.items()})
    found = measured(model, folder, context)
    result = {"nats": found, "tokens": trained["iter_num"] * micro * context, "seconds": seconds}
    (Path(job["place"]) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])

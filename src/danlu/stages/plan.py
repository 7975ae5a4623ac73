"""Hours, memory and text -> the size of a language model, how it is trained, and what published laws expect of it; and the other way round.

The speed is measured on this machine with small networks of the same make; `stages.corpus.derive` asks the same `choose`, so that a
training with `hours=` is what was planned.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from danlu.core import calibration, device
from danlu.core.errors import UserError
from danlu.core.types import Documents
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import usual_size
from danlu.experiment import Asked
from danlu.models import decoder, encoder, scaling
from danlu.models.base import tokenizer_folder
from danlu.stages.pace import IN_TIME, LOOK_SECONDS, LOOKS, WORTHLESS, best, parameter_seconds
from danlu.stages.prepare import Open, Say, number, prepare
from danlu.tasks.language import Language
from danlu.tasks.masked import Masked
from danlu.training.optimizer import Muon


LENGTHS, ROWS = (50, 200, 90, 172), 4096
"""Of the calibration: tokens in its documents, over and over; rows of the larger embedding."""
HELD = 1 / 40
"""The most of the trained tokens that one validation of a planned training reads: all of them together are a fifteenth of the time."""
PROGRAM = 0.53e9
"""Bytes of Python, torch and what the stages import, before there is a network."""
GPU, GPU_FLOPS, GPU_SHARE, GPU_MEMORY = "H100", 989e12, 0.4, 80e9
"""NVIDIA's data sheet of the H100 SXM, bfloat16 without sparsity; the share of it that Llama 3 reached on such (38 to 43 %, Dubey et al. 2024)."""
GPU_PARAMETER_SECONDS = 30 / 3.35e12
"""AdamW reads and writes some 30 bytes a weight, at 3.35 TB/s."""


@dataclass(frozen=True)
class Speed:
    """How fast a machine trains, by the width of the network: operations a second in the layers, the head and Muon's iteration.

    parameter_seconds: of AdamW and clipping, a parameter and update. busy: the load while it was measured, if that was too high to trust.
    """

    layers: Mapping[int, float]
    head: Mapping[int, float]
    muon: Mapping[int, float]
    parameter_seconds: float
    busy: float | None = None

    def token_seconds(self, config: Mapping[str, Any], length: float, micro_batch: float) -> float:
        """Of one token forward and backward, in documents and micro-batches of so many tokens."""
        width = config["hidden_size"]
        layers, head = scaling.flops(config, length, micro_batch)
        return layers / between(self.layers, width) + head / between(self.head, width)

    def update_seconds(self, config: Mapping[str, Any], muon: bool) -> float:
        """Of the optimizer, once an update whatever its size."""
        iteration = scaling.muon_flops(config) / between(self.muon, config["hidden_size"]) if muon else 0.0
        return iteration + sum(scaling.parameters(config)) * self.parameter_seconds


def between(rates: Mapping[int, float], width: int) -> float:
    """The rate at a width: linear in the logarithms between two measured ones, the nearest beyond them."""
    known = sorted(rates)
    width = min(max(width, known[0]), known[-1])
    above = next(each for each in known if each >= width)
    below = max(each for each in known if each <= width)
    share = math.log(width / below) / math.log(above / below) if above > below else 0.0
    return float(rates[below] ** (1 - share) * rates[above] ** share)


def speed(kind: str, precision: str, threads: int, say: Say, fresh: bool = False) -> Speed:
    """That of this machine, measured or remembered (some ten seconds; what was measured on a busy machine is forgotten after ten minutes)."""
    place = calibration.kept_at(device.machine(gpus=True), "plan", kind, precision, threads)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        before = calibration.kept(place)
        tables = {key: {int(w): float(v) for w, v in before[key].items()} for key in ("layers", "head", "muon")}
        known = Speed(**tables, parameter_seconds=before["parameter_seconds"], busy=before["busy"])
        if not fresh and (known.busy is None or not calibration.forgotten(place)):
            return known
    load = os.getloadavg()[0]
    busy = load if load > 0.75 * device.machine().cores else None
    measured = replace(calibrate(kind, precision, threads, say), busy=busy)
    if error := calibration.keep(place, asdict(measured)):
        say(f"the measurement could not be kept, so the next plan measures again: {error}")
    return measured


def calibrate(kind: str, precision: str, threads: int, say: Say) -> Speed:
    """The speed of two real layers with and without a vocabulary at three widths, of Muon's iteration, and of AdamW."""
    torch.set_num_threads(threads)
    device.keep_freed_memory()
    place, number = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, precision)
    layers: dict[int, float] = {}
    heads: dict[int, float] = {}
    muon: dict[int, float] = {}
    own: Any = decoder.Decoder if kind == "gpt" else encoder.Encoder
    for width in (128, 256, 512):
        say(f"measuring the speed of this machine: {width} wide")
        tokens = 2**18 // width
        ids = torch.arange(tokens) * 31 % 64
        lengths = LENGTHS * (tokens // sum(LENGTHS))
        batch = Documents(ids, lengths, ids.roll(-1), tuple(range(len(lengths))))
        taken, works = [], []
        for rows in (64, ROWS):
            config = config_of(kind, width // 64, rows, 512) | {"num_hidden_layers": 2}
            with torch.random.fork_rng(devices=[]):
                model = own(config, "language", dropout=0.0).to(place).train()
            task: Any = Language(model) if kind == "gpt" else Masked(model, 0)
            weights = list(model.parameters())

            def learn(task: Any = task, weights: list[Any] = weights, batch: Documents = batch) -> None:
                task.begin([batch], "model", torch.Generator().manual_seed(0))
                with torch.autocast(place, number, enabled=number != torch.float32):
                    losses = task.losses(batch, "model")["tokens"].sum()
                torch.autograd.grad(losses, weights, allow_unused=True)

            taken.append(best(learn))
            works.append(scaling.flops(config, sum(each**2 for each in lengths) / tokens, tokens))
        layers[width] = works[0][0] * tokens / taken[0]
        head, spent = (works[1][1] - works[0][1]) * tokens, taken[1] - taken[0]
        # a difference of two measurements: noise must not make the head faster than twice the layers
        heads[width] = head / max(spent, head / (2 * layers[width]))
        one = config | {"num_hidden_layers": 1}
        matrices = [torch.nn.Parameter(torch.randn(shape, device=place)) for shape in scaling.matrices(one)]
        update = Muon([{"params": matrices, "muon_momentum": 0.95}], lr=1e-6)

        def step(matrices: list[Any] = matrices, update: Muon = update) -> None:
            for matrix in matrices:
                matrix.grad = matrix.detach()
            update.step()

        muon[width] = scaling.muon_flops(one) / best(step)
    return Speed(layers, heads, muon, parameter_seconds())


# --------------------------------------------------------------------------------------------------------------- choice


@dataclass(frozen=True)
class Given:
    """What is fixed before a size is chosen.

    different: tokens of the training text, infinite if it never ends. held: tokens of the validation text. context: the most tokens in a row;
    filled: the share of it that a row has on average, less where rows hold whole documents. length: tokens in a document, as the
    attention sees it. batch: tokens in an update of full rows, None to choose. memory: bytes there are for it all.
    """

    kind: str
    vocabulary: int
    memory: float
    hours: float | None = None
    depth: int | None = None
    different: float = math.inf
    held: float = math.inf
    context: int = 256
    filled: float = 1.0
    length: float = 256.0
    batch: int | None = None
    micro_batch: int = 2048
    muon: bool = True


@dataclass(frozen=True)
class Plan:
    """A training and what it costs. batch: tokens in an update whose rows are full. tokens: trained on. worth: new tokens that are as good. held: the most tokens of one validation.

    loss: nats a token by Hoffmann et al. loss_of_small: by Kaplan et al., as bits_per_byte too. Both are of decoders.
    """

    depth: int
    width: int
    parameters: int
    inside: int
    vocabulary: int
    batch: int
    context: int
    learning_rate: float
    steps: int
    tokens: int
    passes: float | None
    worth: float
    held: int
    seconds: float
    memory_bytes: int
    loss: float
    loss_of_small: float
    bits_per_byte: float


def config_of(kind: str, depth: int, vocabulary: int, context: int) -> dict[str, Any]:
    """The config.json of random weights; the embedding has a multiple of 64 rows, which products like."""
    describe = decoder.describe if kind == "gpt" else encoder.describe
    return describe(depth, 64 * math.ceil(vocabulary / 64), context)


def learning_rate(kind: str, width: int, muon: bool) -> tuple[float, str]:
    """(the peak for random weights, why): a decoder with Muon bears more than an encoder, or AdamW."""
    most = 1e-2 if kind == "gpt" and muon else 3e-3
    return most * min(1.0, 256 / width), f"random weights, {width} wide: {most:g} up to 256, then falling as 1 / width"


def weight_decay(rate: float, passes: float, steps_per_pass: int) -> tuple[float, str]:
    """(decay for a decoder's random weights, why): what is passed over often is learned by heart unless old updates fade.

    Weights under AdamW are a moving average of their updates, which fade to 1/e in 1 / (rate * decay) of them (Wang and Aitchison 2025).
    From eight passes on that is a pass, with fewer passes as many times longer (docs/pretraining.md has the figures), and never less than 50
    updates; the decay is 0.1 to 2, since under a low rate random weights would vanish before anything is learned.
    """
    fading = max(50.0, steps_per_pass * max(1.0, 8 / passes))
    value = min(2.0, max(0.1, float(f"{1 / (rate * fading):.2g}")))
    return value, f"{passes:.2g} passes: an update fades to 1/e in {1 / (rate * value):,.0f} updates"


def batch_tokens(tokens: float) -> int:
    """Tokens in an update: a power of two, some thousand updates over all tokens trained on."""
    return int(min(65_536, max(1024, 2 ** round(math.log2(max(1.0, tokens / 1000))))))


def choose(given: Given, machine: Speed) -> Plan:
    """The depth from 2 to 64 with the least expected loss in these hours; without hours the deepest that the text feeds.

    The law is that of Hoffmann et al. for budgets such as theirs (`scaling.FITTED`), below that of Kaplan et al. Without text the tokens are those that the depth asks for, 20 for each weight of its layers.

    Raises:
        UserError: nothing fits into the memory or the hours.
    """
    depths = range(2, 65) if given.depth is None else (given.depth,)
    plans = [plan_of(given, machine, depth) for depth in depths]
    fitting = [each for each in plans if each.memory_bytes <= given.memory]
    if not fitting:
        raise UserError(
            f"depth={plans[0].depth} takes {plans[0].memory_bytes / 1e9:.1f} GB, expected at most {given.memory / 1e9:.1f} GB",
            "give a smaller depth=, or more memory=",
        )
    if given.hours is None:
        fed = scaling.deepest(scaling.PASSES * given.different) if given.depth is None else given.depth
        return max((each for each in fitting if each.depth <= fed), key=lambda each: each.depth)
    in_time = [each for each in fitting if each.seconds <= given.hours * 3600 + LOOKS * LOOK_SECONDS]
    if not in_time:
        raise UserError(
            f"hours={given.hours:g}: one update at depth={fitting[0].depth} takes {fitting[0].seconds / 3600:.2g}",
            "give more hours=, or a smaller batch_size=",
        )
    small = 6 * in_time[0].parameters * in_time[0].tokens < scaling.FITTED
    return min(in_time, key=lambda each: each.loss_of_small if small else each.loss)


def plan_of(given: Given, machine: Speed, depth: int) -> Plan:
    """The training of one depth."""
    config = config_of(given.kind, depth, given.vocabulary, given.context)
    inside, rest = scaling.parameters(config)
    together = max(given.micro_batch, given.context)
    token, update = machine.token_seconds(config, given.length, together), machine.update_seconds(config, given.muon)

    def looked_at(tokens: float) -> float:
        return min(given.held, tokens * HELD)

    def size_of(tokens: float) -> int:
        return given.batch or max(1, batch_tokens(tokens) // given.context) * given.context

    def in_time(size: int) -> float:
        """Tokens that fit into the hours, validations and all, at so many an update."""
        room = max(0.0, (given.hours or 0) * 3600 * IN_TIME - LOOKS * LOOK_SECONDS)
        each = token + update / (size * given.filled)
        few = room / (each + LOOKS * HELD * token / 3)
        return few if few * HELD <= given.held else (room - LOOKS * given.held * token / 3) / each

    if given.hours is not None:
        sizes = [given.batch or max(1, 2**power // given.context) * given.context for power in range(10, 17)]
        size = next((each for each in sizes if each >= size_of(in_time(each))), sizes[-1])
        tokens = min(in_time(size), WORTHLESS * given.different)
    else:
        endless = given.different == math.inf
        tokens = scaling.TOKENS_PER_WEIGHT * inside if endless else scaling.PASSES * given.different
        size = size_of(tokens)
    steps = max(1, math.floor(tokens / (size * given.filled)))
    tokens = round(steps * size * given.filled)
    effective = scaling.worth(tokens, given.different)
    small = scaling.loss_of_small(inside, effective)
    return Plan(
        depth=depth,
        width=config["hidden_size"],
        parameters=inside + rest,
        inside=inside,
        vocabulary=config["vocab_size"],
        batch=size,
        context=given.context,
        learning_rate=learning_rate(given.kind, config["hidden_size"], given.muon)[0],
        steps=steps,
        tokens=tokens,
        passes=None if given.different == math.inf else tokens / given.different,
        worth=effective,
        held=math.ceil(looked_at(tokens)),
        seconds=tokens * token + steps * update + LOOKS * (looked_at(tokens) * token / 3 + LOOK_SECONDS),
        memory_bytes=int(PROGRAM + scaling.memory(config, min(size, together), given.muon)),
        loss=scaling.loss(inside + rest, tokens, given.different),
        loss_of_small=small,
        bits_per_byte=small / math.log(2) / scaling.BYTES_PER_TOKEN,
    )


def memory_of_machine() -> float:
    """Three quarters of what the machine, or its smallest GPU, has."""
    found = device.machine(gpus=True)
    return min((gpu.memory_bytes for gpu in found.gpus), default=found.memory_total) * 0.75


# -------------------------------------------------------------------------------------------------------------- command


def given_of(
    asked: Asked, context: int, vocabulary: int, rows: Mapping[str, Any] | None = None, tokens: float | None = None
) -> Given:
    """What settings and a text fix. rows: the text as `data.pack.Packed` by part. tokens: of a text that is not at hand, None without end."""
    options, model = asked.experiment.training, asked.experiment.model
    different = math.inf if tokens is None else tokens
    given = Given(
        kind=str(model.model),
        vocabulary=vocabulary,
        memory=memory_of_machine(),
        hours=options.hours,
        depth=model.depth,
        different=different,
        held=different * asked.experiment.data.validation_share,
        context=context,
        length=float(context),
        batch=options.batch_size and options.batch_size * context,
        micro_batch=options.micro_batch_tokens,
        muon=options.optimizer == "muon",
    )
    if rows is None:
        return given
    train, held = rows["train"], rows["validation"].size
    pieces = train.piece_lengths.astype(float)
    length, filled = float((pieces**2).sum() / pieces.sum()), train.size / len(train) / context
    return replace(given, different=train.size, held=held, length=length, filled=filled)


def planned(
    asked: Asked, opened: Open, rows: Mapping[str, Any], context: int, vocabulary: int, say: Say
) -> Plan | None:
    """What a training on these rows is planned as, if `hours=` alone says how long it is."""
    options = asked.experiment.training
    if options.hours is None or options.steps is not None or options.epochs is not None:
        return None
    precision, threads = (opened.settings[key].value for key in ("precision", "threads"))
    measured = speed(str(asked.experiment.model.model), str(precision), number(threads), say)
    if measured.busy is not None:
        say(
            f"warning: the machine was busy while its speed was measured (load {measured.busy:.1f}): a larger model may fit"
        )
    return choose(given_of(asked, context, vocabulary, rows), measured)


def plan(
    asked: Asked, tokens: float | None = None, memory: float | None = None, fresh: bool = False, say: Say = print
) -> dict[str, Any]:
    """`danlu plan`: `plan`, `assumed` (the same hours on GPUs), `busy`, `precision`, `threads`, JSON-ready.

    tokens: of the text, instead of data=. memory: bytes.

    Raises:
        UserError: as `choose`, and what stops a training.
    """
    options, data = asked.experiment.training, asked.experiment.data
    kind, machine = str(asked.experiment.model.model), device.machine(gpus=True)
    if kind not in ("gpt", "bert"):
        raise UserError(
            f"model={kind}: a plan is of random weights", "danlu plan gpt hours=0.5, danlu plan bert hours=0.5"
        )
    if tokens is not None and data.data is not None:
        raise UserError("tokens= and data= are given, and both say how much text there is", "keep one of them")
    for key in ("steps", "epochs"):
        if getattr(options, key) is not None:
            raise UserError(
                f"{key}= is what a plan finds", "leave it out; hours=, tokens= and depth= are what it starts from"
            )
    if (options.hours, asked.experiment.model.depth, tokens, data.data) == (None,) * 4:
        raise UserError(
            "a plan needs hours=, depth=, tokens= or data=", "for example `danlu plan hours=0.5`, `danlu plan depth=8`"
        )
    opened = Open(asked).settings
    precision, threads = str(opened["precision"].value), number(opened["threads"].value)
    measured = speed(kind, precision, threads, say, fresh)
    if data.data is not None:
        prepared = prepare(asked, say=say)
        context = prepared.experiment.data.max_tokens or 0
        given = given_of(asked, context, prepared.processor.size, prepared.rows)
    else:
        if data.tokenizer and data.vocabulary:
            raise UserError("tokenizer= is ready, so there is no vocabulary= to learn", "leave one of them out")
        size = Tokenizer.load(tokenizer_folder(data.tokenizer, say)).size if data.tokenizer else data.vocabulary
        given = given_of(asked, data.max_tokens or 256, size or 8192, tokens=tokens)
    given = replace(given, memory=memory or given.memory)
    if data.data is None and size is None:
        text = given.different if tokens is not None else choose(given, measured).tokens
        given = replace(given, vocabulary=usual_size(int(text * 4)))  # about four bytes a token
    found = choose(given, measured)
    hours, assumed = given.hours or found.seconds / 3600, {}
    for count in (1, 8):
        rate = {512: GPU_FLOPS * GPU_SHARE * count}
        gpus = Speed(rate, rate, rate, GPU_PARAMETER_SECONDS / count)
        assumed[count] = asdict(choose(replace(given, hours=hours, depth=None, memory=GPU_MEMORY * count * 0.75), gpus))
    return {
        "kind": kind,
        "hours": given.hours,
        "different": None if given.different == math.inf else given.different,
        "plan": asdict(found),
        "memory_bytes": given.memory,
        "assumed": assumed,
        "busy": measured.busy,
        "precision": precision,
        "threads": threads,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "command": command(asked, given, found, memory is not None),
    }


def command(asked: Asked, given: Given, found: Plan, limited: bool) -> str:
    """The training that was planned, as a command."""
    mine = {key for key, each in asked.settings.items() if not each.origin.startswith("recipe ")} - {"depth", "hours"}
    kept = {"data": "my.jsonl"} | {key: value for key, value in asked.values().items() if key in mine} | asked.extra
    if given.depth or limited or given.hours is None:
        kept["depth"] = found.depth
    if given.hours is not None:
        kept["hours"] = f"{given.hours:g}"
    words = [f"{key}={written(value)}" for key, value in kept.items()]
    return shlex.join(["danlu", "pretrain", given.kind, *words])


def written(value: Any) -> str:
    """A setting as it stands on the command line."""
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def in_words(found: Mapping[str, Any]) -> str:
    """The plan as a person reads it."""
    from danlu.training.hooks import clock

    each = Plan(**found["plan"])
    time = clock(each.seconds) if each.seconds < 172_800 else f"{each.seconds / 86_400:,.1f} days"
    lines = [
        f"{found['kind']} on {found['cpu']}, {found['threads']} threads, {found['precision']}",
        f"depth {each.depth}: {each.width} wide, {each.parameters / 1e6:,.2f} M weights, {each.inside / 1e6:,.2f} M of them inside the layers; vocabulary {each.vocabulary:,}",
        f"{each.steps:,} updates of {each.tokens // each.steps:,} tokens in rows of up to {each.context}, learning rate {each.learning_rate:.2g}",
        f"{each.tokens:,} tokens: " + passes_in_words(each, found["different"]),
        f"time {time} with {LOOKS} validations (the test at the end comes after it); memory {each.memory_bytes / 1e9:.2f} GB of {found['memory_bytes'] / 1e9:.1f} usable",
        expected(each, found["kind"]),
        f"the same hours on GPUs, assumed and not measured ({GPU}: {GPU_FLOPS / 1e12:.0f} TFLOP/s of bfloat16 by its data sheet, {GPU_SHARE:.0%} of it reached, as with Llama 3, which small models do not reach):",
    ]
    for count, other in found["assumed"].items():
        there = Plan(**other)
        passes = "" if there.passes is None else f", {there.passes:.2g} passes"
        size = f"{there.parameters / 1e6:,.0f} M weights, {there.tokens / 1e6:,.0f} M tokens{passes}"
        lines.append(f"  {count} GPU{'s' * (count != 1)}: depth {there.depth}, {size}")
    if found["busy"] is not None:
        lines.append(
            f"warning: the machine was busy while its speed was measured (load {found['busy']:.1f} on {found['cores']} cores), "
            "so training alone will be faster; `danlu plan fresh=yes` measures again"
        )
    return "\n".join([*lines, f"train it: {found['command']}"])


def passes_in_words(each: Plan, different: float | None) -> str:
    """How often the text is gone through, and what that is worth."""
    if each.passes is None or different is None:
        return "all of them new, one pass over a text that large"
    said = f"{each.passes:.2g} passes over {different:,.0f}"
    if each.passes <= 1:
        return said
    said += f", worth {each.worth:,.0f} new ones (Muennighoff et al. 2023)"
    if each.passes > WORTHLESS - 1:
        return f"{said}; it ends there, before its time, since more passes teach nothing"
    return said + ("; more text would serve better than more time" if each.worth < each.tokens / 2 else "")


def expected(each: Plan, kind: str) -> str:
    """What the laws say of it, and how far they carry."""
    if kind != "gpt":
        return "expected loss: there is no law of masked models; the size is chosen as for a decoder"
    if 6 * each.parameters * each.tokens >= scaling.FITTED:
        return f"expected by Hoffmann et al. 2022 (constants of Besiroglu et al. 2024): {each.loss:.2f} nats a token of their tokenizer"
    return (
        f"expected by Kaplan et al. 2020: {each.loss_of_small:.2f} nats a token of their tokenizer, {each.bits_per_byte:.2f} bits per byte; "
        "fitted on English web pages, trained until nothing more is learned, and on 20 M tokens or more, so yours will differ. "
        f"Hoffmann et al. 2022 (constants of Besiroglu et al. 2024), fitted on a hundred times as much and more, would say {each.loss:.1f} nats"
        + (", more than guessing costs" if each.loss > math.log(each.vocabulary) else "")
    )

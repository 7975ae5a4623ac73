"""The command line: one command a stage, `key=value` everywhere. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TextIO

from danlu.core.errors import Interrupted, UserError, nearest
from danlu.stages.terminal import compared, headed, indented, one_answer, table


@dataclass(frozen=True)
class Call:
    """What stands behind `danlu COMMAND`. words: without `=`. settings: key=value. json, debug: the two switches.

    stdout: where the result goes. Under --json it is all that goes there: whatever else is printed goes to stderr meanwhile.
    """

    words: list[str]
    settings: dict[str, str]
    json: bool = False
    debug: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    def take(self, **known: Callable[[str], Any]) -> dict[str, Any]:
        """The settings of a command that has its own keys, converted; an unknown one is an error."""
        result = {}
        for key, value in self.settings.items():
            if key not in known:
                raise UserError(f"unknown key {key!r}", nearest(key, known) if known else "this command has no keys")
            try:
                result[key] = known[key](value)
            except ValueError:
                expected = {int: "a whole number", float: "a number"}.get(known[key], "another value")  # type: ignore[call-overload]
                raise UserError(f"{key}: found {value!r}, expected {expected}", f"for example {key}=1") from None
        return result

    def run(self, usage: str) -> Any:
        """The one run that the command is about."""
        from danlu.core.run import open_run

        if not self.words:
            raise UserError("no run named", usage)
        return open_run(self.words[0])

    def output(self, content: Any, text: Callable[[Any], str]) -> None:
        """The result: for a program, or in words."""
        from danlu.core.cache import as_json

        shown = as_json(content, indent=1, default=str) if self.json else text(content)
        print(shown, file=self.stdout, flush=True)


@dataclass(frozen=True)
class Command:
    """One line of `danlu --help`."""

    usage: str
    about: str
    action: Callable[[Call], int | None]


def asked(call: Call) -> Any:
    from danlu.experiment import ask
    from danlu.recipes.catalogue import RECIPES

    return ask(RECIPES.get, call.words, call.settings, extra=("out",))


def pretrain(call: Call) -> None:
    found = asked(call)
    if found.experiment.task.task in ("chat", "text-classification"):
        raise UserError(
            f"{found.recipe} starts from pretrained weights",
            f"danlu finetune {found.recipe}; from random weights: danlu pretrain gpt, danlu pretrain bert",
        )
    finetune(call)


def finetune(call: Call) -> None:
    from danlu.stages.train import finetune as stage

    run = stage(asked(call))
    finished(call, run)


def finished(call: Call, run: Any) -> None:
    from danlu.models.options import CODE
    from danlu.stages.inspect import one_run

    def next_step(found: dict[str, Any]) -> str:
        ways = {
            "chat": "chat {}",
            "text-classification": "predict {} 'a text'",
            "language-model": "predict {} 'a beginning'",
            "masked-language-model": "predict {} 'a [MASK] text'",
            "gan": "predict {} out=new.png",
        }
        way = "danlu " + ways.get(found["task"], "predict {} IMAGE").format(found["run"])
        given = (call.settings.get(key, "") for key in ("network", "model", "init"))  # never what the run says
        way += next((f" network={code}" for code in given if CODE.fullmatch(code)), "")
        return f"run: {found['run']}  (try it: {way})"

    call.output(one_run(run), next_step)


def prepare(call: Call) -> None:
    what = {"corpus": prepare_corpus, "tokenizer": prepare_tokenizer, "vectors": prepare_vectors}
    name = call.words[0] if call.words else ""
    if name not in what:
        raise UserError(f"found prepare {name}".rstrip() + f", expected one of {', '.join(what)}", nearest(name, what))
    what[name](replace(call, words=call.words[1:]))


def corpus_keys() -> str:
    from danlu.data.options import CleaningOptions, CorpusOptions

    every = (*fields(CleaningOptions), *fields(CorpusOptions))
    rows = [{"key": one.name, "default": one.default, "about": one.metadata["about"]} for one in every]
    return table(rows, ("key", "default", "about"))


def prepare_corpus(call: Call) -> None:
    from danlu.core.config import Setting
    from danlu.experiment import read_yaml
    from danlu.stages.curate import corpus, summary

    asked: dict[str, Any] = {}
    for file in call.words:
        asked |= {key: Setting(value, f"file {file}") for key, value in read_yaml(Path(file)).items()}
    asked |= {key: Setting(value, "command line") for key, value in call.settings.items()}
    if "out" not in asked:
        raise UserError("out= is missing", "danlu prepare corpus data=FOLDER out=FOLDER")
    out = Path(str(asked.pop("out").value))
    call.output(corpus(asked, out), lambda found: "\n".join([*summary(found), f"corpus: {out}"]))


def prepare_tokenizer(call: Call) -> None:
    from danlu.stages.tokenizer import figures, tokenizer

    usage = "tokenizer data=FILE out=DIR [kind=bpe|wordpiece|unigram] [size=N] [segment=jieba|words] …"
    keys = learned_keys(call, usage, specials=str, lowercase=str, size=int, validation_share=float)
    if (lowercase := keys.get("lowercase", "false")) not in ("true", "false"):
        raise UserError(f"lowercase: found {lowercase!r}, expected true or false", "lowercase=true")
    found = tokenizer(**keys | {"lowercase": lowercase == "true"})
    call.output(found, lambda found: f"{headed(figures(found))}\ntokenizer: {keys['out']}")


def prepare_vectors(call: Call) -> None:
    from danlu.stages.vectors import figures, vectors

    usage = "vectors data=FILE out=DIR [kind=word2vec|fasttext] [width=N] [segment=jieba|words] …"
    keys = learned_keys(call, usage, **dict.fromkeys(("width", "window", "min_count", "epochs"), int))
    found = vectors(**keys)
    call.output(found, lambda found: f"{headed(figures(found))}\nvectors: {keys['out']}")


def learned_keys(call: Call, usage: str, **more: Callable[[str], Any]) -> dict[str, Any]:
    """The settings of what is learned from texts into a folder."""
    if call.words:
        raise UserError(f"found {' '.join(call.words)}, expected key=value", f"danlu prepare {usage}")
    texts = dict.fromkeys(("data", "kind", "text", "segment", "bad_rows"), str)
    keys = call.take(**texts, **more, out=Path, seed=int)
    if missing := [key for key in ("data", "out") if key not in keys]:
        raise UserError(f"{missing[0]}= is missing", f"danlu prepare {usage}")
    return keys


def preflight(call: Call) -> None:
    from danlu.stages.preflight import preflight as stage

    found = stage(asked(call))
    if call.json:
        call.output(found, str)


def plan(call: Call) -> None:
    from danlu.stages import plan as stage

    own: dict[str, Callable[[str], Any]] = {
        "tokens": float,
        "memory": float,
        "fresh": lambda value: value in ("yes", "true"),
    }
    mine = replace(call, settings={key: value for key, value in call.settings.items() if key in own}).take(**own)
    rest = {key: value for key, value in call.settings.items() if key not in own}
    if "tokens" in mine and not 1 <= mine["tokens"] < 1e15:
        raise UserError(f"tokens={call.settings['tokens']}, expected 1 to 1e15", "for example tokens=5e6")
    if "memory" in mine:
        if not 0 < mine["memory"] < 1e9:
            raise UserError(f"memory={call.settings['memory']}, expected gigabytes above 0", "for example memory=8")
        mine["memory"] *= 1e9
    asked_for = asked(replace(call, words=call.words or ["gpt"], settings=rest))
    call.output(stage.plan(asked_for, **mine), stage.in_words)


def resume(call: Call) -> None:
    from danlu.stages.train import go_on

    if settings := call.settings.keys() - {"network"}:
        raise UserError(
            f"resume takes no settings, found {' '.join(sorted(settings))}",
            "a run goes on as it began; to train longer, give the finetune command again with more steps= and its out=",
        )
    run = call.run("danlu resume RUN")
    finished(call, go_on(run, None, print, network=call.settings.get("network")))


def evaluate(call: Call) -> None:
    from danlu.stages.evaluate import evaluate as stage
    from danlu.stages.evaluate import summary

    keys = call.take(data=str, answers=int, text=str, label=str, network=str)
    result = stage(call.run("danlu evaluate RUN [data=FILE]"), **keys)
    call.output(result, lambda found: "\n".join(summary(found)))


SAMPLING = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "seed": int,
    "repetition_penalty": float,
}


def predict(call: Call) -> None:
    from danlu.stages.predict import predict as stage

    keys = call.take(data=str, text=str, out=str, count=int, network=str, **SAMPLING)
    run = call.run("danlu predict RUN 'a text' | data=FILE")
    data = keys.pop("data", None)
    if (data is None) == (len(call.words) < 2) and run.read("run.json")["task"] != "gan":
        raise UserError("expected texts or data=FILE, one of the two", "danlu predict RUN 'a text' 'another'")
    result = stage(run, call.words[1:] or None, data, **keys)
    call.output(result, lambda found: "\n".join(one_answer(each) for each in found))


def chat(call: Call) -> None:
    from danlu.stages.predict import chat as stage

    keys = call.take(**SAMPLING)
    stage(call.run("danlu chat RUN"), **keys)


def serve(call: Call) -> None:
    from danlu.stages.serve import serve as stage

    limits = {"queue": int, "max_body_mb": float, "max_inputs": int, "request_seconds": int, "grace_seconds": int}
    keys = call.take(host=str, port=int, key=str, network=str, **limits)
    run = call.run("danlu serve RUN [port=N]")

    def ready(found: dict[str, Any]) -> None:
        call.output(found, lambda _: "{model} at {url} (Ctrl-C stops it); try it:\n  {try}".format(**found))

    stage(run, ready, **keys)


def merge(call: Call) -> None:
    from danlu.stages.merge import merge as stage

    keys = call.take(out=Path)
    finished(call, stage(call.run("danlu merge RUN [out=DIR]"), keys.get("out")))


def export(call: Call) -> None:
    from danlu.stages.export import export as stage

    keys = call.take(out=Path, format=str, dtype=str)
    run = call.run("danlu export RUN [format=gguf] [out=FILE.gguf]")
    found = stage(run, keys.get("out"), keys.get("format", "gguf"), keys.get("dtype", "float32"))

    def shown(found: dict[str, Any]) -> str:
        lines = ["{file}: {megabytes:,.1f} MB, {dtype}".format(**found, megabytes=found["bytes"] / 1e6)]
        if found["system"]:
            lines.append(f"its system message is not in the file, give it where you ask: {found['system']!r}")
        more = "-cnv" if found["task"] == "chat" else "-no-cnv -p 'a beginning'"
        return "\n".join([*lines, f"  (try it: llama-cli -m {found['file']} {more})"])

    call.output(found, shown)


def report(call: Call) -> None:
    from danlu.stages.report import write

    call.take()
    page = write(call.run("danlu report RUN").path)
    call.output({"report": str(page)}, lambda found: str(found["report"]))


def runs(call: Call) -> None:
    from danlu.core.run import HOME, open_run
    from danlu.stages import inspect

    call.take()
    verb, *names = call.words or ["list"]
    if verb not in ("list", "compare", "delete") and not names:
        verb, names = "list", [verb]
    if verb == "list" and len(names) < 2:
        columns = ("run", "status", "recipe", "model", "steps", "validation_loss", "created")
        looked = f"in {Path(*names).absolute()}" + ("" if names else f" nor in {HOME.absolute()}")
        nothing = f"no runs {looked}; `danlu runs FOLDER` looks elsewhere"
        call.output(
            inspect.runs(Path(names[0]) if names else None), lambda found: table(found, columns) if found else nothing
        )
    elif verb == "compare" and len(names) == 2:
        call.output(inspect.compare_runs(open_run(names[0]), open_run(names[1])), compared)
    elif verb == "delete" and names:
        removed = [str(inspect.remove(name).path) for name in names]
        call.output({"deleted": removed}, lambda found: "\n".join(f"deleted {path}" for path in found["deleted"]))
    else:
        raise UserError(
            f"found {' '.join(call.words)}", "danlu runs [FOLDER] | danlu runs compare ONE TWO | danlu runs delete RUN…"
        )


def show(call: Call) -> None:
    from danlu.core.run import HOME, is_run, open_run
    from danlu.stages import inspect

    name = call.words[0] if call.words else ""
    if name and not call.settings and (is_run(Path(name)) or is_run(HOME / name)):
        found = inspect.settings_of(open_run(name))
    else:
        found = inspect.settings_asked(asked(call))
    rows = [{"key": key, **entry} for key, entry in found.items()]
    call.output(found, lambda _: table(rows, ("key", "value", "origin", "about")))


def models(call: Call) -> None:
    from danlu.stages import inspect

    call.take()
    rows = inspect.models()
    shown = [
        {**row, "parameters": f"{row['parameters'] / 1e6:,.0f} M", "languages": ",".join(row["languages"])}
        for row in rows
    ]
    columns = ("name", "parameters", "context", "languages", "licence", "about")
    note = "\na folder, a .gguf file, a hub name (owner/model) or a run works as well: model=…"
    call.output(rows, lambda _: table(shown, columns) + note)


def recipes(call: Call) -> None:
    from danlu.recipes.catalogue import described

    call.take()
    call.output(described(), lambda found: table(found, ("recipe", "about", "sets")))


def doctor(call: Call) -> None:
    from danlu.stages import inspect

    call.take()
    call.output(inspect.doctor(), indented)


COMMANDS = {
    "pretrain": Command(
        "RECIPE|FILE.yaml [key=value …] [out=DIR]",
        "the same from random weights: gpt, bert, mlp, resnet18, autoencoder, gan",
        pretrain,
    ),
    "finetune": Command(
        "RECIPE|FILE.yaml [key=value …] [out=DIR]", "train, keep the best, measure it, write the page", finetune
    ),
    "prepare": Command(
        "corpus|tokenizer|vectors data=FILE|FOLDER out=DIR [key=value …]",
        "raw text to a clean, tokenized corpus; or a tokenizer, or word vectors, learned from text",
        prepare,
    ),
    "preflight": Command(
        "RECIPE|FILE.yaml [key=value …]", "what would be learned, dropped and spent, without training", preflight
    ),
    "plan": Command(
        "[gpt|bert] [hours=H] [depth=N] [tokens=N|data=FILE] [memory=GB] [fresh=yes] [key=value …]",
        "the size of a language model for the time, memory and text there are; or the time for a size",
        plan,
    ),
    "resume": Command("RUN [network=module:object]", "go on where a run stopped, bit for bit", resume),
    "evaluate": Command(
        "RUN [data=FILE [text=COLUMN label=COLUMN]] [answers=N]", "figures with intervals on held-out rows", evaluate
    ),
    "predict": Command(
        "RUN [--] TEXT|IMAGE … | data=FILE [text=COLUMN] [max_new_tokens=N temperature=T …] [out=FILE.png count=N]",
        "labels, answers or images",
        predict,
    ),
    "chat": Command("RUN [temperature=T …]", "talk to it", chat),
    "serve": Command("RUN [host=127.0.0.1] [port=8000] …", "answer over HTTP: OpenAI's protocol or /v1/predict", serve),
    "merge": Command("RUN [out=DIR]", "add an adapter into its base: a run of its own", merge),
    "export": Command(
        "RUN [format=gguf] [out=FILE.gguf] [dtype=float32|float16|q8_0]",
        "a language model as one file for llama.cpp and what is built on it",
        export,
    ),
    "report": Command("RUN", "write the page of a run again", report),
    "runs": Command("[FOLDER | compare ONE TWO | delete RUN …]", "list, compare or delete runs", runs),
    "show": Command(
        "RUN|FILE.yaml|RECIPE [key=value …]", "every setting, its value, its origin and what it means", show
    ),
    "models": Command("", "pretrained models that install by name", models),
    "recipes": Command("", "experiments to start from", recipes),
    "doctor": Command("", "what this machine has, what is missing, what it can train", doctor),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = ["danlu: from data to a model of your own", "", "usage: danlu COMMAND [key=value …] [--json] [--debug]", ""]
    lines += [f"  {name.ljust(width)}  {command.about}" for name, command in COMMANDS.items()]
    lines += ["", "`danlu COMMAND --help` says more. First steps: danlu doctor; danlu finetune chat data=my.jsonl"]
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> Call:
    """Words, key=value settings and switches; behind `--` everything is a word, whatever it looks like."""
    words: list[str] = []
    settings: dict[str, str] = {}
    switches = {"json": False, "debug": False}
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, value = argument.partition("=")
        if argument == "--":
            words += waiting
        elif argument.startswith("--"):
            if argument[2:] not in switches:
                raise UserError(
                    f"unknown switch {argument}", "settings are written key=value; switches are --json and --debug"
                )
            switches[argument[2:]] = True
        elif equals and key.isidentifier():
            if key in settings:
                raise UserError(f"{key}= is given twice", "keep one of them")
            settings[key] = value
        else:
            words.append(argument)
    return Call(words, settings, json=switches["json"], debug=switches["debug"])


RESUMABLE = ("finetune", "pretrain", "resume", "prepare")


def stopped(arguments: Sequence[str] | None) -> int:
    """The exit code after Ctrl-C; another one, while the process ends, ends it without a traceback."""
    if arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 2 bad input, 130 stopped by Ctrl-C with everything saved."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    if given[0] == "--version":
        from importlib.metadata import version

        print(f"danlu {version('danlu')}")
        return 0
    debug = "--debug" in given
    try:
        name, *rest = given
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}", nearest(name, COMMANDS))
        command = COMMANDS[name]
        if "--help" in rest or "-h" in rest:
            print(f"danlu {name} {command.usage}\n  {command.about}")
            if name == "prepare":
                print(f"\nkeys of prepare corpus:\n{corpus_keys()}")
            elif "key=value" in command.usage:
                print("  `danlu show chat` lists every key, its default and what it means")
            return 0
        call = parse(rest)
        with contextlib.redirect_stdout(sys.stderr) if call.json else contextlib.nullcontext():
            return command.action(call) or 0
    except UserError as error:
        if debug:
            raise
        print(f"danlu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command again begins, or goes on with what there is" if name in RESUMABLE else ""
        print(f"\ndanlu: stopped{again}", file=sys.stderr)
        return stopped(arguments)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Interrupted as error:
        print(f"danlu: {error}", file=sys.stderr)
        return stopped(arguments)
    except Exception as error:
        if debug:
            raise
        print(
            f"danlu: a fault in danlu: {type(error).__name__}: {error}\n  fix: run it again with --debug and report what it prints",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""``--help``: flags under the headings of their schema's fields, verbs by what they are for, and two examples each."""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from geffect.errors import GeffectError
from geffect.io.terminal import say

RUN, LOOK, PREPARE, HELP = "Run", "Look at runs", "Prepare", "Help"
OTHER = "Other"  # the heading of --help and of flags without a field
_SETS = "--forget builtin:authors/forget --retain builtin:authors/retain"
EXAMPLES = {
    "demo": ("geffect demo", "geffect demo --grail --out runs/both"),
    "unlearn": (
        f"geffect unlearn --model builtin:tiny {_SETS} --objective npo --rectifier gru --out runs/npo-gru",
        "geffect unlearn --model ORG/NAME --forget forget.jsonl --retain retain.jsonl --heldout heldout.jsonl "
        "--objective 'ga + 3*gd' --steps 100 --out runs/mine",
    ),
    "finetune": (
        "geffect finetune --model builtin:tiny-untrained --train builtin:authors/forget --epochs 20 --out runs/start",
        "geffect finetune --model ORG/NAME --train mine=mine.jsonl --lora 8 --until-accuracy 0.95 --out runs/start",
    ),
    "localize": (
        "geffect localize --model builtin:tiny-domains --domain privacy=builtin:domains/privacy --out runs/masks",
        "geffect localize --model ORG/NAME --domain mine=forget.jsonl,retain.jsonl --share 0.2 --out runs/masks",
    ),
    "inspect": (
        "geffect inspect runs/mine --objective npo --objective ga --out runs/mine-inspected",
        "geffect inspect epoch-1 epoch-2 --start ORG/NAME --forget forget.jsonl --retain retain.jsonl --objective ga "
        "--out runs/inspected",
    ),
    "evaluate": (
        "geffect evaluate --model runs/mine --suite builtin --out runs/scores",
        "geffect evaluate --model ORG/NAME --set forget=forget.jsonl --set heldout=heldout.jsonl --metric accuracy "
        "--metric rouge_l_recall --out runs/scores",
    ),
    "compare": (
        "geffect compare runs/mine runs/npo-gru --at 3",
        "geffect compare runs/mine --simulate gru --simulate pcgrad",
    ),
    "plot": ("geffect plot runs/mine", "geffect plot runs/mine runs/npo-gru --scheme paper --out figures"),
    "report": ("geffect report runs/mine", "geffect report runs/mine runs/npo-gru --out report.html"),
    "check": (
        "geffect check runs/mine --max-harm retain=0.1",
        "geffect check runs/mine --min-forget 1 --max-harm heldout=0.05 --json",
    ),
    "monitor": ("geffect monitor runs/mine", "geffect monitor runs --every 10 --once"),
    "preview": (
        "geffect preview --model builtin:tiny --set 'builtin:authors/forget[:2]'",
        "geffect preview --model ORG/NAME --set forget.jsonl --question-column prompt --answer-column completion",
    ),
    "doctor": (
        f"geffect doctor --model builtin:tiny {_SETS}",
        "geffect doctor --model ORG/NAME --forget forget.jsonl --retain retain.jsonl --objective npo --dtype bfloat16",
    ),
    "import-config": (
        "geffect import-config saves/unlearn/tofu_npo",
        "geffect import-config saves/unlearn/tofu_npo --out npo.yaml",
    ),
    "list": ("geffect list objectives", "geffect list sets"),
    "cite": ("geffect cite gru", "geffect cite > references.bib"),
}


WHOLE = "\u2011"  # stands for a hyphen while lines are broken, so that none is broken at it
CONTEXT: Any = TyperCommand.context_class
FORMATTER: Any = CONTEXT.formatter_class
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # Typer does not export it


class Formatter(FORMATTER):  # type: ignore[misc]
    """Help in lines that end between words, never at the hyphen of a flag."""

    def write_text(self, text: str) -> None:
        """A paragraph."""
        super().write_text(text.replace("-", WHOLE))

    def write_dl(self, rows: Any, *args: Any, **kwargs: Any) -> None:
        """Flags or verbs, each with its description."""
        super().write_dl([(name, text.replace("-", WHOLE)) for name, text in rows], *args, **kwargs)

    def write(self, string: str) -> None:
        """A part of a line, with its hyphens."""
        super().write(string.replace(WHOLE, "-"))


class Context(CONTEXT):  # type: ignore[misc]
    """A context that writes help by `Formatter`."""

    formatter_class = Formatter


@contextlib.contextmanager
def refusals(context: Any) -> Iterator[None]:
    """Raise what Typer refuses as a `GeffectError`, with the nearest name; help for want of arguments passes."""
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        message = error.format_message().rstrip(".").split(", unable")[0]
        if close := getattr(error, "possibilities", None):
            message = f"No such option: {error.option_name}. Did you mean {close[0]}?"
        raise GeffectError(message, remedy=f"See {context.command_path} --help") from None


class VerbCommand(TyperCommand):
    """A command with flags under headings and examples, which refuses a flag of one value that stands twice.

    Typer's own keeps the last value, and drops the first silently.
    """

    context_class = Context

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does; raise GeffectError where it refuses, or where a flag of one value stands twice."""
        from geffect.io.readers import duplicate

        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        with refusals(ctx):
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            options = (each for each in order if isinstance(each, TyperOption))
            once = (each.opts[0] for each in options if not (each.multiple or each.count))
            if (flag := duplicate(once)) is not None:
                raise GeffectError(f"{flag} stands twice", remedy="Leave one of them out")
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Ctrl-C before its work begins ends it in one line, too."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("geffect: stopped by Ctrl-C")
            raise typer.Exit(130) from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then every heading with its flags, in the order of the parameters."""
        records = [(_heading(each), record) for each in self.get_params(ctx) if (record := each.get_help_record(ctx))]
        for heading, group in groupby(records, key=lambda each: each[0]):
            with formatter.section(heading):
                formatter.write_dl([record for _, record in group])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, broken between a flag and the next."""
        with formatter.section("Examples"):
            for text in EXAMPLES[self.name or ""]:
                formatter.write("\n".join(_broken(text, formatter.width)) + "\n")


def _heading(parameter: Any) -> str:
    """The heading under which a parameter stands; Typer keeps it for its own panels."""
    return "Arguments" if parameter.param_type_name == "argument" else parameter.rich_help_panel or OTHER


def _broken(command: str, width: int) -> Iterable[str]:
    """A command in lines of at most ``width``, indented; each but the last ends in a backslash, as a shell reads it."""
    line = " "
    for part in command.replace(" --", "\n--").split("\n"):
        if len(line) + len(part) + 3 > width:
            yield f"{line} \\"
            line = "   "
        line += f" {part}"
    yield line


class VerbGroup(TyperGroup):
    """Commands whose flags are made once one of them is named: the schemas take half of what ``--help`` may take.

    Attributes:
        made: verb → what makes its command.
    """

    made: dict[str, Any]
    context_class = Context

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer's; raise GeffectError where it refuses."""
        with refusals(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As Typer's, with a verb's flags."""
        with refusals(ctx):
            name, command, rest = super().resolve_command(ctx, args)
        return name, self.made[name]() if name in self.made else command, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Every heading with its verbs, each with the first line of its help."""
        commands: list[tuple[str, Any]] = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        order = [RUN, LOOK, PREPARE, HELP]
        commands.sort(key=lambda each: (order.index(each[1].rich_help_panel), list(EXAMPLES).index(each[0])))
        width = max(len(name) for name, _ in commands)
        for heading, group in groupby(commands, key=lambda each: each[1].rich_help_panel):
            with formatter.section(heading):
                formatter.write_dl([(f"{name:<{width}}", (each.help or "").split("\n")[0]) for name, each in group])

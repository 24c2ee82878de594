"""eval and report: how good runs are, beside their base, and what they were."""

from typing import Annotated

import typer

from glmtune.cli.options import DtypeOption, FieldOption, ModelOption, QuantizeOption, not_empty, parse_fields
from glmtune.cli.setting_up import hide_loading_bars, outlive_display
from glmtune.language import localise
from glmtune.language.terminal import TerminalConsole

app = typer.Typer()


@app.command(name="eval")
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", callback=not_empty, help="Run folders, checkpoints in one, or base model folders."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", callback=not_empty, help="Data with reference answers, in any training format. Repeatable."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, help="The most rows to evaluate on; of more, as many are drawn.")
    ] = 500,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--choices",
            callback=not_empty,
            help="Multiple-choice questions, a CSV file as of C-Eval or MMLU. Repeatable.",
        ),
    ] = None,
    general: Annotated[
        bool, typer.Option("--general", help="Ask built-in general questions too, to see what was forgotten.")
    ] = False,
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="Only compute losses, and answer nothing.")
    ] = False,
    no_base: Annotated[bool, typer.Option("--no-base", help="Do not evaluate the base beside its adapter.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", callback=not_empty, help="Folder for the results; by default evaluation in each run folder."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", min=1, help="Most tokens of an answer; by default 32 more than the longest reference."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="The most questions at once; by default what suits the device.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed for drawing the rows.")] = 0,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
    field: FieldOption = None,
) -> None:
    """Say how good runs are, and whether they are better than their base.

    For example: glmtune eval output/ChatGLM --data test.json --count 200
    """
    fields = parse_fields(field)
    from glmtune.evaluation.evaluate import evaluate as run_evaluation
    from glmtune.evaluation.terminal import print_evaluation, stages_on

    outlive_display()
    hide_loading_bars()
    evaluation = run_evaluation(
        runs,
        data or None,
        count=count,
        choices=choices or (),
        general=general,
        generate=not no_generate,
        base=not no_base,
        output=output,
        seed=seed,
        fields=fields,
        model_path=model,
        dtype=dtype,
        quantize=quantize,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        stages=stages_on(TerminalConsole(stderr=True)),
    )
    print_evaluation(evaluation, TerminalConsole())


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", callback=not_empty, help="A run folder, or several to be compared."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            callback=not_empty,
            help="Folder for report.html and report.md; by default the run folder, for several runs this one.",
        ),
    ] = None,
) -> None:
    """Write the report of a run again, or compare several runs.

    For example: glmtune report output/first output/second --output comparison
    """
    from glmtune.report.write import write_report

    typer.echo(localise(f"report: {write_report(runs, output)}"))

"""`oca ai`: ask models, and serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2, model_pb2
from onecontainer.cli.job import end_of, follow, options_of, show
from onecontainer.cli.options import FILE, JSON, JSON_PAIR, job_options
from onecontainer.cli.render import enum_name, size
from onecontainer.cli.session import Session, connected
from onecontainer.cli.tensors import shown
from onecontainer.client.ai import InputLike
from onecontainer.client.names import short_name

FORMS = {
    "classes": inference_pb2.OUTPUT_KIND_CLASSIFICATION,
    "tensors": inference_pb2.OUTPUT_KIND_TENSORS,
    "json": inference_pb2.OUTPUT_KIND_JSON,
}


@click.group()
def ai() -> None:
    """Ask models, and serve them. SERVICE is a registered service whose driver is of scope ai.

    \b
    Examples:
      oca ai predict cats photo.jpg --top 3
      oca ai models cats
      oca ai serve cats mynet --artifact artifacts/01jd… --format onnx --wait
    """


@ai.command()
@click.argument("service")
@click.argument("inputs", nargs=-1)
@click.option("--text", multiple=True, help="A text as input; may be repeated.")
@click.option("--json", "json_", type=JSON, multiple=True, help="JSON as input, @FILE or - ; may be repeated.")
@click.option("--model", "-m", default="", help="Default: the service's default model.")
@click.option("--version", default="", help="Default: the model's default version.")
@click.option("--top", type=click.IntRange(1, 1000), default=5, show_default=True, help="Classes per input.")
@click.option(
    "--form",
    type=click.Choice(list(FORMS)),
    help="Form of the answer. Default: classes of a classifier, else what the model gives.",
)
@click.option(
    "--parameter", "parameters", type=JSON_PAIR, multiple=True, help="KEY=VALUE for the model; may be repeated."
)
@connected
def predict(
    session: Session,
    service: str,
    inputs: tuple[str, ...],
    text: tuple[str, ...],
    json_: tuple[list[Any], ...],
    model: str,
    version: str,
    top: int,
    form: str | None,
    parameters: tuple[tuple[str, Any], ...],
) -> None:
    """Ask a model of SERVICE about INPUTS: image files, or `artifacts/…` names.

    \b
    Examples:
      oca ai predict cats photo.jpg other.png --top 3
      oca ai predict words --text "a cat"
    """
    found: list[InputLike] = [value if value.startswith("artifacts/") else _file(value) for value in inputs]
    found += text
    found += [item for values in json_ for item in values]
    if not found:
        raise click.UsageError("no input: name an image file, or give --text or --json")
    answer = session.client.ai.predict(
        service,
        found,
        model=model,
        version=version,
        top_k=top,
        output=inference_pb2.OutputOptions(kind=FORMS[form]) if form else None,
        parameters=dict(parameters) or None,
        timeout=session.timeout,
    )
    if session.screen.is_json:
        session.screen.message(answer)
        return
    names = [*inputs, *text, *("json" for values in json_ for _ in values)]
    session.screen.say(f"{short_name(answer.model)} {answer.version}".rstrip())
    for index, prediction in enumerate(answer.predictions):
        title = names[index] if len(answer.predictions) == len(names) else f"row {index}"
        session.screen.say(f"\n{title}")
        if prediction.HasField("classification"):
            session.screen.rows(
                [
                    {"probability": f"{score.probability:.1%}", "label": score.label or score.index}
                    for score in prediction.classification.classes
                ]
            )
        elif prediction.HasField("tensors"):
            for one in prediction.tensors.tensors:
                session.screen.say(f"{one.name}  {shown(one.tensor)}")
        else:
            session.screen.data(session.screen.to_json(prediction))


def _file(value: str) -> Path:
    path = Path(value)
    if not path.is_file():
        raise click.UsageError(f"{value} is no file, and no artifacts/… name")
    return path


@ai.command()
@click.argument("service")
@connected
def usage(session: Session, service: str) -> None:
    """What the service can do: functions, limits, formats, examples."""
    found = session.client.ai.usage(service, timeout=session.timeout)
    session.screen.message(
        found,
        {
            "summary": found.summary,
            "functions": [f"{function.method}: {function.description}" for function in found.functions],
            "images": list(found.image_media_types),
            "sources": list(found.model_sources),
            "formats": list(found.model_formats),
            "built in": list(found.built_in_models),
            "label sets": list(found.label_sets),
            "devices": list(found.devices),
            "models": [short_name(model.name) for model in found.models],
            "largest message": size(found.limits.max_message_bytes),
        },
    )


@ai.command()
@click.argument("service")
@click.argument("model", default="")
@connected
def models(session: Session, service: str, model: str) -> None:
    """List models and their versions, or show one MODEL."""
    if model:
        found = [session.client.ai.get_model(service, model, timeout=session.timeout)]
    else:
        found = list(session.client.ai.list_models(service, timeout=session.timeout))
    if session.screen.is_json:
        session.screen.messages(found, {})
        return
    rows = [
        {
            "model": short_name(item.name) + (" (default)" if item.is_default else ""),
            "version": version.version + (" (default)" if version.version == item.default_version else ""),
            "state": enum_name(model_pb2.ModelState, version.state),
            "labels": version.label_count or "",
            "memory": size(version.memory_bytes) if version.HasField("memory_bytes") else "",
            "ready": version.ready_time if version.HasField("ready_time") else "",
            "error": version.error.message,
        }
        for item in found
        for version in item.versions
    ]
    if rows:
        session.screen.rows(rows)
    else:
        session.screen.say("No models.")


@ai.command()
@click.argument("service")
@click.argument("model")
@click.option("--version", default="", help="Default: as the driver counts.")
@click.option("--artifact", default="", help="The model file, uploaded: artifacts/…")
@click.option("--path", default="", help="The model file, in a folder that the service's operator has allowed.")
@click.option("--built-in", default="", help="A model that comes with the driver.")
@click.option("--format", "format_", default="", help="Format of the file. Default: found from it.")
@click.option("--labels", "label_file", type=FILE, help="Text file with one label a line, in the order of the classes.")
@click.option("--config", type=JSON, help="Whole ModelConfig as JSON, instead of the options above.")
@click.option("--replace", is_flag=True, help="Replace a version that has another config.")
@click.option("--default", "make_default", is_flag=True, help="Make it the service's default model.")
@job_options
@click.option("--wait", "wait_", is_flag=True, help="Wait until it is READY, with a live bar.")
@connected
def serve(
    session: Session,
    service: str,
    model: str,
    version: str,
    artifact: str,
    path: str,
    built_in: str,
    format_: str,
    label_file: Path | None,
    config: list[Any] | None,
    replace: bool,
    make_default: bool,
    wait_: bool,
    **values: Any,
) -> None:
    """Serve MODEL: load it and answer calls of it from then on. A job; see `oca ai models` for its state."""
    wanted = model_pb2.ModelConfig()
    if config:
        try:
            json_format.ParseDict(config[0], wanted)
        except json_format.ParseError as error:
            raise click.UsageError(f"--config is no ModelConfig: {error}") from None
    for field, value in (("artifact", artifact), ("path", path), ("built_in", built_in)):
        if value:
            setattr(wanted.source, field, value)
    if format_:
        wanted.source.format = format_
    if label_file is not None:
        wanted.classification.labels.list.names.extend(label_file.read_text().splitlines())
    job = session.client.ai.serve_model(
        service,
        model,
        version=version,
        config=wanted if wanted.ByteSize() else None,
        replace=replace,
        make_default_model=make_default,
        options=options_of(values),
        timeout=session.timeout,
    )
    if wait_:
        end_of(session, follow(session, job, title=f"serving {model}"))
    else:
        show(session, job.record)


@ai.command()
@click.argument("service")
@click.argument("model")
@click.option("--version", default="", help="Default: the default version.")
@click.option("--forget", is_flag=True, help="Also forget its config.")
@connected
def unload(session: Session, service: str, model: str, version: str, forget: bool) -> None:
    """Take a model out of memory; answers when the memory is free."""
    answer = session.client.ai.unload_model(service, model, version=version, forget=forget, timeout=session.timeout)
    session.screen.message(answer, {"model": answer.model.name, "released": size(answer.released_bytes)})


@ai.command()
@click.argument("service")
@click.argument("model", default="")
@connected
def statistics(session: Session, service: str, model: str) -> None:
    """What models have done since the sidecar started."""
    answer: inference_service_pb2.GetModelStatisticsResponse = session.client.ai.statistics(
        service, model=model, timeout=session.timeout
    )
    session.screen.messages(
        list(answer.models),
        {
            "model": lambda m: short_name(m.model),
            "version": lambda m: m.version,
            "inferences": lambda m: m.inference_count,
            "failures": lambda m: m.inference.failure.count,
            "in flight": lambda m: m.in_flight_count,
            "mean": lambda m: _mean(m.inference.success),
        },
    )


def _mean(duration: model_pb2.StatisticDuration) -> str:
    return f"{duration.total.ToNanoseconds() / duration.count / 1e6:.1f} ms" if duration.count else ""

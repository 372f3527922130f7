from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import Console, verb

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@verb(
    click.argument("sources", nargs=-1, required=True, metavar="SOURCE..."),
    click.option("--branch", "-b", "branches", multiple=True, help="Of a folder with several packages. Repeats. [all]"),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Of HTTP; 0 takes a free one."),
    click.option("--grpc-port", type=click.IntRange(0, 65535), help="Of gRPC; 0 takes a free one. [no gRPC]"),
    click.option("--format", "-f", "format", help="onnx, openvino, trt-rtx, ... [what is fastest here]"),
    click.option("--precision", "-p", help="fp32, fp16, bf16, int8. [what is fastest here]"),
    click.option("--runtime", "-r", help="onnxruntime-cpu, onnxruntime-cuda, tensorrt, ... [what the file is made for]"),
    click.option("--device", type=click.Choice(["cpu", "gpu"]), help="[the GPU, where there is one]"),
    click.option("--allow-fallback", is_flag=True, help="Serve something else where what is asked for does not run here."),
    click.option("--max-batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Images in one computation."),
    click.option("--max-wait", type=click.FloatRange(0, 1000), default=0.0, show_default=True, help="ms to wait for more."),
    click.option("--queue", "bound", type=click.IntRange(1), default=256, show_default=True, help="Images that wait; 503 beyond."),
    click.option("--threads", type=click.IntRange(1), help="That compute, each with its own call. [cores, by workers]"),
    click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that answer."),
    click.option("--timeout", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds for an answer; 504 beyond."),
    click.option("--grace", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to end in, after SIGTERM."),
    click.option("--max-body", type=click.IntRange(1), default=32, show_default=True, help="MiB of a request; 413 beyond."),
    click.option("--max-pixels", type=click.FloatRange(0.001), default=32.0, show_default=True, help="Millions, of a picture."),
    click.option("--per-client", type=click.IntRange(1), default=64, show_default=True, help="Requests of an address; 429 beyond."),
    click.option("--token-file", type=FILE, help="Holds the token that clients must show; or KDZOO_SERVE_TOKEN."),
    click.option("--tls-certificate", type=FILE, help="PEM; with --tls-key, HTTPS."),
    click.option("--tls-key", type=FILE),
)  # fmt: skip
def serve(console: Console, **options: Any) -> None:
    """Answer for packages over HTTP and gRPC, and with a page to look at.

    The protocol is the Open Inference Protocol v2, that of Triton and KServe; docs/serving.md tells more. A SOURCE is a package, a
    folder that holds packages, or published: org/name@revision.
    """
    from ..errors import UsageError
    from ..serve.start import start

    if bool(options["tls_certificate"]) != bool(options["tls_key"]):
        raise UsageError("TLS needs a certificate and its key", hint="--tls-certificate FILE --tls-key FILE")
    server = start(**options, say=console.say, quiet=console.quiet)
    console.result(server.document, lambda: server.text)
    raise SystemExit(server.run())


command = serve

"""`make demo`: the main job end to end with the commands that a user types, each of them shown. Everything lands in demo/."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
ENTRY = "ahbf-resnet32-cifar100"
SLICE = "../tests/data/cifar100-slice.npz"


def kdzoo(*arguments: str) -> None:
    """Run one command line in demo/ as a user would; the demo stops where it fails."""
    print(f"\n$ kdzoo {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "kdzoo", *arguments], cwd=DEMO, check=False)
    if done.returncode:
        raise SystemExit(f"the demo stopped: kdzoo {arguments[0]} ended with exit code {done.returncode}")


def main() -> None:
    began = time.perf_counter()
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    # A real training run on real images, small enough for a minute or two; the bundled entry had 60,000 images and hours.
    kdzoo("train", "../tools/demo.yaml", "--data", SLICE)
    kdzoo("eval", "runs/demo", "--data", SLICE)
    kdzoo("export", "runs/demo", "--branch", "target", "--data", SLICE)
    # Three targets of the bundled entry as ONNX and as TensorRT engines.
    kdzoo("export", ENTRY, "-b", "1", "-b", "3", "-b", "fused", "--format", "onnx", "--format", "trt", "-o", "packages")
    for target in ("1", "3", "fused"):
        kdzoo("verify", f"packages/{ENTRY}-{target}")
    from PIL import Image

    from kdzoo.zoo.datasets import read_npz

    data = read_npz(ROOT / "tests" / "data" / "cifar100-slice.npz", "test")
    Image.fromarray(data.images[0]).resize((128, 128)).save(DEMO / "apple.png")
    kdzoo("predict", f"packages/{ENTRY}-1", "apple.png", "--top", "3")
    # The same answer from a server.
    server = subprocess.Popen(
        [sys.executable, "-m", "kdzoo", "serve", "packages", "--port", "0", "--json"], cwd=DEMO, stdout=subprocess.PIPE, text=True
    )
    print("\n$ kdzoo serve packages --port 0", flush=True)
    assert server.stdout is not None
    document = "".join(iter(server.stdout.readline, "}\n")) + "}"
    kdzoo("predict", "--url", json.loads(document)["http"], "apple.png", "--branch", "1", "--top", "3")
    server.terminate()
    if server.wait():
        raise SystemExit(f"the demo stopped: kdzoo serve ended with exit code {server.returncode}")
    kdzoo("ls")
    from picture import draw

    draw(ENTRY, DEMO / "accuracy.png")
    print(f"\ncard:    {DEMO / 'packages' / f'{ENTRY}-1' / 'README.md'}")
    print(f"curve:   {DEMO / 'runs' / 'demo' / 'curve.png'}")
    print(f"picture: {DEMO / 'accuracy.png'}")
    print(f"the demo took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

"""The snippets of a package's card for C++ and TensorRT. Torch-free.

`tests/test_card_cpp.py` checks the syntax of the C++ program and, where the library is at hand, runs it on a golden image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..package import GOLDEN_INPUTS, LABELS, Artifact
from .markdown import code

GOLDEN_IMAGES = 8

COMPILE = (
    "g++ -std=c++17 -O2 classify.cpp -I $ONNXRUNTIME_CPP/include -L $ONNXRUNTIME_CPP/lib -Wl,-rpath,$ONNXRUNTIME_CPP/lib "
    "-lonnxruntime -o classify"
)
CPP = """
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

int main(int argc, char** argv) {{
  const int64_t batch = {batch}, height = {height}, width = {width}, channels = 3;
  std::ifstream file(argc > 1 ? argv[1] : "", std::ios::binary);
  const std::vector<uint8_t> picture{{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}};
  if (picture.size() != static_cast<size_t>(height * width * channels)) {{
    std::cerr << "give a file of " << height << " x " << width << " x 3 bytes: RGB, row by row\\n";
    return 2;
  }}
{fill}
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "classify");
  Ort::Session session(env, ORT_TSTR("{path}"), Ort::SessionOptions{{}});
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value input = Ort::Value::CreateTensor<{type}>(memory, images.data(), images.size(), shape.data(), shape.size());
  const char* inputs[] = {{"image"}};
  const char* outputs[] = {{"logits"}};
  const std::vector<Ort::Value> found = session.Run(Ort::RunOptions{{nullptr}}, inputs, &input, 1, outputs, 1);
  const float* logits = found[0].GetTensorData<float>();

  std::vector<std::string> labels;
  std::ifstream names("{labels}");
  for (std::string line; std::getline(names, line);) labels.push_back(line);
  std::cout << labels[std::max_element(logits, logits + labels.size()) - logits] << std::setprecision(9) << "\\n";
  for (size_t k = 0; k < labels.size(); ++k) std::cout << logits[k] << "\\n";
}}
"""
RAW = """
  const std::vector<int64_t> shape{batch, height, width, channels};
  std::vector<uint8_t> images;
  for (int64_t n = 0; n < batch; ++n) images.insert(images.end(), picture.begin(), picture.end());
"""
NORMALISED = """
  const std::vector<int64_t> shape{{batch, channels, height, width}};
  const float mean[] = {{{mean}}}, deviation[] = {{{std}}};
  std::vector<float> images;
  for (int64_t n = 0; n < batch * channels; ++n)
    for (int64_t k = n % channels; k < height * width * channels; k += channels)
      images.push_back((picture[k] / 255.0f - mean[n % channels]) / deviation[n % channels]);
"""

ENGINE = """
import numpy as np
import torch
import {module} as trt

images = np.load("{inputs}")["image"]{rows}
{prepare}images = torch.from_numpy(images).cuda()
logger = trt.Logger(trt.Logger.WARNING)
engine = trt.Runtime(logger).deserialize_cuda_engine(open("{path}", "rb").read())
context = engine.create_execution_context()
context.set_input_shape("image", tuple(images.shape))
context.set_tensor_address("image", images.data_ptr())
outputs = {{}}
for name in (engine.get_tensor_name(k) for k in range(engine.num_io_tensors)):
    if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
        outputs[name] = torch.empty(tuple(context.get_tensor_shape(name)), device="cuda")
        context.set_tensor_address(name, outputs[name].data_ptr())
context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
torch.cuda.synchronize()
print(outputs["logits"].argmax(dim=1))
"""


def cpp_section(artifact: Artifact, preprocess: Mapping[str, Any]) -> str:
    """A program for one picture in raw bytes, which every image library can give."""
    height, width = preprocess["height"], preprocess["width"]
    covers = f"{preprocess['resize']}x{preprocess['resize']}" if preprocess.get("resize") else f"{width}x{height}"
    convert = f"convert picture.jpg -resize '{covers}^' -gravity center -extent {width}x{height} -depth 8 rgb:picture.rgb"
    return "\n\n".join([
        f"`{COMPILE}`, then `./classify picture.rgb` in this folder; `{convert}` (ImageMagick) makes such a file. "
        "`ONNXRUNTIME_CPP` is the unpacked C++ package of onnxruntime.",
        code("cpp", cpp(artifact, preprocess)),
        "kdzoo's tests check the syntax of programs of this template, against declarations of what they call; they compile and run "
        "them, on a golden image, where `ONNXRUNTIME_CPP` is set. This very text was not compiled when the card was written.",
    ])  # fmt: skip


def cpp(artifact: Artifact, preprocess: Mapping[str, Any]) -> str:
    raw = artifact.input.dtype == "uint8"
    mean, std = (", ".join(f"{float(value)!r}f" for value in preprocess[key]) for key in ("mean", "std"))
    return CPP.format(
        batch=artifact.batch[0],
        height=preprocess["height"],
        width=preprocess["width"],
        fill=(RAW if raw else NORMALISED.format(mean=mean, std=std)).strip("\n"),
        path=artifact.path,
        type="uint8_t" if raw else "float",
        labels=LABELS,
    )


def engine_section(artifacts: Sequence[Artifact], preprocess: Mapping[str, Any]) -> str:
    """How the engines that are here are run, and how one is built out of the ONNX."""
    if any("exit" in a.details.get("outputs", []) for a in artifacts):
        return (
            "TensorRT compiles no conditions: of a cascade, `kdzoo export` with `--format trt` builds an engine for every exit, "
            "and `cascade_driver.py`, which then lies beside them, asks them one after the other."
        )
    engines = [a for a in artifacts if a.compute_capability]
    parts = []
    if engines:
        parts += [
            "The engines of this package run on GPUs of their compute capability, with their version of the runtime "
            "(`kdzoo doctor .` says which of them this machine can run):",
            code("python", run_engine(engines[0], preprocess)),
            "kdzoo's tests have no GPU and check the syntax of this snippet only.",
        ]
    graphs = [a for a in artifacts if a.format == "onnx"]
    graph = next((a for a in graphs if a.runtime == "tensorrt"), graphs[0] if graphs else None)
    if graph is not None:
        sizes = " ".join(
            f"--{which}Shapes=image:{'x'.join(map(str, (batch, *graph.input.shape[1:])))}"
            for which, batch in zip(("min", "opt", "max"), graph.batch, strict=True)
        )
        fixed = graph.batch[0] == graph.batch[2]
        command = f"trtexec --onnx={graph.path} {'' if fixed else sizes + ' '}--saveEngine=model.engine"
        parts += [
            "An engine for another GPU, out of the ONNX, whose numbers are already as narrow as its name says "
            "(before TensorRT 11 that takes `--stronglyTyped`):",
            code("sh", command),
        ]
    return "\n\n".join(parts)


def run_engine(artifact: Artifact, preprocess: Mapping[str, Any]) -> str:
    """The golden images through an engine."""
    smallest, _, largest = artifact.batch
    prepare = normalising(artifact, str(preprocess["mean"]), str(preprocess["std"]))
    if smallest > GOLDEN_IMAGES:
        prepare += f"images = np.resize(images, ({smallest}, *images.shape[1:]))  # rows are repeated until the batch is full\n"
    return ENGINE.format(
        module=artifact.runtime,
        inputs=GOLDEN_INPUTS,
        rows=f"[:{largest}]" if largest < GOLDEN_IMAGES else "",
        prepare=prepare,
        path=artifact.path,
    )


def normalising(artifact: Artifact, mean: str, std: str) -> str:
    """A line for a graph without its own normalisation; "" for any other."""
    if artifact.input.dtype == "uint8":
        return ""
    return f"images = ((images / 255 - {mean}) / {std}).transpose(0, 3, 1, 2).astype(np.float32)\n"

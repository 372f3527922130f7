"""The messages of the Open Inference Protocol v2 over gRPC, as Triton has them, and of the health check of gRPC: a table, no
generated code. They live in a pool of their own, so that a client of Triton in the same process can have its own, too.

https://github.com/triton-inference-server/common/tree/main/protobuf (`grpc_service.proto`, and of `model_config.proto` what
`describe.model_config` tells); https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE, SERVICE = "inference", "inference.GRPCInferenceService"
HEALTH_PACKAGE, HEALTH_SERVICE = "grpc.health.v1", "grpc.health.v1.Health"
CHOICE = "parameter_choice"  # the `oneof` of what a parameter can hold
NAMED = "name:string=1 version:string=2"
DURATIONS = "compute_input:StatisticDuration={} compute_infer:StatisticDuration={} compute_output:StatisticDuration={}"

# A field is `name:type=number`; `type*` is repeated, `{type}` a map from text. `Outer.Inner` lies within `Outer`.
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool=1",
    "ModelReadyRequest": NAMED,
    "ModelReadyResponse": "ready:bool=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:string*=3",
    "ModelMetadataRequest": NAMED,
    "ModelMetadataResponse": (
        "name:string=1 versions:string*=2 platform:string=3 inputs:ModelMetadataResponse.TensorMetadata*=4 "
        "outputs:ModelMetadataResponse.TensorMetadata*=5"
    ),
    "ModelMetadataResponse.TensorMetadata": "name:string=1 datatype:string=2 shape:int64*=3",
    "InferParameter": "bool_param:bool=1 int64_param:int64=2 string_param:string=3 double_param:double=4 uint64_param:uint64=5",
    "InferTensorContents": (
        "bool_contents:bool*=1 int_contents:int32*=2 int64_contents:int64*=3 uint_contents:uint32*=4 uint64_contents:uint64*=5 "
        "fp32_contents:float*=6 fp64_contents:double*=7 bytes_contents:bytes*=8"
    ),
    "ModelInferRequest": (
        "model_name:string=1 model_version:string=2 id:string=3 parameters:{InferParameter}=4 "
        "inputs:ModelInferRequest.InferInputTensor*=5 outputs:ModelInferRequest.InferRequestedOutputTensor*=6 "
        "raw_input_contents:bytes*=7"
    ),
    "ModelInferRequest.InferInputTensor": (
        "name:string=1 datatype:string=2 shape:int64*=3 parameters:{InferParameter}=4 contents:InferTensorContents=5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "name:string=1 parameters:{InferParameter}=2",
    "ModelInferResponse": (
        "model_name:string=1 model_version:string=2 id:string=3 parameters:{InferParameter}=4 "
        "outputs:ModelInferResponse.InferOutputTensor*=5 raw_output_contents:bytes*=6"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name:string=1 datatype:string=2 shape:int64*=3 parameters:{InferParameter}=4 contents:InferTensorContents=5"
    ),
    "ModelStreamInferResponse": "error_message:string=1 infer_response:ModelInferResponse=2",
    "ModelConfigRequest": NAMED,
    "ModelConfigResponse": "config:ModelConfig=1",
    "ModelConfig": (
        "name:string=1 platform:string=2 max_batch_size:int32=4 input:ModelInput*=5 output:ModelOutput*=6 "
        "instance_group:ModelInstanceGroup*=7 default_model_filename:string=8 "
        "dynamic_batching:ModelDynamicBatching=11 backend:string=17"
    ),
    "ModelTensorReshape": "shape:int64*=1",
    "ModelInput": "name:string=1 data_type:DataType=2 dims:int64*=4 reshape:ModelTensorReshape=5",
    "ModelOutput": "name:string=1 data_type:DataType=2 dims:int64*=3 label_filename:string=4 reshape:ModelTensorReshape=5",
    "ModelInstanceGroup": "name:string=1 count:int32=2 gpus:int32*=3 kind:ModelInstanceGroup.Kind=4",
    "ModelDynamicBatching": "preferred_batch_size:int32*=1 max_queue_delay_microseconds:uint64=2 preserve_ordering:bool=3",
    "ModelStatisticsRequest": NAMED,
    "ModelStatisticsResponse": "model_stats:ModelStatistics*=1",
    "ModelStatistics": (
        "name:string=1 version:string=2 last_inference:uint64=3 inference_count:uint64=4 execution_count:uint64=5 "
        "inference_stats:InferStatistics=6 batch_stats:InferBatchStatistics*=7"
    ),
    "StatisticDuration": "count:uint64=1 ns:uint64=2",
    "InferStatistics": (
        f"success:StatisticDuration=1 fail:StatisticDuration=2 queue:StatisticDuration=3 {DURATIONS.format(4, 5, 6)} "
        "cache_hit:StatisticDuration=7 cache_miss:StatisticDuration=8"
    ),
    "InferBatchStatistics": f"batch_size:uint64=1 {DURATIONS.format(2, 3, 4)}",
    "ModelRepositoryParameter": "bool_param:bool=1 int64_param:int64=2 string_param:string=3 bytes_param:bytes=4",
    "RepositoryIndexRequest": "repository_name:string=1 ready:bool=2",
    "RepositoryIndexResponse": "models:RepositoryIndexResponse.ModelIndex*=1",
    "RepositoryIndexResponse.ModelIndex": "name:string=1 version:string=2 state:string=3 reason:string=4",
    "RepositoryModelLoadRequest": "repository_name:string=1 model_name:string=2 parameters:{ModelRepositoryParameter}=3",
    "RepositoryModelLoadResponse": "",
}
ENUMS = {  # numbered from 0
    "DataType": (
        "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 TYPE_INT32 TYPE_INT64 "
        "TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16"
    ),
    "ModelInstanceGroup.Kind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
}
HEALTH_MESSAGES = {
    "HealthCheckRequest": "service:string=1",
    "HealthCheckResponse": "status:HealthCheckResponse.ServingStatus=1",
}
HEALTH_ENUMS = {"HealthCheckResponse.ServingStatus": "UNKNOWN SERVING NOT_SERVING SERVICE_UNKNOWN"}


def describe_file(package: str, messages: dict[str, str], enums: dict[str, str]) -> FileDescriptorProto:
    """The tables as protobuf's own description of a file; an outer message stands before what lies within it."""
    file = FileDescriptorProto(name=f"kdzoo/{package}.proto", package=package, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in messages.items():
        outer, _, inner = name.rpartition(".")
        made[name] = message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        choice = name.endswith("Parameter")
        if choice:
            message.oneof_decl.add(name=CHOICE)
        for field in fields.split():
            _add_field(message, field, f".{package}.", enums, in_choice=choice)
    for name, values in enums.items():
        outer, _, inner = name.rpartition(".")
        enum: EnumDescriptorProto = made[outer].enum_type.add(name=inner) if outer else file.enum_type.add(name=name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    return file


def _add_field(message: DescriptorProto, field: str, prefix: str, enums: dict[str, str], *, in_choice: bool) -> None:
    name, _, rest = field.partition(":")
    kind, _, number = rest.partition("=")
    bare = kind.strip("*{}")
    added = message.field.add(name=name, number=int(number))
    added.label = FieldDescriptorProto.LABEL_OPTIONAL if bare == kind else FieldDescriptorProto.LABEL_REPEATED
    if kind.startswith("{"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key:string=1", prefix, enums, in_choice=False)
        _add_field(entry, f"value:{bare}=2", prefix, enums, in_choice=False)
        added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, entry.name
    elif bare in enums:
        added.type, added.type_name = FieldDescriptorProto.TYPE_ENUM, prefix + bare
    elif bare[0].isupper():
        added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, prefix + bare
    else:
        added.type = FieldDescriptorProto.Type.Value(f"TYPE_{bare.upper()}")
    if in_choice:
        added.oneof_index = 0


POOL = DescriptorPool()
for _file in (describe_file(PACKAGE, MESSAGES, ENUMS), describe_file(HEALTH_PACKAGE, HEALTH_MESSAGES, HEALTH_ENUMS)):
    POOL.AddSerializedFile(_file.SerializeToString())
CLASSES: dict[str, Any] = {
    name: GetMessageClass(POOL.FindMessageTypeByName(f"{package}.{name}"))
    for package, messages in ((PACKAGE, MESSAGES), (HEALTH_PACKAGE, HEALTH_MESSAGES))
    for name in messages
}
